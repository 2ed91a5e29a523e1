"""The list of what some tests need beyond Python 3.11, make and git.

A test names its needs, `@pytest.mark.needs("postgresql")`, and is skipped, with what to do, where one is
missing.
As a program, for a Python 3.11 without anything:

    python3.11 tests/support/needs.py                  # the list
    python3.11 tests/support/needs.py install curl jq  # Debian's packages, where they are missing; as root
    python3.11 tests/support/needs.py install          # of all but Slurm, which make slurm-test installs
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CDTOOLS_PYTHON = REPOSITORY / ".venv-cdtools" / "bin" / "python"
READERS_PYTHON = REPOSITORY / ".venv-readers" / "bin" / "python"
UV_PROGRAM = REPOSITORY / ".venv" / "bin" / "uv"
REAL_SCAN = REPOSITORY.parent / "shared" / "data" / "PETRAIII_P25_Near_Field_Ptycho.cxi"
POLICY = Path("/usr/sbin/policy-rc.d")
CANNOT_INSTALL = 3  # exit code


@dataclass(frozen=True)
class Need:
    """Something that a machine has or has not.

    :param why: what is tested with it.
    :param here: tells whether this machine has it.
    :param packages: Debian's.
    :param otherwise: how to get it when it is not a package.
    """

    why: str
    here: Callable[[], bool]
    packages: tuple[str, ...] = ()
    otherwise: str = ""

    @property
    def remedy(self) -> str:
        """What to do where it is missing."""
        return f"apt-get install {' '.join(self.packages)}" if self.packages else self.otherwise


def commands(*names: str) -> Callable[[], bool]:
    """Whether all of these are on the PATH."""
    return lambda: all(shutil.which(name) for name in names)


def succeeds(*command: str) -> bool:
    """Whether a command is there and ends with 0."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def python_3_8() -> str | None:
    """An interpreter of that version; pyenv puts one on the PATH that may refuse to start."""
    candidates = ["python3.8", *map(str, Path.home().glob(".pyenv/versions/3.8*/bin/python3.8"))]
    return next((python for python in candidates if succeeds(python, "--version")), None)


def postgresql() -> bool:
    """Whether there is a server, which Debian keeps off the PATH."""
    return any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb") is not None


def control_groups() -> bool:
    """Whether the test cluster has them, as NERSC; without, Slurm ends jobs in another way."""
    cluster = os.environ.get("SLURM_TEST_CLUSTER")
    return cluster is None or "task/cgroup" in Path(os.environ["SLURM_CONF"]).read_text()


SLURM = ("slurmctld", "slurmd", "slurmdbd", "sacctmgr", "munged", "mariadbd", "mariadb-install-db")
SLURM_PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server-core", "mariadb-client-core")

NEEDS = {
    "curl": Need("the README's REST examples", commands("curl"), ("curl",)),
    "jq": Need("the README's REST examples", commands("jq"), ("jq",)),
    "postgresql": Need("Airflow on PostgreSQL, and its upgrade", postgresql, ("postgresql",)),
    "docker-compose": Need("make compose-config", commands("docker-compose"), ("docker-compose",)),
    "chromium": Need("a browser", commands("chromium"), ("chromium", "fonts-dejavu-core", "libatomic1")),
    "prometheus": Need("alert rules and the dashboard", commands("prometheus", "promtool"), ("prometheus",)),
    "slurm": Need("make slurm-test", commands(*SLURM), SLURM_PACKAGES),
    "cdtools": Need("reconstruction with CDTools", CDTOOLS_PYTHON.exists, otherwise="make cdtools"),
    "readers": Need(
        "results and stacks in ptychodus and MANTiS", READERS_PYTHON.exists, otherwise="make readers"
    ),
    "python3.8": Need(
        "the client on its oldest Python", lambda: python_3_8() is not None, otherwise="pyenv install 3.8"
    ),
    "real scan": Need("a measured scan", REAL_SCAN.exists, otherwise=f"to be put at {REAL_SCAN}"),
    "celery": Need(
        "the Compose stack's executor for Celery",
        lambda: importlib.util.find_spec("celery") is not None,
        otherwise=".venv/bin/pip install -r requirements-celery.txt -c constraints.txt",
    ),
    "docker": Need("make compose-test", lambda: succeeds("docker", "info"), otherwise="start its engine"),
    "control groups": Need(
        "Slurm's limits", control_groups, otherwise="a kernel with version 1 of them in /sys/fs/cgroup"
    ),
    "uv": Need("what make installs with", UV_PROGRAM.exists, otherwise="make clean test, where PyPI has it"),
    "root": Need(
        "make fresh, and making devices", lambda: os.getuid() == 0, otherwise="run the tests as root"
    ),
}


def message(name: str) -> str:
    """What is said where it is missing."""
    return f"{name} is missing here (tests/support/needs.py): {NEEDS[name].remedy}"


def install(names: list[str]) -> int:
    """Install what is missing. The packages' services stay off: tests start servers of their own."""
    packages = [package for name in names if not NEEDS[name].here() for package in NEEDS[name].packages]
    if not packages:
        return 0
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        print(f"Only root can install {' '.join(packages)}, and with apt-get.", file=sys.stderr)
        return CANNOT_INSTALL
    print(f"Installing {' '.join(packages)}", flush=True)
    keep_off = not POLICY.exists()
    if keep_off:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        for words in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", *words],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode:
                print(f"apt-get {' '.join(words)}:\n{done.stdout}", file=sys.stderr)
                return CANNOT_INSTALL
    finally:
        if keep_off:
            POLICY.unlink()
    return 0


def main() -> int:
    """List, or install."""
    words = sys.argv[1:]
    if words[:1] == ["install"] and set(words[1:]) <= set(NEEDS):
        return install(words[1:] or [name for name in NEEDS if name != "slurm"])
    if words:
        print(f"usage: needs.py [install [NEED ...]], of {', '.join(NEEDS)}", file=sys.stderr)
        return 2
    for name, need in NEEDS.items():
        print(f"{name:15} {'is here' if need.here() else f'is missing: {need.remedy}'} (for {need.why})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
