"""`cdtools_reconstruction.sh`: FILE, then twelve arguments in order; "none" where one is not given.

FILE alone takes the defaults of `Parameters`. What each does is said there; the schedule is in
`reconstruction.fancy`. Far field or near field is decided from the file
(`reconstruction.geometry.is_near_field`).
COSMIC_OUTPUT says where the results go; COSMIC_POSITIONS and COSMIC_DEFOCUS are explained in
`reconstruction.conventions`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from reconstruction.arrays import Real
from reconstruction.conventions import (
    expected_defocus,
    mirrored,
    positions_in_file,
    sample_moves,
    sign_warning,
)
from reconstruction.earlier import Earlier, read_earlier
from reconstruction.geometry import (
    Magnification,
    far_field_pixel,
    focus_to_sample,
    is_near_field,
    measure_magnification,
    object_shape,
)
from reconstruction.illumination import from_file, from_mean_frame, try_out
from reconstruction.program import UsageError, output_prefix, run, say, whole_number
from reconstruction.quality import judge, relative
from reconstruction.result import Run, make_folder, remove_old, write_result
from reconstruction.scale import wrong_scale
from reconstruction.scan import Scan, read_scan

if TYPE_CHECKING:
    from reconstruction.workers import Team

ENGINE = "cdtools"
ERRORS_ARE = (
    "mean squared difference of measured and modelled amplitudes, of an epoch (CDTools' amplitude mse)"
)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The twelve arguments, in the order of the command line.

    :param run_split_reconstructions: also reconstruct two halves of the frames, for a resolution.
    :param n_modes: incoherent modes of the probe.
    :param oversampling_factor: exit-wave samples for each detector pixel, per axis.
    :param propagation_distance: meters; far field: from the focus to the sample, for the first guess of
        the probe; near field: from a point focus to the sample, for the magnification (0: parallel beam).
        None: as the beamline is set up, which follows the energy (COSMIC_DEFOCUS).
    :param simulate_probe_translation: the lens moves, not the sample: the beam moves on the detector
        (far field only).
    :param n_init_rounds: rounds in which the probe is found; between them it is centered and the object
        forgotten. There is always one, so 0 is 1.
    :param n_init_iter: epochs of each such round.
    :param n_final_iter: epochs of the last stage, with a falling step and each frame's intensity refined.
    :param translation_randomization: pixels; positions are randomised by so much, against raster artefacts,
        in all initial rounds but the last (or in the only one), and put right afterwards.
    :param probe_initialization: an earlier result (.cxi of ours, or .h5 or .mat as CDTools writes them) to
        take the probe from; a relative path starts at the scan's folder.
    :param init_background: begin with a background: that of `probe_initialization` when it has one, the
        file's dark frames, or else the dimmest value of each pixel.
    :param probe_support_radius: pixels of the exit wave beyond which the probe is zero.
    """

    run_split_reconstructions: bool = False
    n_modes: int = 1
    oversampling_factor: int = 1
    propagation_distance: float | None = 50e-6
    simulate_probe_translation: bool = True
    n_init_rounds: int = 1
    n_init_iter: int = 50
    n_final_iter: int = 50
    translation_randomization: float = 0.0
    probe_initialization: str | None = None
    init_background: bool = False
    probe_support_radius: float | None = None


