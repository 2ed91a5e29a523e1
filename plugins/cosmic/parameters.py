"""The parameters of a run: names, types, bounds and defaults, and how they become command lines.

The names are those that the beamline computer has always sent. Airflow's REST API refuses values that do
not fit before a run exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Param

from cosmic.beamline import ENGINES, Engine
from cosmic.scans import MAX_PATH_LENGTH, SAFE_PATH_PATTERN, SCAN_PATH_PATTERN

_SCAN = "Scan"
_WHAT = "What to run"
_CDTOOLS = "CDTools"
_PTYCHOCAM = "ptychocam"
_JOB = "Slurm job"


def _file_path(pattern: str, description: str, example: str) -> Param:
    return Param(
        type="string",
        minLength=1,
        maxLength=MAX_PATH_LENGTH,
        pattern=pattern,
        title="File path",
        description_md=description,
        section=_SCAN,
        examples=[example],
    )


def _flag(default: bool, title: str, description: str, section: str) -> Param:
    return Param(default, type="boolean", title=title, description=description, section=section)


def _count(
    default: int, title: str, description: str, section: str, *, least: int = 0, most: int = 100_000
) -> Param:
    return Param(
        default,
        type="integer",
        minimum=least,
        maximum=most,
        title=title,
        description=description,
        section=section,
    )


def scan_param() -> Param:
    """`file_path`: the scan, relative to the beamline's collection."""
    return _file_path(
        SCAN_PATH_PATTERN,
        "The scan, relative to the beamline's collection `data7012`: "
        "`year/month/yymmdd/NS_<yymmdd><number>_ccdframes_<i>_<j>[_suffix].cxi`. A leading `/` is allowed.",
        "2023/02/230216/NS_230216033_ccdframes_0_0.cxi",
    )


def transfer_params() -> dict[str, Param]:
    """Parameters of `process_newfile_7012_ptycho4`."""
    return {
        "file_path": _file_path(
            SAFE_PATH_PATTERN,
            "The file or folder to copy, relative to the beamline's collection `data7012`.",
            "2023/02/230216/NS_230216033_ccdframes_0_0.cxi",
        )
    }


def reconstruction_params() -> dict[str, Param]:
    """Parameters of `transfer_auto_recon`."""
    return {
        "file_path": scan_param(),
        **_what_params(),
        **_ptychocam_params(),
        **_cdtools_params(),
        **_job_params(),
    }


def _what_params() -> dict[str, Param]:
    return {
        "do_ptychocam": _flag(False, "ptychocam", "Run the ptychocam reconstruction.", _WHAT),
        "do_cdtools": _flag(False, "CDTools", "Run the CDTools reconstruction.", _WHAT),
    }


def _job_params() -> dict[str, Param]:
    return {
        "n_gpu": _count(1, "GPUs", "GPUs of the job, on one node.", _JOB, least=1, most=4),
        "qos": Param(
            None,
            type=["null", "string"],
            enum=[None, "regular", "realtime", "debug", "premium", "shared"],
            values_display={"null": "as in beamline.yaml"},
            title="Quality of service",
            description="Empty: as in beamline.yaml (regular). The ALS may also use realtime.",
            section=_JOB,
        ),
        "time_limit_minutes": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=48 * 60,
            title="Time limit (minutes)",
            description="Empty: as in beamline.yaml (4 hours). A shorter limit may start sooner.",
            section=_JOB,
        ),
        "more_resources": _flag(
            False,
            "More when it was not enough",
            "Submit a job that ran out of time or memory once more, with twice the time or memory.",
            _JOB,
        ),
    }


def _ptychocam_params() -> dict[str, Param]:
    return {
        "n_iter": _count(500, "Iterations", "Number of iterations.", _PTYCHOCAM, least=1),
        "period_illu_refine": _count(
            0,
            "Illumination refinement period",
            "Refine the illumination every so many iterations; 0: never.",
            _PTYCHOCAM,
        ),
        "period_bg_refine": _count(
            0,
            "Background refinement period",
            "Refine the background every so many iterations; 0: never.",
            _PTYCHOCAM,
        ),
        "use_illu_mask": _flag(
            False, "Illumination mask", "Constrain the illumination with a mask.", _PTYCHOCAM
        ),
    }


