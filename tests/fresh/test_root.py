"""`make fresh` where it cannot begin, and where it is stopped; what it is for is run by .ci/run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from standin.testing import until

ROOT_SH = Path(__file__).with_name("root.sh")

HANGS = """#!/bin/sh
for root; do case $root in */root) mkdir -p "$root/proc"; mount -t proc proc "$root/proc" ;; esac; done
touch "$TMPDIR/begun"
exec sleep 1000
"""
FAILS = "#!/bin/sh\necho 'E: Failed getting release file'\nexit 1\n"

# What is started in the background of a script ignores SIGINT, and hands that on.
HEEDS_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""

Fresh = Callable[[str], subprocess.Popen[str]]


def test_somebody_else_than_root_is_refused() -> None:
    """The script comes on standard input: that user may not be able to read this checkout."""
    done = subprocess.run(
        ["bash", "-s", "make test"],
        input=ROOT_SH.read_text(),
        user=65534 if os.getuid() == 0 else None,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "make fresh: only root can make a Debian root and enter it. Run it as root.\n"


@pytest.mark.needs("root")
def test_debootstrap_cannot_be_installed(tmp_path: Path) -> None:
    for name in ("bash", "env", "grep", "dirname", "id"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    done = subprocess.run(
        ["bash", ROOT_SH, "make test"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "make fresh: debootstrap is missing, and there is no apt-get to install it with.\n"
    )


@pytest.fixture
def fresh(tmp_path: Path) -> Fresh:
    """Start it with a debootstrap of the test's own."""
    commands, parent = tmp_path / "bin", tmp_path / "parent"
    commands.mkdir()
    parent.mkdir()

    def start(debootstrap: str) -> subprocess.Popen[str]:
        (commands / "debootstrap").write_text(debootstrap)
        (commands / "debootstrap").chmod(0o755)
        environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "TMPDIR": str(parent)}
        return subprocess.Popen(
            [sys.executable, "-c", HEEDS_SIGINT, "bash", ROOT_SH, "make test"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.mark.needs("root")
def test_debootstraps_own_words_are_shown(fresh: Fresh, tmp_path: Path) -> None:
    process = fresh(FAILS)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "E: Failed getting release file\n" in output
    assert output.splitlines()[-1].startswith("failed after ")
    assert list((tmp_path / "parent").iterdir()) == []


@pytest.mark.needs("root")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_nothing_behind(fresh: Fresh, tmp_path: Path, number: int) -> None:
    """What it ran ends with it; its files are removed by itself, or by the next run where it was killed."""
    parent = tmp_path / "parent"
    process = fresh(HANGS)
    until((parent / "begun").exists)
    (parent / "begun").unlink()
    process.send_signal(number)
    process.communicate()  # until nothing holds its output any more
    assert str(parent) not in Path("/proc/self/mountinfo").read_text()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert [folder.name.partition(".")[0] for folder in parent.iterdir()] == ["cosmic-fresh"]
        fresh(FAILS).communicate()
    else:
        assert process.returncode == 128 + number
    assert list(parent.iterdir()) == []
