"""Upright pictures: whose positions a file holds, which way its beam spreads, how far its focus is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dev.demo.orientation import Orientation, find_orientation
from reconstruction.cdtools_engine import Parameters, Start, begin, decide_geometry
from reconstruction.conventions import (
    DEFOCUS_VARIABLE,
    POSITIONS_VARIABLE,
    Defocus,
    expected_defocus,
    mirrored,
    positions_in_file,
    sample_moves,
    sign_warning,
)
from reconstruction.geometry import Magnification, far_field, measure_magnification
from reconstruction.illumination import first_guesses, from_file, try_out
from reconstruction.result import Run, write_result
from reconstruction.scan import Scan, read_scan
from reconstruction.solver import Options, Solution, Solver
from standin.synthetic_scan import Layout, Optics, SyntheticScan, make_scan
from support.needs import CDTOOLS_PYTHON

PROGRAMS = Path(__file__).resolve().parents[2] / "include" / "reconstruction"
DEFOCUS = 12e-6
TURNED = Orientation(quarter_turns=2, mirrored=False, conjugated=True, correlation=1.0)
UNMEASURED = Magnification(value=0.0, correlation=0.0)
USUAL = ("-i", "60", "-r", "1", "-T", "1", "-M")  # COSMIC's, but for the number of iterations
CDTOOLS = ["false", "1", "1", "1.2e-05", "true", "1", "12", "4", "0", "none", "false", "none"]


OVERSAMPLED = ["false", "1", "2", *CDTOOLS[3:6], "24", "6", *CDTOOLS[8:]]


@pytest.fixture(scope="session")
def cosmic(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SyntheticScan]:
    """A scan of 64 frames of 64 by 64 pixels, 12 um behind the focus, in a file of the given layout."""
    folder, made = tmp_path_factory.mktemp("cosmic"), dict[Layout, SyntheticScan]()

    def make(layout: Layout) -> SyntheticScan:
        if layout not in made:
            path = folder / f"NS_230216{len(made):03}_ccdframes_0_0.cxi"
            optics = Optics(frame=64, defocus=DEFOCUS)
            made[layout] = make_scan(path, n_frames=64, step=110e-9, seed=3, optics=optics, layout=layout)
        return made[layout]

    return make


@dataclass
class Made:
    """What a program left."""

    way: Orientation
    figures: dict[str, Any]

    @property
    def warned(self) -> str:
        return " ".join(self.figures["warnings"])


def made_at(prefix: Path, scan: SyntheticScan) -> Made:
    figures = json.loads(prefix.with_suffix(".json").read_text())
    with h5py.File(prefix.with_suffix(".cxi")) as file:
        assert json.loads(file["entry_1/image_1/process_1/parameters"][()]) == figures["parameters"]
    return Made(find_orientation(prefix.with_suffix(".cxi"), scan.truth), figures)


def environment(output: Path, read: str | None) -> dict[str, str]:
    """`read` None: as the program reads positions by itself."""
    return {"COSMIC_OUTPUT": str(output), POSITIONS_VARIABLE: read or ""}


@pytest.fixture
def ptychocam(
    programs: Any, cosmic: Callable[..., SyntheticScan], tmp_path: Path
) -> Callable[..., tuple[Made, str]]:
    """Run ptychocam on a file of some layout; also what it printed."""

    def run(layout: Layout, read: str | None) -> tuple[Made, str]:
        scan = cosmic(layout)
        done = programs.run("ptychocam", *USUAL, scan.cxi, **environment(tmp_path / "out", read))
        assert done.returncode == 0, done.stderr
        return made_at(tmp_path / "out", scan), done.stdout

    return run


@pytest.fixture(scope="session")
def cdtools(
    cosmic: Callable[..., SyntheticScan], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str | None], Made]:
    """What CDTools made of files that hold either's positions, read as either's."""
    folder = tmp_path_factory.mktemp("cdtools")
    cases: list[tuple[Any, str | None]] = [
        ("probe", None),
        ("sample", "sample"),
        ("probe", "sample"),
        ("sample", None),
        ("probe", "oversampled"),
    ]
    scans = [cosmic(Layout(translations_of=held, guess_defocus=DEFOCUS)) for held, _ in cases]
    outputs = [folder / f"{held}_{read}" for held, read in cases]
    runs = [
        (environment(output, read), [str(scan.cxi), *CDTOOLS])
        for (_, read), scan, output in zip(cases, scans, outputs, strict=True)
    ]
    runs[-1] = (environment(outputs[-1], None), [str(scans[-1].cxi), *OVERSAMPLED])
    command = [str(CDTOOLS_PYTHON), str(Path(__file__).with_name("cdtools_runs.py")), json.dumps(runs)]
    variables = {"PYTHONPATH": str(PROGRAMS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    return {case: made_at(output, scan) for case, output, scan in zip(cases, outputs, scans, strict=True)}


@pytest.mark.parametrize("guess", [DEFOCUS, -DEFOCUS])
@pytest.mark.parametrize(("held", "read"), [("probe", None), ("probe", "probe"), ("sample", "sample")])
def test_ptychocam_is_upright(
    ptychocam: Callable[..., tuple[Made, str]], held: Any, read: str | None, guess: float
) -> None:
    made, said = ptychocam(Layout(translations_of=held, guess_defocus=guess), read)
    assert made.way.upright
    assert made.way.correlation >= 0.97
    assert made.figures["final_error"] < 0.07
    assert made.figures["warnings"] == []
    assert made.figures["parameters"]["positions"] == held
    assert f"positions are the {held}'s" in said
    # ACME propagates with the conjugate kernel: for +12 um its guess is that of the negated positions.
    assert made.figures["parameters"]["first_illumination"].endswith("turned by 180 degrees") == (guess > 0)


@pytest.mark.parametrize(("held", "read"), [("probe", "sample"), ("sample", None)])
def test_ptychocam_warns_of_positions_that_are_read_the_wrong_way(
    ptychocam: Callable[..., tuple[Made, str]], held: Any, read: str | None
) -> None:
    """The error is as low as ever; only the side of the focus tells."""
    made, said = ptychocam(Layout(translations_of=held, guess_defocus=DEFOCUS), read)
    assert replace(made.way, correlation=1.0) == TURNED
    assert made.figures["final_error"] < 0.07
    assert "the sample is before the focus; a distance of 21.4 um says the contrary" in made.warned
    assert f"set positions to {held}" in made.warned
    assert made.warned in said


@pytest.mark.needs("cdtools")
@pytest.mark.timeout(450)
@pytest.mark.parametrize(("held", "read"), [("probe", None), ("sample", "sample")])
def test_cdtools_is_upright(cdtools: Mapping[Any, Made], held: str, read: str | None) -> None:
    made = cdtools[held, read]
    assert made.way.upright
    assert made.way.correlation >= 0.97
    assert made.figures["warnings"] == []
    assert made.figures["parameters"]["positions"] == held
    assert made.figures["parameters"]["distance_used"] == pytest.approx(DEFOCUS)


@pytest.mark.needs("cdtools")
@pytest.mark.timeout(450)
@pytest.mark.parametrize(("held", "read"), [("probe", "sample"), ("sample", None)])
def test_cdtools_warns_of_positions_that_are_read_the_wrong_way(
    cdtools: Mapping[Any, Made], held: str, read: str | None
) -> None:
    made = cdtools[held, read]
    assert replace(made.way, correlation=1.0) == TURNED
    assert made.figures["parameters"]["distance_used"] == pytest.approx(-DEFOCUS)
    assert "propagation_distance 12 um was not used" in made.warned
    assert f"set positions to {held}" in made.warned


@pytest.mark.needs("cdtools")
@pytest.mark.timeout(450)
def test_cdtools_with_the_flows_oversampling_is_upright(cdtools: Mapping[Any, Made]) -> None:
    """The probe's array is wide and mostly dark; what was scanned is still found."""
    made = cdtools["probe", "oversampled"]
    assert made.way.upright
    assert made.way.correlation >= 0.97


