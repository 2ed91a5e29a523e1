"""Runs one batch script: the node's part of a scheduler. A program of its own, standard library only.

Called as `python -I -S runner.py RUN_FOLDER`. It outlives the server that started it. Everything passes
through files in the run folder, each written whole or not at all:

- `spec.json`, from the server: what to run (see `standin.nersc.schedulers.runs`);
- `started.json`: claimed by exactly one runner, however many are started on the folder;
- `request-N.json`, from the server, in order: end, signal, suspend, resume;
- `ending.json`: the time limit passed, or memory ran out; the script is being ended;
- `exit.json`: everything that the script started is gone; how it ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LAUNCH_FAILED = 53  # what Slurm reports when it cannot open the output file
LOOK_EVERY = 0.1
MEMORY_EVERY = 0.3
WAKE = signal.SIGUSR1


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that readers see whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)


def process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: with the pid it names a process for ever."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def family(root: int) -> dict[int, int]:
    """The living descendants of a process: pid to resident bytes."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            fields = Path(f"/proc/{entry.name}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] not in ("Z", "X"):
            parents[int(entry.name)] = int(fields[1])
            sizes[int(entry.name)] = int(fields[21]) * resource.getpagesize()
    found: set[int] = set()
    wave = {root}
    while wave:
        wave = {pid for pid, parent in parents.items() if parent in wave} - found
        found |= wave
    return {pid: sizes[pid] for pid in found}