NAMES = tuple(field.name for field in fields(Parameters))
USAGE = "cdtools_reconstruction.sh FILE.cxi [" + " ".join(NAMES) + "]"


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How the wave goes from the sample to the detector.

    :param distance: meters, as `Parameters.propagation_distance`, after the check against the frames.
    """

    near_field: bool
    distance: float
    warnings: tuple[str, ...] = ()


def parse(arguments: list[str]) -> tuple[Parameters, Path]:
    """Parameters and file from the command line.

    :raises UsageError: saying which argument is wrong.
    """
    if len(arguments) not in (1, 1 + len(NAMES)) or not arguments[0]:
        raise UsageError(
            f"a file is wanted, and after it all {len(NAMES)} arguments or none; got {len(arguments)}"
        )
    path = Path(arguments[0])
    if len(arguments) == 1:
        return Parameters(), path
    text = dict(zip(NAMES, arguments[1:], strict=True))
    parameters = Parameters(
        run_split_reconstructions=_flag(text, "run_split_reconstructions"),
        n_modes=_count(text, "n_modes", low=1, high=32),
        oversampling_factor=_count(text, "oversampling_factor", low=1, high=8),
        propagation_distance=_optional_number(text, "propagation_distance", low=-0.01, high=0.01),
        simulate_probe_translation=_flag(text, "simulate_probe_translation"),
        n_init_rounds=_count(text, "n_init_rounds", low=0, high=1000),
        n_init_iter=_count(text, "n_init_iter", low=0, high=100_000),
        n_final_iter=_count(text, "n_final_iter", low=0, high=100_000),
        translation_randomization=_number(text, "translation_randomization", low=0.0, high=1000.0),
        probe_initialization=None if _none(text["probe_initialization"]) else text["probe_initialization"],
        init_background=_flag(text, "init_background"),
        probe_support_radius=_optional_number(text, "probe_support_radius", low=1.0, high=1e5),
    )
    if parameters.n_init_iter + parameters.n_final_iter == 0:
        raise UsageError("n_init_iter and n_final_iter together ask for no iteration at all")
    return parameters, path


def _none(text: str) -> bool:
    return text.strip().lower() in ("none", "")


def _flag(text: dict[str, str], name: str) -> bool:
    value = text[name].strip().lower()
    if value not in ("true", "false"):
        raise UsageError(f"{name} is {text[name]!r}; it takes true or false")
    return value == "true"


def _count(text: dict[str, str], name: str, *, low: int, high: int) -> int:
    return whole_number(text[name], name, low=low, high=high)


def _optional_number(text: dict[str, str], name: str, *, low: float, high: float) -> float | None:
    return None if _none(text[name]) else _number(text, name, low=low, high=high)


def _number(text: dict[str, str], name: str, *, low: float, high: float) -> float:
    try:
        value = float(text[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UsageError(f"{name} is {text[name]!r}; it takes a number from {low:g} to {high:g}")
    return value


def decide_geometry(
    scan: Scan, parameters: Parameters, measured: Magnification, *, expected: float
) -> Geometry:
    """Far field or near field; in the near field, check the given distance against the frames.

    The command line's default is meant for the far field. A distance that differs by more than a factor
    of two from the one measured would put every frame in the wrong place: the measured one is taken,
    with a warning.

    :param expected: meters, for a distance that was not given.
    """
    given = expected if parameters.propagation_distance is None else parameters.propagation_distance
    if not is_near_field(scan, measured):
        return Geometry(near_field=False, distance=given)
    magnification = 1.0 if given == 0 else (given + scan.distance) / given
    ratio = measured.value / magnification
    if not measured.reliable or 0.5 < ratio < 2.0:
        return Geometry(near_field=True, distance=given, warnings=_near_field_notes(parameters))
    distance = _measured_distance(scan, measured)
    warning = (
        f"Near field: the frames move {measured.value:.4g} times as far as the sample, so the focus is "
        f"{distance:.4g} m before it; propagation_distance {given:g} m was not used."
    )
    if distance * given < 0:
        warning += " If that is the wrong side, the positions in the file are the other's: set positions."
    return Geometry(near_field=True, distance=distance, warnings=(warning, *_near_field_notes(parameters)))


def _measured_distance(scan: Scan, measured: Magnification) -> float:
    # Within a few per cent of 1 there is no telling a far focus from a parallel beam.
    return 0.0 if abs(measured.value - 1.0) < 0.05 else focus_to_sample(scan, measured.value)


def _pixel(scan: Scan, geometry: Geometry) -> Real:
    """Of the object, meters, (rows, columns), as CDTools has it without oversampling."""
    if not geometry.near_field:
        return far_field_pixel(scan)
    magnification = 1.0 if geometry.distance == 0 else abs(1.0 + scan.distance / geometry.distance)
    return scan.detector_pitch / magnification


def _near_field_notes(parameters: Parameters) -> tuple[str, ...]:
    if parameters.simulate_probe_translation:
        return ("simulate_probe_translation is for the far field and was not used.",)
    return ()


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where the model begins.

    :param earlier: what `probe_initialization` names.
    :param record: what the result says of it.
    """

    geometry: Geometry
    earlier: Earlier | None
    record: Mapping[str, object]