def start(scan: Scan, *, distance: float | None, expected: float = 15e-6) -> Start:
    """Where CDTools begins."""
    parameters = Parameters(propagation_distance=distance)
    geometry = decide_geometry(scan, parameters, UNMEASURED, expected=expected)
    return begin(scan, parameters, geometry, UNMEASURED, expected=expected)


def test_a_distance_that_is_not_given_is_the_beamlines(cosmic: Callable[..., SyntheticScan]) -> None:
    scan = sample_moves(read_scan(cosmic(Layout()).cxi), "probe")
    begun = start(scan, distance=None, expected=DEFOCUS)
    assert begun.geometry.distance == DEFOCUS
    assert begun.geometry.warnings == ()


def test_a_distance_far_from_the_truth_gives_way_to_the_beamlines(
    cosmic: Callable[..., SyntheticScan],
) -> None:
    """50 um is the default of the parameter; nobody has to have chosen it."""
    scan = sample_moves(read_scan(cosmic(Layout()).cxi), "probe")
    begun = start(scan, distance=50e-6)
    assert begun.geometry.distance == 15e-6
    (warning,) = begun.geometry.warnings
    assert warning.startswith("propagation_distance 50 um was not used")
    assert "15 um from the focus (as the beamline is set up)" in warning
    assert len(begun.record["first_illuminations_tried"]) == 4  # type: ignore[arg-type]
    near = start(scan, distance=14e-6, expected=15e-6)
    assert near.geometry.distance == 14e-6
    assert len(near.record["first_illuminations_tried"]) == 2  # type: ignore[arg-type]


