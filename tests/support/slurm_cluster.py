"""A Slurm cluster of one node with accounting, in a folder of its own, for as long as a command runs.

    python -m support.slurm_cluster COMMAND [ARGUMENT ...]

Starts munged, MariaDB, slurmdbd, slurmctld and slurmd (Debian's, see support/needs.py), runs the command with
SLURM_CONF in its environment, and ends all of it, whatever becomes of the command. Must be root, because
slurmd starts jobs as the users who submit them. Nothing outside of the folder is written, but the control
groups of the node, which go with it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from string import Template

from dev.local_airflow.stack import free_port
from standin.testing import until

TEMPLATES = Path(__file__).resolve().parents[1] / "slurm"
SLOTS = 4
CGROUPS = Path("/sys/fs/cgroup")
QOS = "debug gpu_debug regular regular_1 gpu_regular realtime preempt gpu_preempt".split()  # noqa: SIM905
SHORT, LONG, YIELDING = "debug,gpu_debug", "regular,regular_1,gpu_regular,realtime", "preempt,gpu_preempt"
ACCOUNTING = (  # of sacctmgr, in this order; limits are those that Perlmutter's users know
    ("add", "cluster", "perlmutter"),
    ("add", "account", "als_g"),
    ("add", "qos", ",".join(QOS), "maxwall=48:00:00"),
    ("modify", "qos", ",".join(QOS), "set", "flags=DenyOnLimit", "priority=69"),
    (
        "modify",
        "qos",
        SHORT,
        "set",
        "priority=70",
        "maxwall=00:30:00",
        "maxjobsperuser=2",
        "maxsubmitjobsperuser=5",
    ),
    ("modify", "qos", LONG, "set", f"preempt={YIELDING}"),
    ("modify", "qos", "realtime", "set", "priority=90"),
    ("modify", "qos", YIELDING, "set", "priority=65"),
    ("add", "user", "root", "account=als_g"),
    ("modify", "user", "root", "set", f"qos={','.join(QOS)}", "defaultqos=debug", "defaultaccount=als_g"),
)
PATIENCE = 60.0


def enforces_memory() -> bool:
    """Whether the kernel's control groups (version 1) can be had to bound a job's memory."""
    return all(os.access(CGROUPS / name, os.W_OK) for name in ("memory", "freezer", "cpuset", "devices"))


class SlurmCluster:
    """The cluster in `folder`: whoever has the folder can also stop and start single daemons.

    :param bound: daemons that it starts end when this process does, however that ends.
    """

    def __init__(self, folder: Path, *, bound: bool = False) -> None:
        self.folder = folder
        self._bound = bound
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"), "MYSQL_UNIX_PORT": str(folder / "mariadb.socket"),
            "SLURM_TEST_CLUSTER": str(folder),
            "PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin",
        }  # fmt: skip

    @property
    def node(self) -> str:
        """Name of the node."""
        return (self.folder / "node").read_text()

    def run(self, *command: str) -> str:
        """Output of one of Slurm's commands.

        :raises RuntimeError: it failed; with what it wrote.
        """
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def works(self, *command: str, says: str = "") -> bool:
        """Whether a command succeeds and says that."""
        try:
            return says in self.run(*command)
        except RuntimeError:
            return False

    def configure(self) -> None:
        """Write the configuration; what it needs is in the templates."""
        for name in ("munge", "state", "spool", "gpus"):
            (self.folder / name).mkdir(mode=0o700)
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        node_port = free_port()
        constrained = enforces_memory()
        values = {
            "folder": str(self.folder), "slots": str(SLOTS), "node": f"nid{node_port:06}",
            "node_port": str(node_port), "controller_port": str(free_port()),
            "database_port": str(free_port()),
            "proctrack": "proctrack/cgroup" if constrained else "proctrack/linuxproc",
            "task": "task/cgroup" if constrained else "task/none",
            "memory": "" if constrained else "JobAcctGatherParams=OverMemoryKill",
        }  # fmt: skip
        (self.folder / "node").write_text(values["node"])
        for name in ("slurm.conf", "slurmdbd.conf"):
            (self.folder / name).write_text(Template((TEMPLATES / name).read_text()).substitute(values))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        shutil.copy(TEMPLATES / "job_submit.lua", self.folder)
        for number in range(4):  # a GPU is a file to Slurm; nothing in the tests calculates on them
            (self.folder / "gpus" / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpus/gpu[0-3]\n")
        (self.folder / "cgroup.conf").write_text(
            f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={CGROUPS}\nConstrainRAMSpace=yes\n"
        )

    def command(self, daemon: str) -> list[str]:
        """How a daemon is started; it stays in the foreground."""
        folder = str(self.folder)
        return {
            "munged": [
                "munged", "--foreground", "--force", f"--key-file={folder}/munge/key",
                f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid",
                f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed",
            ],
            "mariadbd": [
                "mariadbd", "--no-defaults", "--user=root", f"--datadir={folder}/mariadb",
                f"--socket={folder}/mariadb.socket", "--skip-networking", f"--pid-file={folder}/mariadb.pid",
                "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=2",
            ],
            "slurmdbd": ["slurmdbd", "-D"],
            "slurmctld": ["slurmctld", "-D"],
            "slurmd": ["slurmd", "-D", "-N", self.node],
        }[daemon]  # fmt: skip

    def start(self, daemon: str) -> None:
        """Start one of the daemons."""
        bound = ["setpriv", "--pdeathsig", "TERM"] if self._bound else []
        command = [*bound, *self.command(daemon)]
        pid = os.posix_spawn(
            shutil.which(command[0], path=self.environment["PATH"]) or command[0], command, self.environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, f"{self.folder}/{daemon}.log",
                 os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,  # Ctrl-C is for the command; the daemons end after it, in order
        )  # fmt: skip
        (self.folder / f"{daemon}.pid").write_text(str(pid))

    def stop(self, daemon: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon that `start` started, here or in another process."""
        with suppress(FileNotFoundError, ProcessLookupError):
            pid = int((self.folder / f"{daemon}.pid").read_text())
            if not _runs(pid, daemon):
                return
            os.kill(pid, number)
            with suppress(TimeoutError):
                until(lambda: not _runs(pid, daemon), 20)
                return
            os.kill(pid, signal.SIGKILL)

    def up(self) -> None:
        """Start everything.

        :raises TimeoutError: a daemon does not come up; its log is in the folder.
        """
        self.configure()
        self.run(
            "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={self.folder}/mariadb",
            "--auth-root-authentication-method=normal", "--skip-test-db",
        )  # fmt: skip
        self.start("munged")
        self.start("mariadbd")
        munge_socket = f"--socket={self.folder}/munge/socket"
        until(lambda: self.works("munge", "-n", munge_socket), PATIENCE)
        until((self.folder / "mariadb.socket").exists, PATIENCE)
        self.start("slurmdbd")
        until(lambda: self.works("sacctmgr", "-n", "show", "cluster"), PATIENCE)
        for arguments in ACCOUNTING:
            self.run("sacctmgr", "-i", *arguments)
        self.start("slurmctld")
        until(lambda: self.works("scontrol", "ping", says=" is UP"), PATIENCE)
        self.start_node()

    def start_node(self) -> None:
        """Start slurmd; returns when the node can run jobs."""
        self.start("slurmd")
        node = ("sinfo", "-h", "-n", self.node, "-o", "%T;")  # a star after the state: it does not respond
        until(lambda: self.works(*node, says="idle;"), PATIENCE)

    def down(self) -> None:
        """End all jobs and all daemons."""
        if not (self.folder / "node").exists():  # nothing was started
            return
        with suppress(RuntimeError, TimeoutError):
            self.run("scontrol", "update", f"NodeName={self.node}", "State=RESUME")
        with suppress(RuntimeError, TimeoutError):
            self.run("scancel", "--user=root")
            until(lambda: self.run("squeue", "-h") == "", 20)
        for daemon in ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.stop(daemon)
        self._remove_cgroups()

    def _remove_cgroups(self) -> None:
        """What slurmd leaves of its control groups; processes in there are jobs' that nothing else ended."""
        for controller in ("freezer", "memory", "cpuset", "devices", "cpuacct", "cpu"):
            top = CGROUPS / controller / f"slurm_{self.node}"
            for folder in sorted((path.parent for path in top.rglob("cgroup.procs")), reverse=True):
                for pid in (folder / "cgroup.procs").read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                with suppress(TimeoutError):
                    until(partial(_removed, folder), 5)


def _removed(group: Path) -> bool:
    """Remove a control group; False while its last processes are going."""
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


def _runs(pid: int, daemon: str) -> bool:
    """Whether that process is that daemon, and lives."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return name == daemon and rest.split()[0] not in ("Z", "X")


@contextmanager
def running() -> Iterator[SlurmCluster]:
    """A cluster in a new folder below the temporary one, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: it holds sockets
    cluster = SlurmCluster(folder, bound=True)
    try:
        cluster.up()
        yield cluster
    except TimeoutError:
        for log in sorted(folder.glob("*.log")):
            print(f"== {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]), file=sys.stderr)
        raise
    finally:
        cluster.down()
        shutil.rmtree(folder)


def main() -> int:
    """Run the command on a cluster; returns its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running() as cluster:
        process = subprocess.Popen(sys.argv[1:], env=cluster.environment)
        try:
            return process.wait()
        except KeyboardInterrupt:  # a terminal's Ctrl-C has told the command, too
            process.terminate()
            process.wait(timeout=PATIENCE)
            return 130


if __name__ == "__main__":
    sys.exit(main())
