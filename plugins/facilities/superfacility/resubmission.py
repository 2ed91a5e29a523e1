"""The successor of a job that the facility lost, or that ran out of time: same script, next generation.

The sensor that waits for a job submits the successor, under the identity of the task that submitted the
first one, with the same care (`facilities.superfacility.submission`). So clearing either task finds it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from facilities.superfacility import claims
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.identity import JobIdentity, NotYet, Store, Submitted
from facilities.superfacility.job import JobSnapshot
from facilities.superfacility.states import CONFIRM, OUT_OF_RESOURCES, SlurmState
from facilities.superfacility.submission import JOB_KEY, Submission

ORIGIN_KEY = "slurm_origin"

_DAY = 86_400
# Perlmutter's limits of a job's time by qos, in seconds; two days for the others.
_LONGEST = {"debug": 1800, "interactive": 4 * 3600}
_LONGEST_OTHERWISE = 2 * _DAY
_MOST_GPUS = 4  # of a node; with them comes its memory


class Successors:
    """The jobs that one submit task has led to, as its sensor keeps them.

    :param told: what the submit task left under its XCom key "job".
    :param store: the sensor's task state store; without one, names alone tell.
    :param settle: see `Submission`.
    """

    def __init__(
        self,
        hook: SuperfacilityHook,
        told: Mapping[str, Any],
        identity: JobIdentity,
        *,
        machine: str,
        store: Store | None,
        settle: float,
    ) -> None:
        self.identity = identity
        self._settle = settle
        self._hook = hook
        self._told = told
        self._machine = machine
        self._store = store
        self._origin = str(told["job_id"])

    @property
    def current(self) -> str:
        """Id of the job to wait for: the newest that followed the submit task's."""
        kept = self._kept()
        return str(kept["job_id"]) if kept else self._origin

    @property
    def count(self) -> int:
        """How many successors there were."""
        kept = self._kept()
        first = self.identity.generation_of(str(self._told.get("name"))) or 0
        return int(kept["generation"]) - first if kept else 0

    def script_after(self, job: JobSnapshot, *, more: bool) -> str | None:
        """The script for the successor of a failed job; None when it would fail in the same way.

        :param more: whether a job that ran out of time or memory may have more of it.
        """
        script = str(self._told.get("script") or "")
        if not script:
            return None
        if job.state in CONFIRM:
            return script
        if more and job.state in OUT_OF_RESOURCES and self.count == 0:
            return script_with_more(script, job.state)
        return None

    def step(self, script: str) -> Submitted | NotYet:
        """Find the successor, or submit it; see `Submission.step`."""
        if self._store is not None and self._kept() is None:
            first = self.identity.generation_of(str(self._told.get("name"))) or 0
            name = str(self._told.get("name") or self.identity.name(first))
            self._store.set(
                JOB_KEY,
                {"job_id": self._origin, "name": name, "generation": first, "submitted_at": time.time()},
            )
            self._store.set(ORIGIN_KEY, self._origin)
        submission = Submission(
            self._hook,
            self.identity,
            machine=self._machine,
            script_for=lambda name, failed: claims.with_failed(renamed(script, name), failed),
            store=self._store,
            doubtful_since=None if self._store is not None else time.time(),
            settle=self._settle,
            confirm=0.0,  # the wait for the lost job has seen to that
        )
        return submission.step()

    def _kept(self) -> Mapping[str, Any] | None:
        """What the store knows of this submit task's jobs; nothing when another one was submitted since."""
        if self._store is None or self._store.get(ORIGIN_KEY) != self._origin:
            return None
        kept = self._store.get(JOB_KEY)
        return kept if isinstance(kept, Mapping) and kept.get("job_id") else None


def renamed(script: str, name: str) -> str:
    """The script under another job name."""
    return re.sub(r"(?m)^#SBATCH --job-name=.*$", f"#SBATCH --job-name={name}", script, count=1)


def script_with_more(script: str, state: SlurmState) -> str | None:
    """The script with twice the time or memory, up to the queue's limit; None when it is there already."""
    if state is SlurmState.TIMEOUT:
        return _with_more_time(script)
    if found := re.search(r"(?m)^#SBATCH --mem=(\d+)(.*)$", script):
        return script.replace(found[0], f"#SBATCH --mem={2 * int(found[1])}{found[2]}")
    found = re.search(r"(?m)^#SBATCH --gpus=(\d+)$", script)
    if found is None or int(found[1]) >= _MOST_GPUS:
        return None
    return script.replace(found[0], f"#SBATCH --gpus={min(2 * int(found[1]), _MOST_GPUS)}")


def _with_more_time(script: str) -> str | None:
    found = re.search(r"(?m)^#SBATCH --time=(?:(\d+)-)?(\d+):(\d+):(\d+)$", script)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    now = days * _DAY + hours * 3600 + minutes * 60 + seconds
    qos = re.search(r"(?m)^#SBATCH --qos=(\S+)$", script)
    more = min(2 * now, _LONGEST.get(qos[1] if qos else "", _LONGEST_OTHERWISE))
    if more <= now:
        return None
    limit = f"{more // 3600:02}:{more % 3600 // 60:02}:{more % 60:02}"
    return script.replace(found[0], f"#SBATCH --time={limit}")