def _cdtools_params() -> dict[str, Param]:
    return {
        "run_split_reconstructions": _flag(
            False,
            "Split reconstructions",
            "Also reconstruct two halves of the frames, for a resolution estimate.",
            _CDTOOLS,
        ),
        "n_modes": _count(1, "Probe modes", "Incoherent probe modes.", _CDTOOLS, least=1, most=32),
        # The old flow sent 2 and the script's own table said 1. The flow's value is what users have had.
        "oversampling_factor": _count(
            2, "Oversampling", "Oversampling of the probe's array.", _CDTOOLS, least=1, most=8
        ),
        "propagation_distance": Param(
            50e-6,
            type="number",
            minimum=-1,
            maximum=1,
            title="Propagation distance (m)",
            description="From the focus to the sample, for the first guess of the probe, in metres.",
            section=_CDTOOLS,
        ),
        "simulate_probe_translation": _flag(
            True, "Simulate probe translation", "The lens moves, not the sample.", _CDTOOLS
        ),
        "n_init_rounds": _count(1, "Initial rounds", "Rounds of the first stage.", _CDTOOLS, most=1000),
        "n_init_iter": _count(50, "Iterations of a round", "Iterations of each first-stage round.", _CDTOOLS),
        "n_final_iter": _count(50, "Final iterations", "Iterations of the last stage.", _CDTOOLS),
        "translation_randomization": Param(
            0,
            type="number",
            minimum=0,
            maximum=1000,
            title="Translation randomisation",
            description="Pixels by which positions are randomised at first, against raster artefacts.",
            section=_CDTOOLS,
        ),
        "probe_initialization": Param(
            None,
            type=["null", "string"],
            maxLength=MAX_PATH_LENGTH,
            pattern=SAFE_PATH_PATTERN,
            title="Probe from file",
            description=(
                "A file with a probe to start from, relative to the beamline's folder at NERSC. "
                "Empty: a simulated probe."
            ),
            section=_CDTOOLS,
        ),
        "init_background": _flag(
            False, "Start with a background", "Start from a background estimate.", _CDTOOLS
        ),
        "probe_support_radius": Param(
            None,
            type=["null", "number"],
            minimum=1,
            maximum=100_000,
            title="Probe support radius (pixels)",
            description="Radius in pixels outside which the probe is zero; empty: no support.",
            section=_CDTOOLS,
        ),
    }


CDTOOLS_ARGUMENTS = (
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
)


def chosen_engines(params: Mapping[str, Any]) -> list[Engine]:
    """The engines that a run asks for."""
    return [engine for engine in ENGINES if params[f"do_{engine}"]]


def command_arguments(engine: Engine, params: Mapping[str, Any], scan_file: str, root: str) -> list[str]:
    """What follows the reconstruction script on its command line, unquoted.

    ptychocam takes options before the file, CDTools takes positional arguments after it.

    :param scan_file: absolute path of the scan at NERSC.
    :param root: absolute path of the beamline's folder at NERSC, below which other files are named.
    """
    if engine == "ptychocam":
        return [*_ptychocam_options(params), scan_file]
    values = {name: params[name] for name in CDTOOLS_ARGUMENTS}
    if values["probe_initialization"] is not None:
        values["probe_initialization"] = f"{root.rstrip('/')}/{values['probe_initialization'].strip('/')}"
    return [scan_file, *(_text(value) for value in values.values())]


def _ptychocam_options(params: Mapping[str, Any]) -> list[str]:
    options = ["-i", str(params["n_iter"])]
    if params["period_illu_refine"]:
        options += ["-r", str(params["period_illu_refine"])]
    if params["period_bg_refine"]:
        options += ["-T", str(params["period_bg_refine"])]
    if params["use_illu_mask"]:
        options += ["-M"]
    return options


def _text(value: object) -> str:
    """A value as the scripts read it: `none`, `true`, `false`, or the number or text itself."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