class Run:
    """One run of a script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: dict[str, Any] = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        self.process: subprocess.Popen[bytes] | None = None
        self.errors = -1
        self.status: int | None = None
        self.cause = "exit"
        self.ended = 0.0
        self.kill_at: float | None = None
        self.handled = 0
        self.began = time.monotonic()
        self.suspended_since: float | None = None
        self.suspended = 0.0
        self.signalled = False
        self.looked_at_memory = 0.0
        self.peak = 0
        self.out_of_memory = 0  # processes killed for it

    def claim(self) -> bool:
        """Become the one runner of this folder."""
        temporary = self.folder / f".started.{os.getpid()}"
        identity = {"pid": os.getpid(), "start": process_start(os.getpid()), "at": time.time()}
        temporary.write_text(json.dumps(identity), encoding="utf-8")
        try:
            os.link(temporary, self.folder / "started.json")
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def launch(self) -> None:
        """Start the script. What cannot be started is reported as by Slurm: by exit code and signal."""
        mode = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if self.spec["append"] else os.O_TRUNC)
        try:
            if not Path(self.spec["cwd"]).is_dir():
                raise NotADirectoryError(self.spec["cwd"])
            source = os.open(self.spec["stdin"], os.O_RDONLY)
            output = os.open(self.spec["stdout"], mode, 0o644)
            same = self.spec["stderr"] == self.spec["stdout"]
            self.errors = os.dup(output) if same else os.open(self.spec["stderr"], mode, 0o644)
        except OSError:
            self.finish_unlaunched(0, LAUNCH_FAILED)
            return
        try:
            self.process = subprocess.Popen(  # noqa: S603 - running the user's script is what it is for
                [self.spec["script"], *self.spec["args"]],
                stdin=source, stdout=output, stderr=self.errors, cwd=self.spec["cwd"],
                env=self.spec["env"], start_new_session=True,
                preexec_fn=_in_child,  # noqa: PLW1509 - this program has one thread
            )  # fmt: skip
        except OSError as error:
            with Path(self.spec["script"]).open("rb") as script:
                interpreter = script.readline()[2:].decode(errors="replace").strip().partition(" ")[0]
            self.write_error(f"slurmstepd: error: execve(): bad interpreter({interpreter}): {error.strerror}")
            self.finish_unlaunched(error.errno or 1, 0)
        finally:
            os.close(source)
            os.close(output)

    def finish_unlaunched(self, code: int, number: int) -> None:
        """Report that the script never ran."""
        self.cause, self.ended, self.status = "launch", time.time(), 0
        self.report(code, number)

    def write_error(self, line: str) -> None:
        """Write a line to the job's stderr, as slurmstepd does."""
        try:
            os.write(self.errors, f"{line}\n".encode())
        except OSError as error:  # a full disk must not keep the job from ending
            print(f"{line} ({error})", file=sys.stderr)

    def watch(self) -> None:
        """Watch the script until nothing of it is left."""
        while not self.collect_exited():
            self.handle_requests()
            self.check_limits()
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self.signal_all(signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD, WAKE}, LOOK_EVERY)

    def collect_exited(self) -> bool:
        """Collect ended processes; once the script has ended, whatever it left running is killed."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if self.process is not None and pid == self.process.pid:
                self.status, self.ended = status, self.ended or time.time()
        if self.status is None:
            return False
        if family(os.getpid()):
            if self.kill_at is None:
                self.signal_all(signal.SIGKILL)
            return False
        code = os.waitstatus_to_exitcode(self.status)
        self.report(max(code, 0), -min(code, 0))
        return True

    def report(self, code: int, number: int) -> None:
        """Write how it ended."""
        if self.out_of_memory:
            events = f"{self.out_of_memory} oom_kill event{'s' if self.out_of_memory > 1 else ''}"
            self.write_error(
                f"slurmstepd: error: Detected {events} in StepId={self.spec['job_id']}.batch. "
                "Some of the step tasks have been OOM Killed."
            )
            self.cause = "oom" if self.cause == "exit" else self.cause
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        content = {
            "code": code, "signal": number, "cause": self.cause, "ended": self.ended, "gone": time.time(),
            "cpu": usage.ru_utime + usage.ru_stime, "peak": self.peak,
        }  # fmt: skip
        write_whole(self.folder / "exit.json", content)

    def handle_requests(self) -> None:
        """Carry out what the server asked for meanwhile."""
        while (path := self.folder / f"request-{self.handled + 1}.json").exists():
            self.handled += 1
            request = json.loads(path.read_text(encoding="utf-8"))
            action = request["action"]
            if action == "end":
                self.end(request["cause"], request["grace"], request["message"])
            elif action == "signal":
                self.signal_all(request["number"])
            elif action == "suspend" and self.suspended_since is None:
                self.suspended_since = time.monotonic()
                self.signal_all(signal.SIGSTOP)
            elif action == "resume" and self.suspended_since is not None:
                self.suspended += time.monotonic() - self.suspended_since
                self.suspended_since = None
                self.signal_all(signal.SIGCONT)

    def check_limits(self) -> None:
        """Time, memory, and whether any server is still there."""
        if self.kill_at is not None or self.status is not None:
            return
        now = time.monotonic()
        if self.suspended_since is None and self.spec["limit"] is not None:
            left = self.began + self.suspended + self.spec["limit"] - now
            self.signal_early(left)
            if left <= 0:
                self.end_early("timeout", self.spec["grace"], "DUE TO TIME LIMIT")
                return
        if self.spec["memory"] is not None and now - self.looked_at_memory > MEMORY_EVERY:
            self.looked_at_memory = now
            self.keep_within_memory()
        self.check_server()

    def keep_within_memory(self) -> None:
        """Kill the largest process as the kernel does; the script goes on, and has run out of memory."""
        sizes = family(os.getpid())
        total = sum(sizes.values())
        self.peak = max(self.peak, total)
        if total > self.spec["memory"]:
            self.out_of_memory += 1
            with suppress(ProcessLookupError):
                os.kill(max(sizes, key=lambda pid: sizes[pid]), signal.SIGKILL)

    def check_server(self) -> None:
        """A job whose scheduler is gone for good must not stay for ever."""
        try:
            quiet = time.time() - Path(self.spec["alive"]).stat().st_mtime
        except FileNotFoundError:
            quiet = float("inf")
        if quiet > self.spec["orphan_after"]:
            self.end_early("orphaned", 0.0, "DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS")

    def signal_early(self, left: float) -> None:
        """`--signal`, once, that many seconds before the limit."""
        early = self.spec["signal"]
        if early is None or self.signalled or left > early["before"] or self.process is None:
            return
        self.signalled = True
        if early["batch"]:
            os.kill(self.process.pid, early["number"])
        else:  # to the steps: everything but the batch shell
            self.signal_all(early["number"], spare=self.process.pid)

    def end_early(self, cause: str, grace: float, message: str) -> None:
        """End the script by the node's own decision, and report it to the server at once."""
        write_whole(self.folder / "ending.json", {"cause": cause, "at": time.time()})
        self.end(cause, grace, message)

    def end(self, cause: str, grace: float, message: str | None) -> None:
        """TERM now, KILL after `grace` seconds; `message` is why, for the job's stderr (None: no line)."""
        if self.kill_at is not None or self.status is not None:
            return
        self.cause, self.ended = cause, time.time()
        self.kill_at = time.monotonic() + grace
        if message is not None:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
            self.write_error(
                f"slurmstepd: error: *** JOB {self.spec['job_id']} ON {self.spec['node']} "
                f"CANCELLED AT {stamp} {message}".rstrip()
                + " ***"
            )
        if grace > 0:
            self.signal_all(signal.SIGCONT)
            self.signal_all(signal.SIGTERM)
        else:
            self.signal_all(signal.SIGKILL)

    def signal_all(self, number: int, spare: int | None = None) -> None:
        """Send a signal to everything that the script started.

        To the script first, or it may see a child die of the signal and end by itself before its own comes.
        """
        script = self.process.pid if self.process is not None else None
        for pid in sorted(family(os.getpid()), key=lambda pid: pid != script):
            if pid != spare:
                try:
                    os.kill(pid, number)
                except (ProcessLookupError, PermissionError):
                    continue


def _in_child() -> None:
    """The script must not outlive its runner, and gets no blocked signals from it."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Entry point."""
    os.chdir("/")
    run = Run(Path(sys.argv[1]))
    os.environ["TZ"] = run.spec["timezone"]
    time.tzset()
    if not run.claim():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, WAKE])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # a handler, because SIG_IGN would be inherited by the script
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    run.launch()
    if run.status is None:
        run.watch()


if __name__ == "__main__":
    main()
