"""A job as the accounting keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from standin.nersc.schedulers.states import ENDED


@dataclass
class Job:
    """One job; durations in Slurm's seconds, points in time in seconds since 1970."""

    name: str
    user: str
    uid: int
    gid: int
    group: str
    account: str
    qos: str
    asked_qos: str
    partition: str
    constraint: str
    nodes: int
    gpus: int
    ntasks: int
    cpus_per_task: int
    memory_mb: int | None
    time_limit: float
    work_dir: str
    stdout: str
    stderr: str | None
    stdin: str
    open_mode: str
    args: list[str]
    command: str
    submit_line: str
    script_sha256: str
    comment: str
    environment: dict[str, str]
    signal: dict[str, Any] | None
    dependency: str
    kill_on_invalid_dependency: bool
    requeue: bool
    begin: float | None
    submit: float
    job_id: int = 0
    state: str = "PENDING"
    completing: bool = False
    reason: str = "None"
    waited_for: str = "None"  # why it was in the queue before it started
    hold: str = ""  # "", "user", "admin" or "requeue"
    priority: int = 0
    eligible: float | None = None
    start: float | None = None
    end: float | None = None
    suspended: float = 0.0
    suspended_since: float | None = None
    node_list: str = ""
    node_lost: bool = False  # nothing is left to clean up: squeue shows no COMPLETING
    exit_code: int = 0
    exit_signal: int = 0
    cpu_seconds: float = 0.0
    cancelled_by: int | None = None
    run: int = 0  # number of the newest run
    restarts: int = 0
    db_index: int = 0
    first_submit: float = 0.0
    flags: str = "StartRecieved"
    sacct_state: str = ""  # what sacct shows instead, for a while after a requeue
    settles: float = 0.0  # until then
    forced: dict[str, str] = field(default_factory=dict)  # states shown on demand, by view

    @property
    def ended(self) -> bool:
        """Whether the job will not run any more."""
        return self.state in ENDED

    @property
    def active(self) -> bool:
        """Whether the scheduler still has to look after it."""
        return not self.ended or self.completing

    @property
    def listed(self) -> bool:
        """Whether squeue lists it."""
        return not self.ended or (self.completing and not self.node_lost)

    def wait_no_more(self) -> None:
        """The reason why it waited is gone; sacct goes on telling it."""
        if self.reason != "None":
            self.waited_for, self.reason = self.reason, "None"

    def to_record(self) -> dict[str, Any]:
        """For the database."""
        return asdict(self)

    def elapsed(self, now: float) -> float:
        """Real seconds of the newest run so far, without those suspended."""
        if self.start is None:
            return 0.0
        suspended = self.suspended
        if self.suspended_since is not None:
            suspended += (self.end or now) - self.suspended_since
        return max((self.end if self.end is not None else now) - self.start - suspended, 0.0)
