"""Starts, ends, requeues and holds one job of the built-in scheduler."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from standin.nersc.options import Options
from standin.nersc.schedulers.environment import job_environment, output_path
from standin.nersc.schedulers.job import Job
from standin.nersc.schedulers.ledger import Ledger
from standin.nersc.schedulers.policy import BASE_PRIORITY
from standin.nersc.schedulers.rows import HELD
from standin.nersc.schedulers.runs import Exit, Run
from standin.nersc.schedulers.states import ALLOCATED, CONFIGURING, PENDING, RUNNING, SUSPENDED

NODE_MESSAGE = "DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS"
LOST = ("NODE_FAIL", "BOOT_FAIL")
STEP_SIGNAL = 125  # what Slurm gives as the signal of a job that ran out of memory


@dataclass(frozen=True)
class Places:
    """Folders of the scheduler."""

    jobs: Path  # a folder for each job: its script and its runs
    alive: Path  # touched while a server looks after jobs
    home: Path  # the user's home, where sbatch is called
    file_system: Path  # NERSC's file system; jobs' files lie in it


class Lifecycle:
    """Changes jobs, and records each change before it acts on it."""

    def __init__(self, ledger: Ledger, options: Callable[[], Options], places: Places) -> None:
        self.ledger = ledger
        self._options = options
        self.places = places
        self._runs: dict[tuple[int, int], Run] = {}

    @property
    def options(self) -> Options:
        """The options as they are now."""
        return self._options()

    @property
    def uid(self) -> int:
        """Uid of the user, who cancels what the API cancels."""
        return os.getuid()

    def folder(self, job: Job) -> Path:
        """The job's folder."""
        return self.places.jobs / str(job.job_id)

    def begin(self, job: Job, now: float) -> None:
        """Give a pending job its nodes, and start it unless they have to boot first."""
        job.run += 1
        job.state = CONFIGURING if self.options.configure_seconds else RUNNING
        job.wait_no_more()
        job.start, job.end, job.node_lost = now, None, False
        job.suspended, job.suspended_since = 0.0, None
        job.node_list = _nodes(job)
        job.flags = "SchedMain,StartRecieved"
        self.ledger.save(job, now)
        if job.state == RUNNING:
            self._launch(job)

    def look(self, job: Job, now: float) -> None:
        """Update a job that has nodes, or had, from what its runner reports."""
        if job.state == CONFIGURING:
            if now >= (job.start or 0) + self.options.real(self.options.configure_seconds):
                job.state = RUNNING
                self.ledger.save(job, now)
                self._launch(job)
        elif job.completing or job.state in ALLOCATED:
            self._look_at_run(job, now)

    def _look_at_run(self, job: Job, now: float) -> None:
        run = self._run(job)
        ended = run.poll()
        if ended is None and not run.started:
            if not run.launching:
                self._launch(job)
            return
        if ended is None and not run.alive:
            ended = run.poll()  # it may have ended between the two looks
            if ended is None:
                run.kill_leftovers()
                ended = Exit(0, 0, "orphaned", now, now, 0.0)
        if ended is not None:
            self._settle(job, ended, now)
        elif not job.completing and (ending := run.ending()) is not None:
            self._decide(job, ending["cause"], ending["at"])
            job.completing = True
            self.ledger.save(job, now)

    def _settle(self, job: Job, ended: Exit, now: float) -> None:
        """Nothing of the run is left."""
        job.cpu_seconds += ended.cpu
        self._runs.pop((job.job_id, job.run), None)
        if job.completing:
            job.completing = False
            # a requeued job's rows change later than its processes go
            self.ledger.save(job, max(now, job.settles) if job.state == PENDING else now)
            return
        if ended.cause in ("exit", "launch"):
            job.state = "COMPLETED" if ended.code == 0 and ended.signal == 0 else "FAILED"
            job.exit_code, job.exit_signal, job.end = ended.code, ended.signal, ended.ended
        elif ended.cause == "orphaned" and job.requeue:
            self._back_to_queue(job, "NODE_FAIL", now, completing=False)
            return
        else:
            self._decide(job, ended.cause, ended.ended)
        self.ledger.save(job, now)

    def _decide(self, job: Job, cause: str, at: float) -> None:
        """The final state of a run that the node ended."""
        job.state = {"timeout": "TIMEOUT", "oom": "OUT_OF_MEMORY"}.get(cause, "NODE_FAIL")
        job.exit_code, job.exit_signal = 0, STEP_SIGNAL if cause == "oom" else 0
        job.end = at
        job.reason = "TimeLimit" if job.state == "TIMEOUT" else "None"
        job.node_lost = job.state == "NODE_FAIL"

    def end(
        self,
        job: Job,
        state: str,
        now: float,
        *,
        grace: float = 0.0,
        message: str | None = None,
        by: int | None = None,
    ) -> bool:
        """End a job; False when it had ended by itself just before.

        :param grace: Slurm's seconds from TERM to KILL; 0 kills at once.
        :param message: why, for the job's stderr; None writes nothing there.
        :param by: uid of who cancelled it.
        """
        self.look(job, now)
        if job.ended:
            return False
        allocated = job.state in (RUNNING, SUSPENDED)
        if job.suspended_since is not None:
            job.suspended += now - job.suspended_since
            job.suspended_since = None
        job.state, job.end, job.cancelled_by = state, now, by
        job.exit_code, job.exit_signal = 0, STEP_SIGNAL if state == "OUT_OF_MEMORY" else 0
        job.sacct_state = ""
        job.node_lost = state in LOST
        job.completing = job.completing or allocated
        self.ledger.save(job, now)
        if allocated:
            self._run(job).request(
                action="end", cause=state.lower(), grace=self.options.real(grace), message=message
            )
        return True

    def requeue(
        self,
        job: Job,
        shown: str,
        now: float,
        *,
        grace: float = 0.0,
        message: str | None = None,
        hold: bool = False,
    ) -> bool:
        """Put a job that has nodes back into the queue; False when it had ended by itself just before.

        :param shown: what sacct shows for a while: REQUEUED, NODE_FAIL, PREEMPTED or BOOT_FAIL.
        """
        self.look(job, now)
        if job.ended or job.state == PENDING:
            return False
        running = job.state in (RUNNING, SUSPENDED)
        self._back_to_queue(job, shown, now, completing=running, hold=hold)
        if running:
            self._run(job).request(
                action="end", cause="requeue", grace=self.options.real(grace), message=message
            )
        return True

    def _back_to_queue(
        self, job: Job, shown: str, now: float, *, completing: bool, hold: bool = False
    ) -> None:
        options = self.options
        job.sacct_state, job.state, job.end, job.completing = shown, PENDING, now, completing
        job.suspended_since, job.node_lost = None, shown in LOST
        job.reason = "BeginTime"
        job.begin = job.eligible = now + options.real(options.requeue_delay)
        if hold:
            job.hold, job.priority, job.reason = "requeue", 0, HELD["requeue"]
        self.ledger.save(job, now)
        job.sacct_state, job.start, job.end, job.node_list = "", None, None, ""
        job.submit, job.restarts, job.db_index = now, job.restarts + 1, self.ledger.next_index()
        job.settles = now + options.real(options.requeue_shown)
        self.ledger.save(job, job.settles)

    def hold(self, job: Job, by: str, now: float) -> None:
        """Keep a pending job from starting."""
        self._note_hold(job, by)
        self.ledger.save(job, now)

    def _note_hold(self, job: Job, by: str) -> None:
        job.hold, job.priority, job.eligible, job.reason = by, 0, None, HELD[by]

    def release(self, job: Job, now: float) -> None:
        """Let a held job go on."""
        job.hold, job.priority = "", BASE_PRIORITY[job.asked_qos]
        job.wait_no_more()
        job.forced.clear()
        self.ledger.save(job, now)

    def suspend(self, job: Job, now: float) -> None:
        """Stop a running job's processes."""
        job.state, job.suspended_since = SUSPENDED, now
        self.ledger.save(job, now)
        self._run(job).request(action="suspend")

    def resume(self, job: Job, now: float) -> None:
        """Let a suspended job's processes go on."""
        job.suspended += now - (job.suspended_since or now)
        job.state, job.suspended_since = RUNNING, None
        self.ledger.save(job, now)
        self._run(job).request(action="resume")

    def signal(self, job: Job, number: int) -> None:
        """Send a signal to everything that a running job's script started."""
        self._run(job).request(action="signal", number=number)

    def _run(self, job: Job) -> Run:
        key = (job.job_id, job.run)
        if key not in self._runs:
            self._runs[key] = Run(self.folder(job), job.run)
        return self._runs[key]

    def _launch(self, job: Job) -> None:
        options, places = self.options, self.places
        run = self._run(job)
        output = output_path(job.stdout, job, places.file_system)
        run.prepare({
            "job_id": job.job_id,
            "script": str(self.folder(job) / "slurm_script"),
            "args": job.args,
            "cwd": output_path(job.work_dir, job, places.file_system),
            "stdin": output_path(job.stdin, job, places.file_system),
            "stdout": output,
            "stderr": output if job.stderr is None else output_path(job.stderr, job, places.file_system),
            "append": job.open_mode == "append",
            "env": job_environment(job, options, places.home),
            "limit": options.real(job.time_limit),
            "grace": options.real(options.kill_wait),
            "memory": None if job.memory_mb is None else job.memory_mb * 1024 * 1024,
            "signal": job.signal and {**job.signal, "before": options.real(job.signal["before"])},
            "alive": str(places.alive),
            "orphan_after": options.orphan_seconds,
            "node": _nodes(job).partition("[")[0],
            "timezone": options.timezone,
        })  # fmt: skip
        run.launch()


def _nodes(job: Job) -> str:
    """Names of the nodes of a job, in Slurm's short form."""
    first = 1000 + job.job_id % 5000
    return f"nid{first:06}" if job.nodes == 1 else f"nid[{first:06}-{first + job.nodes - 1:06}]"
