"""The parameters of the DAGs: names, types, bounds and defaults, and how they become command lines.

The DAGs' forms and all checks of values (typed, posted, in `beamline.yaml`) are made from these tables. The
names are those that the beamline computer has always sent. This module does not import Airflow.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from cosmic import scans
from facilities.errors import UserError

if TYPE_CHECKING:
    from airflow.sdk import Param

Engine = Literal["ptychocam", "cdtools"]
ENGINES: tuple[Engine, ...] = ("cdtools", "ptychocam")

REQUIRED: Any = ...
"""Default of a parameter that must be given."""

_TEXT_OF = {
    "integer": re.compile(r"[+-]?\d{1,12}", re.ASCII),
    "number": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII),
}
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MAX_PROBLEMS = 5  # in one message


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    :param default: value when none is given; None: may be left empty; `REQUIRED`: must be given.
    :param section: heading in the form under which it stands.
    :param rules: further keywords of JSON schema, bounds among them.
    :param kind: what its values are, for the message that refuses another.
    """

    type: Literal["boolean", "integer", "number", "string"]
    default: Any
    title: str
    description: str
    section: str = ""
    rules: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self.type in _TEXT_OF

    def schema(self) -> dict[str, Any]:
        """The JSON schema of its values."""
        kind = ["null", self.type] if self.default is None else self.type
        return {"type": kind, **self.rules, "title": self.title, "section": self.section}

    def param(self) -> Param:
        """An Airflow `Param` whose field in the form sends what is typed; `read_parameters` checks it.

        Airflow's fields for numbers and dates change what is typed (50e-6 becomes the maximum, 13/13/2023
        another day), `maxLength` cuts it, and its command line refuses what does not fit a `pattern` with the
        whole schema. It makes a text field of what may be a text and has examples.
        Null, which it makes of NaN, is let through to our own check: what Airflow itself refuses when a task
        begins is tried again and again.
        """
        from airflow.sdk import Param  # noqa: PLC0415 - this module is also used without Airflow

        left_out = {"minimum", "maximum", "maxLength", "format", "pattern"}
        schema = {key: rule for key, rule in self.schema().items() if key not in left_out}
        description = self.description
        if self.is_number:
            bounds = [self.rules["minimum"], self.rules["maximum"]]
            schema |= {"type": ["null", "string", self.type], "examples": bounds}
            description += " From {:g} to {:g}.".format(*bounds)
        default = {} if self.default is REQUIRED else {"default": self.default}
        return Param(**default, description=description, **schema)

    def read(self, value: Any) -> Any:
        """The value of what was typed or sent: of a number's text, the number.

        :raises ValueError: it does not fit; the message goes on after the parameter's name.
        """
        if value is None and self.default is None:
            return None
        read, fits = self._convert(value)
        if not fits:
            raise ValueError(
                f"must be {self._kind()}, not {'empty' if value is None else scans.quoted(value)}"
            )
        return read

    def _convert(self, value: Any) -> tuple[Any, bool]:
        if self.type == "boolean":
            return value, isinstance(value, bool)
        if self.type == "string":
            return value, isinstance(value, str) and self._is_text(value)
        number = value
        if isinstance(value, str) and _TEXT_OF[self.type].fullmatch(value.strip(" ")):
            number = int(value) if self.type == "integer" else float(value)
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            return value, False
        if not self.rules["minimum"] <= number <= self.rules["maximum"]:  # NaN is out of bounds, too
            return value, False
        if self.type == "integer":
            return int(number), int(number) == number
        return number, True

    def _is_text(self, value: str) -> bool:
        rules = self.rules
        if "enum" in rules:
            return value in rules["enum"]
        if rules.get("format") == "date":
            try:
                return bool(_DAY.fullmatch(value) and date.fromisoformat(value))
            except ValueError:
                return False
        return len(value) <= rules["maxLength"] and re.search(rules["pattern"], value) is not None

    def _kind(self) -> str:
        if self.kind:
            return self.kind
        if "enum" in self.rules:
            return "one of " + ", ".join(filter(None, self.rules["enum"]))
        if self.is_number:
            kind = "a whole number" if self.type == "integer" else "a number"
            return f"{kind} from {self.rules['minimum']:g} to {self.rules['maximum']:g}"
        return "true or false"