def test_positions_that_are_read_the_wrong_way_are_told_in_the_near_field_too(scan: Scan) -> None:
    near, measured = replace(scan, near_field=True), Magnification(value=-2000.0, correlation=0.95)
    geometry = decide_geometry(near, Parameters(), measured, expected=15e-6)
    assert geometry.distance == pytest.approx(-scan.distance / 2001)
    assert "If that is the wrong side" in geometry.warnings[0]
    right = decide_geometry(near, Parameters(), replace(measured, value=800.0), expected=15e-6)
    assert right.distance > 0
    assert "If that is the wrong side" not in right.warnings[0]


def test_a_guess_of_the_wrong_sign_sticks_and_is_replaced(
    cosmic: Callable[..., SyntheticScan], tmp_path: Path
) -> None:
    made = cosmic(Layout(guess_defocus=DEFOCUS))
    scan = sample_moves(read_scan(made.cxi), "probe")
    assert scan.illumination is not None
    options = Options(iterations=60, period_illu_refine=1, period_bg_refine=1)

    def outcome(probe: Any) -> tuple[float, Orientation]:
        solution = Solver(scan, options, probe=probe).run(lambda *_: None)
        write_result(
            tmp_path / "out", scan, solution, Run(engine="test", parameters={}, seconds=1.0, errors_are="")
        )
        return solution.errors[-1], find_orientation(tmp_path / "out.cxi", made.truth)

    error, way = outcome(scan.illumination)
    assert error > 0.2
    assert way.correlation < 0.7
    trial = try_out(scan, first_guesses(scan, measure_magnification(scan), expected=15e-6))
    assert trial.guess.origin == "the illumination in the file, conjugated and turned by 180 degrees"
    assert trial.errors["the illumination in the file"] > 2 * trial.errors[trial.guess.origin]
    error, way = outcome(trial.guess.probe)
    assert error < 0.07
    assert way.upright
    assert way.correlation >= 0.97


