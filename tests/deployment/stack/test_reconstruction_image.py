"""The reconstruction image, built by Docker and run by the installed scripts through podman-hpc."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dev.demo.compare import compare_with_truth
from standin.synthetic_scan import Layout, Optics, SyntheticScan, make_scan
from support.containers import REPOSITORY, Runtimes

pytestmark = pytest.mark.needs("docker")
IMAGE = "cosmic-reconstruction"
NASTY = 'it\'s "so", $(id):\n`id`'
PTYCHOCAM = ["-i", "60", "-r", "1", "-T", "1", "-M"]
CDTOOLS = ["False", "1", "1", "none", "True", "0", "20", "40", "0", "none", "False", "none"]


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


class Nersc:
    """The scripts, installed with the image; podman-hpc runs it with Docker."""

    def __init__(self, folder: Path) -> None:
        self.software = folder / "soft ware"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("COSMIC_")}
        runtimes = Runtimes(folder / "bin", "docker")
        self.environment = {**kept, **runtimes.environment, "OMP_NUM_THREADS": "2"}
        install = str(REPOSITORY / "include" / "reconstruction" / "install")
        done = self.run(install, str(self.software), "--image", IMAGE)
        assert done.returncode == 0, done.stderr

    def script(self, engine: str) -> str:
        return str(self.software / f"{engine}_reconstruction.sh")

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def nersc(tmp_path_factory: pytest.TempPathFactory) -> Nersc:
    """The image, built, and the installation that starts it."""
    docker("build", "-q", "-t", IMAGE, "-f", "include/reconstruction/Containerfile", str(REPOSITORY))
    return Nersc(tmp_path_factory.mktemp("nersc"))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> SyntheticScan:
    """A small scan in a folder with a name of all sorts."""
    folder = tmp_path_factory.mktemp("scan") / NASTY
    folder.mkdir()
    optics = Optics(frame=64, photons=2e6)
    path = folder / "NS_230216033_ccdframes_0_0.cxi"
    return make_scan(path, n_frames=64, step=130e-9, seed=3, optics=optics, layout=Layout())


@pytest.mark.timeout(1800)  # torch is large
@pytest.mark.parametrize("engine", ["ptychocam", "cdtools"])
def test_a_scan_is_reconstructed_in_the_image(
    nersc: Nersc, scan: SyntheticScan, tmp_path: Path, engine: str
) -> None:
    output = tmp_path / "made" / "result"
    file = str(scan.cxi)
    arguments = {"ptychocam": [*PTYCHOCAM, file], "cdtools": [file, *CDTOOLS]}[engine]
    done = nersc.run(nersc.script(engine), *arguments, COSMIC_OUTPUT=str(output))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    made = {path.suffix: path for path in output.parent.iterdir()}
    assert {".cxi", ".h5", ".png", ".json"} <= set(made)
    assert {path.stat().st_uid for path in made.values()} == {os.getuid()}
    figures: dict[str, Any] = json.loads(made[".json"].read_text())
    assert figures["scan"] == file
    assert compare_with_truth(made[".cxi"], scan.truth).correlation > 0.9


def test_any_user_may_run_it(nersc: Nersc, scan: SyntheticScan, tmp_path: Path) -> None:
    user = 41234  # nobody's, in the image
    shutil.copyfile(scan.cxi, tmp_path / "x.cxi")
    os.chown(tmp_path, user, user)
    mount = f"--mount=type=bind,source={tmp_path},target={tmp_path}"
    script = "/opt/cosmic/ptychocam_reconstruction.sh"
    docker("run", "--rm", f"--user={user}:{user}", mount, IMAGE, script, "-i", "2", str(tmp_path / "x.cxi"))
    assert (tmp_path / "x_ptychocam.cxi").stat().st_uid == user


def test_the_exit_code_and_slurms_signal(nersc: Nersc, scan: SyntheticScan, tmp_path: Path) -> None:
    missing = tmp_path / "x.cxi"
    done = nersc.run(nersc.script("ptychocam"), str(missing))
    assert (done.returncode, done.stderr) == (1, f"ptychocam: error: {missing}: there is no such file.\n")
    with subprocess.Popen(
        [nersc.script("ptychocam"), "-i", "100000", scan.cxi],
        env={**nersc.environment, "COSMIC_OUTPUT": str(tmp_path / "out")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("iteration 1 of"):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert list(tmp_path.iterdir()) == []
    assert docker("ps", "-q", "--filter", f"ancestor={IMAGE}") == ""