def begin(
    scan: Scan, parameters: Parameters, geometry: Geometry, measured: Magnification, *, expected: float
) -> Start:
    """In the far field, try out what was asked for and what else may fit; go on with what does.

    :raises ValueError: when `probe_initialization` does not fit.
    """
    earlier = None
    if parameters.probe_initialization is not None:
        earlier = read_earlier(scan.path.parent / parameters.probe_initialization)
        earlier.check(scan.detector_shape, parameters.oversampling_factor)
    if geometry.near_field:
        return Start(geometry=geometry, earlier=earlier, record={})
    if earlier is not None:
        guesses = from_file(earlier.inner(scan.detector_shape), f"the probe in {earlier.path.name}")
        trial = try_out(scan, guesses)
        if trial.guess is not guesses[0]:
            earlier = replace(earlier, probe=mirrored(earlier.probe))
        return Start(geometry=geometry, earlier=earlier, record=trial.record())
    distances = [(geometry.distance, "propagation_distance"), (expected, "as the beamline is set up")]
    if measured.reliable:
        distances.append((focus_to_sample(scan, measured.value), "measured from the frames"))
    trial = try_out(scan, from_mean_frame(scan, distances))
    distance = trial.guess.distance
    if distance is not None and distance != geometry.distance:
        warning = (
            f"propagation_distance {geometry.distance * 1e6:.3g} um was not used: beginning with "
            f"{trial.guess.origin}, the first iterations come much nearer to the frames."
        )
        geometry = replace(geometry, distance=distance, warnings=(*geometry.warnings, warning))
    return Start(geometry=geometry, earlier=None, record=trial.record())


def reconstruct(parameters: Parameters, path: Path, team: Team | None = None) -> None:
    """Read, solve, write.

    :param team: the processes that compute, of which this is the first; by default this one alone.
    """
    started = time.monotonic()
    prefix = output_prefix(path, ENGINE)
    positions, defocus = positions_in_file(), expected_defocus()
    halves = [prefix.with_name(f"{prefix.name}_half_{number}") for number in (1, 2)]
    for old in (prefix, *halves):
        remove_old(old)
    scan = sample_moves(read_scan(path), positions)
    measured, expected = measure_magnification(scan), defocus.at(scan.energy_ev)
    geometry = decide_geometry(scan, parameters, measured, expected=expected)
    object_shape(scan, _pixel(scan, geometry))
    make_folder(prefix)
    kind = "near field" if geometry.near_field else "far field"
    print(
        f"{path}: {len(scan.frames)} frames of {scan.detector_shape}, {scan.energy_ev:.1f} eV, {kind}; "
        f"positions are the {positions}'s",
        flush=True,
    )
    find_cause = partial(wrong_scale, scan, measured, expected=expected)
    if geometry.near_field and scan.near_field is None and (cause := find_cause()):
        warnings = (f"By its distance and energy this is a near-field scan. {cause}", *geometry.warnings)
        geometry = replace(geometry, warnings=warnings)
    start = begin(scan, parameters, geometry, measured, expected=expected)
    say(scan.notes, (*scan.warnings, *start.geometry.warnings))
    from reconstruction import fancy  # noqa: PLC0415 - torch takes seconds to import, and wrong arguments need none of it

    outcome = fancy.reconstruct(scan, parameters, start.geometry, start.earlier, team=team)
    found = outcome.solution.probe[0]
    sign = () if geometry.near_field else sign_warning(scan, found, geometry.distance, measured, positions)
    error = relative(scan, outcome.solution.errors[-1])
    unknown = str if geometry.near_field else find_cause
    doubts = (*judge(scan, error, refined=True, find_cause=unknown), *sign)
    say((), (*outcome.warnings, *doubts))
    finished = Run(
        engine=ENGINE,
        parameters={
            **asdict(parameters),
            "positions": positions,
            "distance_used": start.geometry.distance,
            "computed_with": outcome.computed_with,
            **start.record,
        },
        seconds=time.monotonic() - started,
        errors_are=ERRORS_ARE,
        geometry=kind,
        final_error=error,
        resolution_m=outcome.resolution_m,
        warnings=(*start.geometry.warnings, *outcome.warnings, *doubts),
    )
    for half, (part, solution) in zip(halves, outcome.halves, strict=False):
        write_result(half, part, solution, replace(finished, final_error=relative(part, solution.errors[-1])))
    figures = write_result(prefix, scan, outcome.solution, finished)
    print(f"done in {figures['seconds']:.1f} s, error {figures['final_error']:.5g}: {prefix}.cxi", flush=True)


def start(arguments: list[str]) -> None:
    """Reconstruct in this process, in as many as this one sees GPUs, or as one of those."""
    parameters, path = parse(arguments)
    from reconstruction import workers  # noqa: PLC0415 - as above

    if not workers.launched() and (count := workers.gpus()) > 1:
        workers.launch(count, "reconstruction.cdtools_engine", arguments)
        return
    with workers.joined() as team:
        if team.rank == 0:
            reconstruct(parameters, path, team)
        else:
            from reconstruction.epochs import assist  # noqa: PLC0415 - as above

            assist(team)


def main() -> int:
    """The command."""
    return run(ENGINE, USAGE, lambda: start(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
