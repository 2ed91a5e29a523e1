"""The two scripts as commands: arguments, quoting, errors, where results go, signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dev.demo.compare import compare_with_truth
from reconstruction import cdtools_engine, program, ptychocam
from reconstruction.cdtools_engine import NAMES, Parameters
from reconstruction.program import UsageError
from reconstruction.solver import Options
from standin.synthetic_scan import SyntheticScan
from support.needs import REAL_SCAN

TABLE = [  # the arguments after the file, in the order that the beamline's flow passes them
    "run_split_reconstructions",
    "n_modes",
    "oversampling_factor",
    "propagation_distance",
    "simulate_probe_translation",
    "n_init_rounds",
    "n_init_iter",
    "n_final_iter",
    "translation_randomization",
    "probe_initialization",
    "init_background",
    "probe_support_radius",
]
DEFAULTS = ["False", "1", "1", "5e-05", "True", "1", "50", "50", "0", "none", "False", "none"]


def test_ptychocams_options() -> None:
    assert ptychocam.parse(["a.cxi"]) == (Options(iterations=500), Path("a.cxi"))
    everything = ["-i", "7", "-r", "2", "-T", "3", "-M", "--", "-a.cxi"]
    options, path = ptychocam.parse(everything)
    assert options == Options(iterations=7, period_illu_refine=2, period_bg_refine=3, use_illu_mask=True)
    assert path == Path("-a.cxi")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one file is wanted"),
        (["a.cxi", "b.cxi"], "exactly one file is wanted"),
        ([""], "exactly one file is wanted"),
        (["-i", "0", "a.cxi"], "-i is '0'; it takes a whole number from 1 to 100000"),
        (["-i", "-5", "a.cxi"], "-i is '-5'; it takes a whole number"),
        (["-i", "1e3", "a.cxi"], "-i is '1e3'"),
        (["-i", "\u0665", "a.cxi"], "it takes a whole number"),
        (["-i", "9" * 5000, "a.cxi"], "it takes a whole number"),
        (["-r", "x", "a.cxi"], "-r is 'x'; it takes a whole number from 0"),
        (["-T", "2.5", "a.cxi"], "-T is '2.5'"),
        (["-x", "a.cxi"], "option -x not recognized"),
        (["a.cxi", "-M"], "exactly one file is wanted"),
        (["-i"], "option -i requires argument"),
    ],
)
def test_wrong_options_of_ptychocam(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ptychocam.parse(arguments)
    assert message in str(caught.value)


def test_cdtools_arguments_are_in_the_tables_order() -> None:
    assert list(NAMES) == TABLE == [field.name for field in fields(Parameters)]
    assert cdtools_engine.parse(["a.cxi", *DEFAULTS]) == (Parameters(), Path("a.cxi"))
    assert cdtools_engine.parse(["a.cxi"]) == (Parameters(), Path("a.cxi"))
    given_values = ["true", "2", "3", "-1e-6", "false", "4", "5", "6", "1.5", "earlier.cxi", "TRUE", "20"]
    assert cdtools_engine.parse(["a.cxi", *given_values])[0] == Parameters(
        run_split_reconstructions=True,
        n_modes=2,
        oversampling_factor=3,
        propagation_distance=-1e-6,
        simulate_probe_translation=False,
        n_init_rounds=4,
        n_init_iter=5,
        n_final_iter=6,
        translation_randomization=1.5,
        probe_initialization="earlier.cxi",
        init_background=True,
        probe_support_radius=20.0,
    )


@pytest.mark.parametrize("value", ["", "nan", "inf", "-99", "1e99", "x", "$(id)", "1\n2", "true "])
@pytest.mark.parametrize("name", [n for n in TABLE if n != "probe_initialization"])
def test_a_wrong_value_names_its_argument(name: str, value: str) -> None:
    values = dict(zip(TABLE, DEFAULTS, strict=True)) | {name: value}
    allowed = value == "true " and name in (
        "run_split_reconstructions",
        "simulate_probe_translation",
        "init_background",
    )
    if allowed or (value == "" and name in ("propagation_distance", "probe_support_radius")):
        cdtools_engine.parse(["a.cxi", *values.values()])
        return
    with pytest.raises(UsageError, match=f"^{name} is "):
        cdtools_engine.parse(["a.cxi", *values.values()])


def test_the_number_of_arguments_is_checked() -> None:
    for arguments in ([], [""], ["a.cxi", *DEFAULTS[:-1]], ["a.cxi", *DEFAULTS, "more"]):
        with pytest.raises(UsageError, match="all 12 arguments or none"):
            cdtools_engine.parse(arguments)
    nothing = dict(zip(TABLE, DEFAULTS, strict=True)) | {"n_init_iter": "0", "n_final_iter": "0"}
    with pytest.raises(UsageError, match="ask for no iteration at all"):
        cdtools_engine.parse(["a.cxi", *nothing.values()])
    follows = dict(zip(TABLE, DEFAULTS, strict=True)) | {"propagation_distance": "none", "n_init_rounds": "0"}
    assert cdtools_engine.parse(["a.cxi", *follows.values()])[0] == Parameters(
        propagation_distance=None, n_init_rounds=0
    )


@pytest.fixture(scope="session")
def echoing(tmp_path_factory: pytest.TempPathFactory, install: Callable[..., Any]) -> Path:
    """An installation whose interpreter says which arguments it got, with NULs between."""
    folder = tmp_path_factory.mktemp("echoing")
    echo = folder / "py thon"
    echo.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"\n")
    echo.chmod(0o755)
    prefix = folder / "so'ft $(ware)"
    assert install(prefix, echo, "--cdtools-python", echo).returncode == 0
    return prefix


# Anything that a file name or an argument can hold: not NUL, and no lone surrogates.
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(
    arguments=st.lists(
        words | st.sampled_from(["$(touch x)", "`id`", "'", '"', "\n", "a b", "*", "~", "-n", "\\"])
    )
)
@settings(max_examples=40)
@pytest.mark.parametrize(("script", "module"), [("ptychocam", "ptychocam"), ("cdtools", "cdtools_engine")])
def test_the_scripts_pass_every_argument_as_it_is(
    echoing: Path, script: str, module: str, arguments: list[str]
) -> None:
    done = subprocess.run(
        [echoing / f"{script}_reconstruction.sh", *arguments], capture_output=True, check=True
    )
    got = done.stdout.decode().split("\0")[:-1]
    assert got == ["-P", "-m", f"reconstruction.{module}", *arguments]
    assert done.stderr == b""


NASTY = 'it\'s a "scan"\n$(touch pwned) `touch pwned` ; touch pwned & *.cxi'


def test_a_nasty_file_name_is_a_file_name(
    programs: Any, synthetic: SyntheticScan, tmp_path: Path, figures: Callable[[Path], dict[str, Any]]
) -> None:
    path = tmp_path / NASTY
    shutil.copyfile(synthetic.cxi, path)
    done = programs.run("ptychocam", *programs.QUICK, path)
    assert done.returncode == 0, done.stderr
    prefix = path.with_name(NASTY.removesuffix(".cxi") + "_ptychocam")
    assert figures(prefix)["scan"] == str(path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [
        ".cxi",
        ".cxi",
        ".gz",
        ".gz",
        ".h5",
        ".json",
        ".png",
    ]
    assert not list(tmp_path.rglob("pwned"))


def test_ptychocam_from_the_command_line(
    programs: Any, synthetic: SyntheticScan, tmp_path: Path, figures: Callable[[Path], dict[str, Any]]
) -> None:
    output = tmp_path / "made" / "for me" / "result"
    done = programs.run("ptychocam", "-i", "40", "-r", "1", "-T", "1", "-M", synthetic.cxi, output=output)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == f"{synthetic.cxi}: 64 frames of (64, 64), 1000.0 eV"
    assert sum(line.startswith("iteration ") for line in lines) == 11
    assert any(line.startswith("iteration 40 of 40, error 0.0") for line in lines)
    made = figures(output)
    assert made["parameters"].pop("computed_with").startswith(f"NumPy {np.__version__}, CPU, threads: ")
    assert made["parameters"] == {
        "iterations": 40,
        "period_illu_refine": 1,
        "period_bg_refine": 1,
        "use_illu_mask": True,
        "positions": "probe",
        "expected_defocus_m": pytest.approx(15e-6 / 0.7, rel=1e-4),
        "first_illumination": "the illumination in the file, conjugated and turned by 180 degrees",
        "first_illuminations_tried": made["parameters"]["first_illuminations_tried"],
    }
    assert made["iterations"] == len(made["errors"]) == 40
    assert made["resolution_m"] is None
    assert compare_with_truth(output.with_name("result.cxi"), synthetic.truth).correlation > 0.97
    assert 1000 < output.with_name("result.png").stat().st_size < 300_000


@pytest.mark.parametrize(
    ("script", "arguments", "usage"),
    [
        ("ptychocam", ["-q", "x.cxi"], ptychocam.USAGE),
        ("ptychocam", [], ptychocam.USAGE),
        pytest.param("cdtools", ["x.cxi", "true"], cdtools_engine.USAGE, marks=pytest.mark.needs("cdtools")),
    ],
)
def test_wrong_usage_is_told_on_stderr(programs: Any, script: str, arguments: list[str], usage: str) -> None:
    done = programs.run(script, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == f"usage: {usage}"
    assert "Traceback" not in done.stderr


def test_a_failure_is_one_line_and_leaves_no_sign_of_success(
    programs: Any, synthetic: SyntheticScan, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert programs.run("ptychocam", *programs.QUICK, synthetic.cxi, output=output).returncode == 0
    assert (tmp_path / "out.json").exists()
    missing = tmp_path / "missing.cxi"
    done = programs.run("ptychocam", missing, output=output)
    assert done.returncode == 1
    assert done.stderr == f"ptychocam: error: {missing}: there is no such file.\n"
    assert not (tmp_path / "out.json").exists()  # that of the earlier run is gone


def test_where_results_cannot_go(programs: Any, synthetic: SyntheticScan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = programs.run("ptychocam", synthetic.cxi, output=tmp_path / "file" / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("ptychocam: error: ")
    assert str(tmp_path / "file") in done.stderr
    assert "iteration" not in done.stdout
    slash = programs.run("ptychocam", synthetic.cxi, COSMIC_OUTPUT=f"{tmp_path}/")
    assert slash.returncode == 2
    assert "COSMIC_OUTPUT is" in slash.stderr


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in", "CUDA error: out of memory"),
        (
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.80 GiB. If",
            "CUDA out of memory. Tried to allocate 20.00 MiB",
        ),
        ("cuFFT error: CUFFT_ALLOC_FAILED", "cuFFT error: CUFFT_ALLOC_FAILED"),
        (
            "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`. "
            "If you keep seeing this error, you may use `torch.backends.cuda.preferred_linalg_library()`",
            "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
        ),
    ],
)
def test_a_gpu_without_memory_left_is_one_line(
    message: str, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an H100 and an H200 whose memory another process held said it; no machine of the tests has a GPU."""

    def work() -> None:
        raise RuntimeError(message)

    assert program.run("ptychocam", "", work) == 1
    assert capsys.readouterr().err == (
        f"ptychocam: error: not enough memory of the GPU ({cause}); ask for a node with more, or fewer "
        "frames.\n"
    )


