"""The scripts with an image: what NERSC's runtimes are asked for, and that nothing is lost on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from standin.synthetic_scan import SyntheticScan
from support.containers import REPOSITORY, Runtimes

Figures = Callable[[Path], dict[str, Any]]
IMAGE = "registry/cosmic-reconstruction:1"
SCRIPTS = ("ptychocam_reconstruction.sh", "cdtools_reconstruction.sh", "stack.sh")
# Without arguments, the usage; otherwise the arguments, with NULs between.
ECHO = "#!/bin/bash\n(($#)) || { echo usage: echo; exit 2; }\nprintf '%s\\0' \"$@\"\n"
NASTY = 'it\'s "so", $(touch pwned): `touch pwned`;\n& *'


class Outside:
    """An installation that starts an image, which is another installation on this machine."""

    def __init__(self, folder: Path, runtime: str, image: Path) -> None:
        self.runtime = runtime
        self.runtimes = Runtimes(folder / "bin", str(image))
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("COSMIC_", "SLURM_"))}
        self.environment |= self.runtimes.environment | {"OMP_NUM_THREADS": "1"}
        self.prefix = folder / "out side"

    def install(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [REPOSITORY / "include" / "reconstruction" / "install", self.prefix, *options],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def run(
        self,
        script: str,
        *arguments: str | Path,
        cwd: Path | None = None,
        extra: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.prefix / script, *arguments],
            env=self.environment | (extra or {}),
            cwd=cwd,
            capture_output=True,
            check=False,
        )


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose scripts print their arguments."""
    image = tmp_path_factory.mktemp("image")
    for script in SCRIPTS:
        (image / script).write_text(ECHO)
        (image / script).chmod(0o755)
    return image


@pytest.fixture(scope="session", params=["podman-hpc", "shifter"])
def echoing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, echo: Path) -> Outside:
    """Scripts that start it, for each runtime."""
    outside = Outside(tmp_path_factory.mktemp(request.param), request.param, echo)
    done = outside.install("--image", IMAGE, "--runtime", request.param)
    assert done.returncode == 0, done.stderr
    return outside


