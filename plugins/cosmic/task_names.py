"""Names for people of tasks."""

from __future__ import annotations

from cosmic.dag_constants import COPY_TASK

_STEPS = {
    "check_scan": "check of the request",
    COPY_TASK: "copy to NERSC",
    "submit": "submission to Slurm",
    "wait": "Slurm job",
    "collect": "check of the result",
}
"""Without the engine; others keep their own."""


def step_name(task_id: str) -> str:
    """A task's name.

    >>> step_name("cdtools.wait")
    'cdtools: Slurm job'
    """
    engine, _, rest = task_id.rpartition(".")
    name = _STEPS.get(rest, rest.replace("_", " "))
    return f"{engine}: {name}" if engine else name[0].upper() + name[1:]
