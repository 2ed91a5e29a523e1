"""`ptychocam_reconstruction.sh`: -i ITERATIONS -r PERIOD -T PERIOD -M FILE.

-i iterations (500); -r refine the illumination every so many iterations (0, the default: never); -T the
same for the background; -M confine the illumination to the file's illumination mask (without one in the
file, to the bright field). Far-field scans only. COSMIC_OUTPUT says where the results go; COSMIC_POSITIONS
and COSMIC_DEFOCUS are explained in `reconstruction.conventions`, COSMIC_ARRAYS in `reconstruction.backend`.
"""

from __future__ import annotations

import getopt
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from reconstruction.backend import choose
from reconstruction.conventions import expected_defocus, positions_in_file, sample_moves, sign_warning
from reconstruction.geometry import is_near_field, measure_magnification
from reconstruction.illumination import IN_FILE, Trial, first_guesses, illumination_mask, try_out
from reconstruction.program import Progress, UsageError, output_prefix, run, say, whole_number
from reconstruction.quality import judge
from reconstruction.result import Run, make_folder, remove_old, write_result
from reconstruction.scale import wrong_scale
from reconstruction.scan import Scan, ScanError, read_scan
from reconstruction.solver import Options, Solver

ENGINE = "ptychocam"
USAGE = "ptychocam_reconstruction.sh [-i ITERATIONS] [-r PERIOD] [-T PERIOD] [-M] FILE.cxi"
MAX_NUMBER = 100_000
ERRORS_ARE = "sqrt(sum (sqrt(measured) - sqrt(model))^2 / sum measured), over the good pixels"


def parse(arguments: list[str]) -> tuple[Options, Path]:
    """Options and file from the command line.

    :raises UsageError: saying what is wrong.
    """
    try:
        options, operands = getopt.getopt(arguments, "i:r:T:M")
    except getopt.GetoptError as error:
        raise UsageError(str(error)) from error
    if len(operands) != 1 or not operands[0]:
        raise UsageError(f"exactly one file is wanted, after the options; got {len(operands)}: {operands}")
    given = dict(options)

    def number(flag: str, default: str, *, low: int = 0) -> int:
        return whole_number(given.get(flag, default), flag, low=low, high=MAX_NUMBER)

    chosen = Options(
        iterations=number("-i", "500", low=1),
        period_illu_refine=number("-r", "0"),
        period_bg_refine=number("-T", "0"),
        use_illu_mask="-M" in given,
    )
    return chosen, Path(operands[0])


def reconstruct(options: Options, path: Path) -> None:
    """Read, solve, write.

    :raises ScanError: when the file cannot be reconstructed with this program.
    """
    started = time.monotonic()
    prefix = output_prefix(path, ENGINE)
    positions, defocus, backend = positions_in_file(), expected_defocus(), choose()
    remove_old(prefix)
    scan = sample_moves(read_scan(path), positions)
    measured = measure_magnification(scan)
    expected = defocus.at(scan.energy_ev)
    find_cause = partial(wrong_scale, scan, measured, expected=expected)
    if is_near_field(scan, measured):
        cause = find_cause() if scan.near_field is None else ""
        raise ScanError(
            f"{path}: by its distance and energy a near-field scan. {cause}"
            if cause
            else f"{path}: a near-field scan; this program is for far-field scans, use CDTools."
        )
    make_folder(prefix)
    print(f"{path}: {len(scan.frames)} frames of {scan.detector_shape}, {scan.energy_ev:.1f} eV", flush=True)
    trial = try_out(scan, first_guesses(scan, measured, expected=expected), backend)
    print(f"positions are the {positions}'s; first illumination: {trial.guess.origin}", flush=True)
    found = _warnings(scan, options, trial)
    say(scan.notes, (*scan.warnings, *found))
    mask = illumination_mask(scan) if options.use_illu_mask else None
    solver = Solver(scan, options, probe=trial.guess.probe, mask=mask, backend=backend)
    print(f"computing with {solver.computed_with}", flush=True)
    try:
        solution = solver.run(Progress(options.iterations))
    except FloatingPointError as error:
        raise FloatingPointError(f"{path}: the iterations diverged ({error}); refine less often.") from error
    doubts = (
        *judge(scan, solution.errors[-1], refined=options.period_illu_refine > 0, find_cause=find_cause),
        *sign_warning(scan, solution.probe[0], expected, measured, positions),
    )
    say((), doubts)
    finished = Run(
        engine=ENGINE,
        parameters={
            **asdict(options),
            "positions": positions,
            "expected_defocus_m": expected,
            "computed_with": solver.computed_with,
            **trial.record(),
        },
        seconds=time.monotonic() - started,
        errors_are=ERRORS_ARE,
        warnings=(*found, *doubts),
    )
    figures = write_result(prefix, scan, solution, finished)
    print(f"done in {figures['seconds']:.1f} s, error {figures['final_error']:.5g}: {prefix}.cxi", flush=True)


def _warnings(scan: Scan, options: Options, trial: Trial) -> list[str]:
    origin, warnings = trial.guess.origin, []
    if scan.illumination is not None and not origin.startswith(IN_FILE):
        warnings.append(
            f"The illumination in the file was not used: beginning with {origin}, the first iterations come "
            "much nearer to the frames."
        )
    if not origin.startswith(IN_FILE) and not options.period_illu_refine:
        warnings.append(
            "No illumination of the file was used and -r was not given: "
            "the guess from the mean frame was used as it is."
        )
    return warnings


def main() -> int:
    """The command."""
    return run(ENGINE, USAGE, lambda: reconstruct(*parse(sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