@pytest.fixture(scope="session", params=["podman-hpc", "shifter"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, programs: Any) -> Outside:
    """Scripts that start the programs, of which CDTools may be missing: `install` would see that."""
    outside = Outside(tmp_path_factory.mktemp(request.param), request.param, programs.prefix)
    shutil.copytree(programs.prefix, outside.prefix, symlinks=True)
    (outside.prefix / "current" / "interpreters.sh").write_text(
        f"COSMIC_IMAGE={IMAGE} COSMIC_RUNTIME={request.param}\n"
    )
    return outside


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
odd = [
    "$(touch x)",
    "`id`",
    "'",
    '"',
    "\n",
    "a b",
    "*",
    "--",
    "--help",
    "--gpu",
    "-h",
    "-e",
    "\\",
    "./x",
    "/x,y",
]


@given(arguments=st.lists(words | st.sampled_from(odd), min_size=1))
@example(arguments=["-i", "5", "-M", "--", "--help"])
@settings(max_examples=6)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_argument_arrives_as_it_is(echoing: Outside, script: str, arguments: list[str]) -> None:
    done = echoing.run(script, *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().split("\0")[:-1] == arguments


def test_what_podman_is_asked_for(echoing: Outside, tmp_path: Path) -> None:
    if echoing.runtime != "podman-hpc":
        done = echoing.run("cdtools_reconstruction.sh", "/s/x.cxi")
        assert echoing.runtimes.log.read_text().split()[:2] == [f"--image={IMAGE}", "--module=gpu"]
        echoing.run("stack.sh", "/s/x")
        assert echoing.runtimes.log.read_text().split()[1] == "/opt/cosmic/stack.sh"
        return
    scan, earlier, made = tmp_path / "scans" / NASTY, tmp_path / "earlier", tmp_path / "made" / "here"
    for folder in (scan, earlier):
        folder.mkdir(parents=True)
    (scan / "link.cxi").symlink_to(earlier / "x.cxi")
    environment = {"COSMIC_OUTPUT": f"{made}/out", "COSMIC_POSITIONS": "two\nlines", "SLURM_JOB_ID": "7"}
    done = echoing.run(
        "cdtools_reconstruction.sh",
        scan / "link.cxi",
        "5",
        earlier / "y.h5",
        extra=environment | {"SECRET": "x"},
    )
    assert done.returncode == 0, done.stderr
    call = echoing.runtimes.call()
    assert call.image == IMAGE
    assert sorted(call.folders) == sorted(map(str, (scan, earlier, made)))
    assert call.workdir == "/"
    passed = {k: v for k, v in call.environment.items() if k.startswith(("COSMIC", "SLURM", "OMP", "ENABLE"))}
    assert passed == environment | {"OMP_NUM_THREADS": "1", "ENABLE_GPU": "1"}
    assert "SECRET" not in call.environment
    ours = {"--rm", "--pull=never", "--group-add=keep-groups", "--network=host", "--ipc=host"}
    assert ours <= set(call.options)
    echoing.run("stack.sh", f"{earlier}/NS_230216033")
    assert echoing.runtimes.call().folders == [str(earlier)]
    assert "ENABLE_GPU" not in echoing.runtimes.call().environment


def test_paths_from_the_working_folder(echoing: Outside, tmp_path: Path) -> None:
    if echoing.runtime == "podman-hpc":
        (tmp_path / "-a.cxi").touch()
        (tmp_path / "sub").mkdir()
        echoing.run("ptychocam_reconstruction.sh", "-i", "5", "--", "-a.cxi", cwd=tmp_path)
        assert (echoing.runtimes.call().workdir, echoing.runtimes.call().folders) == (
            str(tmp_path),
            [str(tmp_path)],
        )
        echoing.run("ptychocam_reconstruction.sh", "sub/../sub/b.cxi", cwd=tmp_path)
        assert sorted(echoing.runtimes.call().folders) == [str(tmp_path), str(tmp_path / "sub")]


def test_a_scan_is_reconstructed(
    real: Outside, programs: Any, synthetic: SyntheticScan, tmp_path: Path, figures: Figures
) -> None:
    folder = tmp_path / NASTY
    folder.mkdir()
    scan = folder / "a 'scan'.cxi"
    shutil.copyfile(synthetic.cxi, scan)
    output = tmp_path / "made" / "for me" / "result"
    script = "ptychocam_reconstruction.sh"
    done = real.run(script, *programs.QUICK, scan, extra={"COSMIC_OUTPUT": str(output)})
    assert done.returncode == 0, done.stderr
    assert figures(output)["scan"] == str(scan)
    assert sorted(p.suffix for p in output.parent.iterdir()) == [
        ".cxi",
        ".gz",
        ".gz",
        ".h5",
        ".json",
        ".png",
    ]
    assert real.run(script, *programs.QUICK, scan.name, cwd=folder).returncode == 0
    assert figures(folder / "a 'scan'_ptychocam")["iterations"] == 4
    assert not list(tmp_path.rglob("pwned"))


def test_the_programs_exit_code_and_words(real: Outside, tmp_path: Path) -> None:
    done = real.run("ptychocam_reconstruction.sh", tmp_path / "x.cxi")
    assert done.returncode == 1
    assert done.stderr.decode() == f"ptychocam: error: {tmp_path}/x.cxi: there is no such file.\n"
    assert real.run("ptychocam_reconstruction.sh", "-q").returncode == 2


def test_slurms_signal_reaches_the_program(real: Outside, synthetic: SyntheticScan, tmp_path: Path) -> None:
    with subprocess.Popen(
        [real.prefix / "ptychocam_reconstruction.sh", "-i", "100000", synthetic.cxi],
        env=real.environment | {"COSMIC_OUTPUT": str(tmp_path / "out")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("iteration 1 of"):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--image"],
        ["--image", ""],
        ["--image", "-x"],
        ["--image", "a b"],
        ["--image", "x", "--runtime"],
        ["--image", "x", "--runtime", "docker"],
        ["python", "--image", "x"],
    ],
)
def test_wrong_options_change_nothing(echo: Path, tmp_path: Path, options: list[str]) -> None:
    outside = Outside(tmp_path, "podman-hpc", echo)
    done = outside.install(*options)
    assert done.returncode == 2
    assert "install PREFIX --image NAME [--runtime podman-hpc|shifter]" in done.stderr
    assert not outside.prefix.exists()


@pytest.mark.parametrize("runtime", ["podman-hpc", "shifter"])
def test_an_image_that_does_not_answer_is_not_installed(tmp_path: Path, runtime: str) -> None:
    outside = Outside(tmp_path, runtime, tmp_path / "nowhere")
    done = outside.install("--image", "x", "--runtime", runtime)
    assert done.returncode == 1
    assert f"install: error: {runtime} cannot run ptychocam of the image x: " in done.stderr
    outside.environment["PATH"] = os.defpath
    done = outside.install("--image", "x", "--runtime", runtime)
    assert (done.returncode, done.stderr) == (1, f"install: error: {runtime} is not a program.\n")
    assert not outside.prefix.exists()


def test_from_an_interpreter_to_an_image_and_back(echo: Path, tmp_path: Path) -> None:
    outside = Outside(tmp_path, "podman-hpc", echo)
    assert outside.install(sys.executable).returncode == 0
    assert outside.run("stack.sh").returncode == 2
    assert not outside.runtimes.log.exists()
    assert outside.install("--image", IMAGE).returncode == 0  # podman-hpc, unless told otherwise
    assert outside.run("stack.sh", "x").stdout == b"x\0"
    assert outside.install(sys.executable).returncode == 0
    assert b"usage: " in outside.run("stack.sh").stderr