def test_a_good_first_guess_stays(scan: Scan) -> None:
    probe = solved(scan).probe[0]
    trial = try_out(scan, from_file(probe, "earlier"))
    assert trial.guess.origin == "earlier"
    assert set(trial.record()["first_illuminations_tried"]) == {  # type: ignore[call-overload]
        "earlier",
        "earlier, conjugated and turned by 180 degrees",
    }


def solved(scan: Scan) -> Solution:
    guess = try_out(scan, first_guesses(scan, measure_magnification(scan), expected=15e-6)).guess
    return Solver(scan, Options(iterations=5), probe=guess.probe).run(lambda *_: None)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10)
def test_mirror_images_have_the_same_frames(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probe, obj = rng.normal(size=(2, 12, 10)) + 1j * rng.normal(size=(2, 12, 10))
    frame = np.abs(far_field(probe * obj))
    assert np.abs(far_field(mirrored(probe) * mirrored(obj))) == pytest.approx(frame)
    assert mirrored(mirrored(probe)) == pytest.approx(probe)
    assert mirrored(probe)[6 + 2, 5 - 3] == pytest.approx(probe[6 - 2, 5 + 3].conj())


@pytest.mark.parametrize("given_distance", [5e-6, 20e-6, 50e-6])
def test_the_side_of_the_focus_is_seen_whatever_the_distance_is(scan: Scan, given_distance: float) -> None:
    probe = solved(scan).probe[0]
    for wrong in (mirrored(probe), np.roll(mirrored(probe), (5, -7), (0, 1))):
        (warning,) = sign_warning(scan, wrong, given_distance, UNMEASURED, "probe")
        assert "By the illumination that was found the sample is before the focus" in warning
        assert "set positions to sample" in warning
        assert sign_warning(scan, wrong, -given_distance, UNMEASURED, "probe") == ()
    assert sign_warning(scan, probe, given_distance, UNMEASURED, "sample") == ()


def test_the_shadows_of_the_sample_tell_the_side_too(scan: Scan) -> None:
    """In focus, a probe has no side; the magnification that is measured has."""
    focus = np.fft.fftshift(np.fft.ifft2(np.ones(scan.detector_shape))).astype(np.complex64)
    measured = measure_magnification(scan)
    assert measured.reliable
    assert sign_warning(scan, focus, 15e-6, measured, "probe") == ()
    (warning,) = sign_warning(scan, focus, 15e-6, replace(measured, value=-measured.value), "sample")
    assert "By the movement of the frames' shadows (correlation 0.9" in warning
    assert "set positions to probe" in warning


def test_the_defocus_follows_the_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expected_defocus().at(1400.0) == pytest.approx(30e-6)
    monkeypatch.setenv(DEFOCUS_VARIABLE, " -2e-5@1000 ")
    assert expected_defocus() == Defocus(distance=-2e-5, energy_ev=1000.0)
    assert expected_defocus().at(500.0) == pytest.approx(-1e-5)


@pytest.mark.parametrize(
    "text", ["15e-6", "@700", "15@700", "nan@700", "1e-5@0", "1e-5@nan", "1e-5@7@8", "x@y"]
)
def test_a_wrong_defocus_names_its_variable(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEFOCUS_VARIABLE, text)
    with pytest.raises(ValueError, match=f"^{DEFOCUS_VARIABLE}: .*it takes meters and electronvolts"):
        expected_defocus()


def test_whose_positions_is_one_of_two_words(
    programs: Any, synthetic: SyntheticScan, monkeypatch: Any
) -> None:
    monkeypatch.setenv(POSITIONS_VARIABLE, "Sample ")
    assert positions_in_file() == "sample"
    done = programs.run("ptychocam", synthetic.cxi, COSMIC_POSITIONS="lens")
    assert done.returncode == 1
    assert done.stderr == "ptychocam: error: COSMIC_POSITIONS is 'lens'; it takes probe or sample.\n"