def test_a_defect_keeps_its_traceback() -> None:
    def work() -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        program.run("ptychocam", "", work)


def test_termination_while_a_library_is_imported_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """As pybind11 has it: what its module raises while it is loaded becomes an ImportError."""

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit as error:
            raise ImportError("initialization failed") from error

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert program.run("cdtools", "", work) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_one_line_too(programs: Any, synthetic: SyntheticScan, tmp_path: Path) -> None:
    """HDF5 crashes when it cannot write; so the files are made in memory first."""
    script = programs.prefix / "ptychocam_reconstruction.sh"
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", script, *programs.QUICK, synthetic.cxi]
    environment = {**os.environ, "COSMIC_OUTPUT": str(tmp_path / "out")}
    done = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == f"ptychocam: error: [Errno 27] File too large: '{tmp_path / 'out.cxi'}'\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("real scan")
def test_ptychocam_declines_a_near_field_scan(programs: Any, tmp_path: Path) -> None:
    done = programs.run("ptychocam", REAL_SCAN, output=tmp_path / "out")
    assert done.returncode == 1
    assert "a near-field scan; this program is for far-field scans, use CDTools" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_run_leaves_nothing_that_looks_like_a_result(
    programs: Any, synthetic: SyntheticScan, tmp_path: Path, number: int, code: int
) -> None:
    script = programs.prefix / "ptychocam_reconstruction.sh"
    environment = {**os.environ, "COSMIC_OUTPUT": str(tmp_path / "out")}
    with subprocess.Popen(
        [script, "-i", "100000", synthetic.cxi], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("iteration 1 of"):
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=30) == code
    assert list(tmp_path.iterdir()) == []
