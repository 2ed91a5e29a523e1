"""The link from a task to its job's page at NERSC."""

from __future__ import annotations

from facilities.links import RemoteWorkLink


class SlurmJobLink(RemoteWorkLink):
    """The page on which NERSC shows the job."""

    name = "Slurm job"