def read_parameters(table: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all parameters of a table; what is not given has its default.

    :raises UserError: something is missing, does not fit or is no parameter; one line names all of it.
    """
    problems = [_unknown(name, table) for name in given if name not in table]
    values = {}
    for name, parameter in table.items():
        value = given.get(name, parameter.default)
        if value is REQUIRED:
            problems.append(f"{name} is missing: it must be {parameter.kind}")
            continue
        try:
            values[name] = parameter.read(value)
        except ValueError as error:
            problems.append(f"{name} {error}")
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        raise UserError(
            ". ".join(problems[:_MAX_PROBLEMS] + ([f"And {more} more"] if more > 0 else [])),
            next_step="correct it and start a new run.",
        )
    return values


def _unknown(name: str, table: Mapping[str, Parameter]) -> str:
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(table) or 'none'}"
    return f"There is no parameter {scans.quoted(name)} ({hint})"


def dag_params(table: Mapping[str, Parameter]) -> dict[str, Param]:
    """`params` of a DAG."""
    return {name: parameter.param() for name, parameter in table.items()}


_MANY = 100_000


def _flag(default: bool, title: str, description: str) -> Parameter:
    return Parameter("boolean", default, title, description)


def _integer(default: int | None, low: int, high: int, title: str, description: str) -> Parameter:
    return Parameter("integer", default, title, description, rules={"minimum": low, "maximum": high})


def _number(default: float | None, low: float, high: float, title: str, description: str) -> Parameter:
    return Parameter("number", default, title, description, rules={"minimum": low, "maximum": high})


def _path(default: Any, pattern: str, kind: str, title: str, description: str) -> Parameter:
    rules = {"minLength": 1, "maxLength": scans.MAX_PATH_LENGTH, "pattern": pattern}
    return Parameter("string", default, title, description, rules=rules, kind=kind)


def _day(title: str, description: str) -> Parameter:
    return Parameter(
        "string", None, title, description, rules={"format": "date"}, kind="a day such as 2023-02-16"
    )


def _section(heading: str, /, **parameters: Parameter) -> dict[str, Parameter]:
    return {name: replace(parameter, section=heading) for name, parameter in parameters.items()}


_CDTOOLS = _section(
    "CDTools",  # in the order of its script's positional arguments
    run_split_reconstructions=_flag(
        False,
        "Split reconstructions",
        "Also reconstruct two halves of the frames, to estimate the resolution.",
    ),
    n_modes=_integer(1, 1, 32, "Probe modes", "Incoherent probe modes."),
    # The old flow sent 2, though the script's own default was 1. The flow's value is what users have had.
    oversampling_factor=_integer(2, 1, 8, "Oversampling", "Oversampling of the probe's array."),
    propagation_distance=Parameter(
        "number",
        "50e-6",  # a text, so that the form shows it as people write it
        "Propagation distance (m)",
        "In meters, from the focus to the sample, for the first probe: 50e-6 is 50 micrometers.",
        rules={"minimum": -0.01, "maximum": 0.01},
        kind="a distance in meters from -0.01 to 0.01 (50e-6 is 50 micrometers)",
    ),
    simulate_probe_translation=_flag(True, "Simulate probe translation", "The lens moves, not the sample."),
    n_init_rounds=_integer(1, 0, 1000, "Initial rounds", "Rounds of the first stage."),
    n_init_iter=_integer(50, 0, _MANY, "Iterations of a round", "Iterations of each first-stage round."),
    n_final_iter=_integer(50, 0, _MANY, "Final iterations", "Iterations of the last stage."),
    translation_randomization=_number(
        0,
        0,
        1000,
        "Translation randomization",
        "Of the first positions, in pixels, against raster artifacts.",
    ),
    probe_initialization=_path(
        None,
        scans.SAFE_PATH_PATTERN,
        scans.ANY_PATH,
        "Probe from file",
        "A file with a probe to start from, relative to the beamline's folder at NERSC. Empty: simulated.",
    ),
    init_background=_flag(False, "Start with a background", "Start from a background estimate."),
    probe_support_radius=_number(
        None, 1, _MANY, "Probe support (pixels)", "Radius outside which the probe is zero. Empty: no support."
    ),
)

RECONSTRUCTION: Mapping[str, Parameter] = {
    **_section(
        "Scan",
        file_path=_path(
            REQUIRED,
            scans.SCAN_PATH_PATTERN,
            scans.SCAN_PATH,
            "File path",
            "The scan, relative to the beamline's collection data7012, such as "
            "2023/02/230216/NS_230216033_ccdframes_0_0.cxi. A leading / is allowed.",
        ),
    ),
    **_section(
        "What to run",
        do_ptychocam=_flag(False, "ptychocam", "Run the ptychocam reconstruction."),
        do_cdtools=_flag(False, "CDTools", "Run the CDTools reconstruction."),
    ),
    **_section(
        "Both engines",
        positions=Parameter(
            "string",
            None,
            "Positions in the file",
            "Whose they are. Read the wrong way, the picture is turned by 180 degrees and conjugated. "
            "Empty: as in beamline.yaml (the probe's, as COSMIC writes them; CXI says the sample's).",
            rules={
                "enum": [None, "probe", "sample"],
                "values_display": {"null": "as in beamline.yaml"},
            },
        ),
    ),
    **_section(
        "ptychocam",
        n_iter=_integer(500, 1, _MANY, "Iterations", "Number of iterations."),
        period_illu_refine=_integer(0, 0, _MANY, "Illumination refinement", "Every n iterations; 0: never."),
        period_bg_refine=_integer(0, 0, _MANY, "Background refinement", "Every n iterations; 0: never."),
        use_illu_mask=_flag(False, "Illumination mask", "Constrain the illumination with a mask."),
    ),
    **_CDTOOLS,
    **_section(
        "CDTools",
        distance_follows_energy=_flag(
            False,
            "Distance follows the energy",
            "Take the distance of beamline.yaml (15 micrometers at 700 eV, in proportion to the energy), not "
            "propagation_distance.",
        ),
    ),
    **_section(
        "Slurm job",
        n_gpu=_integer(1, 1, 4, "GPUs", "GPUs of the job, on one node."),
        qos=Parameter(
            "string",
            None,
            "Quality of service",
            "Empty: as in beamline.yaml (regular). The ALS may also use realtime.",
            rules={
                "enum": [None, "regular", "realtime", "debug", "premium", "shared"],
                "values_display": {"null": "as in beamline.yaml"},
            },
        ),
        time_limit_minutes=_integer(
            None, 1, 2880, "Time limit (minutes)", "A short one may start sooner. Empty: as in beamline.yaml."
        ),
        more_resources=_flag(
            False, "More resources", "Submit a job that ran out of time or memory again, with twice as much."
        ),
    ),
}
"""Of `transfer_auto_recon`."""

TRANSFER: Mapping[str, Parameter] = _section(
    "Scan",
    file_path=_path(
        REQUIRED,
        scans.SAFE_PATH_PATTERN,
        scans.ANY_PATH,
        "File path",
        "Of a file or folder, relative to the collection data7012.",
    ),
)
"""Of `process_newfile_7012_ptycho4`."""

STACK: Mapping[str, Parameter] = {
    **_section(
        "Scan",
        scan=_path(
            REQUIRED,
            scans.STACK_PATTERN,
            "a scan such as NS_230216033, or the path of one of its files",
            "Scan",
            "The scan, such as NS_230216033, or the path of one of its files.",
        ),
    ),
    **_section(
        "Stack",
        engine=Parameter(
            "string",
            "ptychocam",
            "Engine",
            "Whose results: the newest of each energy and region.",
            rules={"enum": list(ENGINES)},
        ),
        incomplete=_flag(
            False, "Incomplete", "Make a stack of what is done though files are running, failed or missing."
        ),
    ),
}
"""Of `stack_scan`."""

FLIGHT_CHECK: Mapping[str, Parameter] = _section(
    "Credentials",
    min_days_left=_number(
        1.0, 0, 60, "Minimum days left", "Fail when the Superfacility client expires sooner."
    ),
)
"""Of `test_cosmicDTN_transfers`."""

MISSED_SCANS: Mapping[str, Parameter] = {
    **_section(
        "What to start",
        which=Parameter(
            "string",
            "missing",
            "Which scans",
            "Scans that are running are never started again. Failed and processed ones get a new identity "
            "(__r2, __r3 ...), and their results lie beside the earlier ones.",
            rules={
                "enum": ["missing", "failed", "everything"],
                "values_display": {
                    "missing": "missing: not processed at all",
                    "failed": "failed: also those whose last run failed",
                    "everything": "everything: reprocess also what is processed",
                },
            },
        ),
        dry_run=_flag(False, "Dry run", "List only, start nothing."),
    ),
    **_section(
        "Days",
        first_day=_day("First day", "Empty: the days of the run's data interval, or yesterday and today."),
        last_day=_day("Last day", "Included. Empty: the first day."),
    ),
    **_section(
        "Limits",
        min_age_minutes=_number(
            30, 0, _MANY, "Minimum age (minutes)", "A file that has changed more recently is left alone."
        ),
        at_once=_integer(
            50, 1, 400, "Runs at once", "Start no more while so many runs are active; live scans count too."
        ),
        # Globus moves three at a time for one user: 2 leaves one for live scans.
        copies_at_once=_integer(
            2, 1, 400, "Transfers at once", "Start no more while so many have not finished their transfer."
        ),
    ),
}
"""Of `find_missed_scans`. All have defaults, as a backfill needs."""

NEW_SCANS: Mapping[str, Parameter] = _section(
    "Limits",
    min_age_minutes=_number(
        1, 0, 1440, "Minimum age (minutes)", "A file that has changed more recently is left alone."
    ),
)
"""Of `watch_scans`."""


def chosen_engines(params: Mapping[str, Any]) -> list[Engine]:
    """The engines that a run asks for; what is not given has its default."""
    return [e for e in ENGINES if params.get(f"do_{e}", RECONSTRUCTION[f"do_{e}"].default)]


def command_arguments(engine: Engine, params: Mapping[str, Any], scan_file: str, root: str) -> list[str]:
    """The arguments of the reconstruction script on its command line, unquoted.

    ptychocam takes options before the file, CDTools takes positional arguments after it.

    :param params: as `read_parameters` returns them.
    :param scan_file: absolute path of the scan at NERSC.
    :param root: absolute path of the beamline's folder at NERSC, below which other files are named.
    """
    if engine == "ptychocam":
        options = ["-i", str(params["n_iter"])]
        if params["period_illu_refine"]:
            options += ["-r", str(params["period_illu_refine"])]
        if params["period_bg_refine"]:
            options += ["-T", str(params["period_bg_refine"])]
        return [*options, *(["-M"] if params["use_illu_mask"] else []), scan_file]
    values = {name: params[name] for name in _CDTOOLS}
    if params["distance_follows_energy"]:
        values["propagation_distance"] = None
    if values["probe_initialization"] is not None:
        values["probe_initialization"] = f"{root.rstrip('/')}/{values['probe_initialization'].strip('/')}"
    return [scan_file, *(_text(value) for value in values.values())]


def _text(value: object) -> str:
    """A value as the scripts read it: `none`, `true`, `false`, or the number or text itself."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
