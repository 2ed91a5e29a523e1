"""The link from a task to where NERSC shows its job."""

from __future__ import annotations

from facilities.links import RemoteWorkLink


class SlurmJobLink(RemoteWorkLink):
    """NERSC's list of the user's jobs: there is no lasting address of a single one."""

    name = "Slurm jobs at NERSC"
