"""Links from a task to its page in Globus's web app."""

from __future__ import annotations

from facilities.links import RemoteWorkLink


class GlobusTaskLink(RemoteWorkLink):
    """The activity page of the task's transfer or delete.

    Example: `operator_extra_links = (GlobusTaskLink(),)` in an operator's class.
    """

    name = "Globus task"
