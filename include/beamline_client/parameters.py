"""Parameters of a run: what the DAG takes, and checking what a user gives.

Names, types, bounds, defaults and descriptions are the DAG's own: the build writes them into `dag.json`.
"""

from __future__ import annotations

import difflib
import json
import math
import pkgutil
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Mapping, Optional, Sequence, Tuple

from beamline_client.errors import InputError

Conf = Dict[str, Any]  # parameters of a run, as JSON


@dataclass(frozen=True)
class Parameter:
    """A parameter of the DAG, from its JSON schema."""

    type: str  # boolean, integer, number or string
    optional: bool = False  # may be null, on the command line "none"
    default: Any = None
    description: str = ""
    minimum: float = -math.inf
    maximum: float = math.inf
    choices: Tuple[str, ...] = ()
    pattern: str = ""
    min_length: int = 0
    max_length: float = math.inf


def read_schema(schema: Mapping[str, Any]) -> Parameter:
    """A parameter from its JSON schema, whose `default` and `description` stand in it."""
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    (type_,) = (name for name in types if name != "null")
    return Parameter(
        type_,
        optional="null" in types,
        default=schema.get("default"),
        description=schema["description"],
        minimum=schema.get("minimum", -math.inf),
        maximum=schema.get("maximum", math.inf),
        choices=tuple(choice for choice in schema.get("enum", ()) if choice is not None),
        pattern=schema.get("pattern", ""),
        min_length=schema.get("minLength", 0),
        max_length=schema.get("maxLength", math.inf),
    )


def _read_dag() -> Dict[str, Any]:
    try:
        content = pkgutil.get_data("beamline_client", "dag.json")
    except OSError as error:
        raise ImportError("The client runs as one file, which `make client` writes.") from error
    dag: Dict[str, Any] = json.loads(content or b"")
    return dag


_DAG = _read_dag()
DAG_ID: str = _DAG["dag_id"]
STACK_DAG_ID: str = _DAG["stack"]["dag_id"]
VERSION: str = _DAG["version"]
PARAMETERS = {name: read_schema(schema) for name, schema in _DAG["parameters"].items()}
FILE_PATH = PARAMETERS.pop("file_path")
STACK_PARAMETERS = {
    name: read_schema(schema) for name, schema in _DAG["stack"]["parameters"].items() if name != "scan"
}

Table = Mapping[str, Parameter]
ENGINES = tuple(name[len("do_") :] for name in PARAMETERS if name.startswith("do_"))
FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_PYTHON_TYPES: Dict[str, Any] = {"boolean": bool, "integer": int, "number": (int, float), "string": str}


def parse_parameter(name: str, text: str, table: Table = PARAMETERS) -> Any:
    """A parameter's value from what was typed.

    :raises InputError: unknown name, or not a value that the DAG takes.
    """
    parameter = _parameter(name, table)
    value: Any = text
    if parameter.optional and text.lower() == "none":
        return None
    if parameter.type == "boolean":
        value = FLAGS.get(text.lower(), text)
    elif parameter.type == "integer" and re.fullmatch(r"[+-]?\d{1,12}", text, re.ASCII):
        value = int(text)
    elif parameter.type == "number" and NUMBER.fullmatch(text):
        value = float(text)
    return check_parameter(name, value, table)


def check_parameter(name: str, value: Any, table: Table = PARAMETERS) -> Any:
    """Check type and bounds of one parameter and return it.

    :raises InputError: unknown name, wrong type or out of bounds.
    """
    parameter = _parameter(name, table)
    if value is None and parameter.optional:
        return value
    fits = isinstance(value, _PYTHON_TYPES[parameter.type])
    fits = fits and isinstance(value, bool) == (parameter.type == "boolean")
    if fits and parameter.type == "string":
        fits = parameter.min_length <= len(value) <= parameter.max_length
        fits = fits and re.search(parameter.pattern, value) is not None
    if not fits:
        raise InputError(f"{name} must be {_type_in_words(parameter)}, not {value!r}.")
    if parameter.choices and value not in parameter.choices:
        raise InputError(f"{name} must be one of {', '.join(parameter.choices)}, not {value!r}.")
    is_number = parameter.type in ("integer", "number")
    if is_number and not parameter.minimum <= value <= parameter.maximum:  # nan is out of bounds, too
        raise InputError(
            f"{name} must be from {parameter.minimum:g} to {parameter.maximum:g}, not {value!r}."
        )
    return value


def _parameter(name: str, table: Table) -> Parameter:
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(table)}."
        raise InputError(f"There is no parameter {name!r}. {hint}")
    return table[name]


def _type_in_words(parameter: Parameter) -> str:
    if parameter.pattern:
        return "a path below the beamline's folder at NERSC (letters, digits, '.', '_', '-', '/')"
    words = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text"}
    return words[parameter.type]


def describe_parameters(table: Table = PARAMETERS) -> str:
    """A line on each parameter for the help: what it takes, its default in parentheses, what it does."""
    lines = []
    for name, parameter in table.items():
        takes = _type_in_words(parameter)
        if parameter.choices:
            takes = ", ".join(parameter.choices)
        elif parameter.type in ("integer", "number"):
            takes += f" from {parameter.minimum:g} to {parameter.maximum:g}"
        takes += ", or none" if parameter.optional else ""
        default = "none" if parameter.default is None else json.dumps(parameter.default)
        lines.append(f"  {name} ({default})\n      {takes}. {parameter.description}")
    return "\n".join(lines)


def parameters_from_options(
    pairs: Iterable[str],
    engines: Optional[Sequence[str]] = None,
    n_gpu: Optional[str] = None,
    table: Table = PARAMETERS,
) -> Conf:
    """Parameters from `--param name=value`, `--engine` and `--n-gpu`.

    :raises InputError: a malformed pair, a parameter given twice or a bad value.
    """
    given = [pair.partition("=") for pair in pairs]
    texts = [(name.strip(), value.strip()) for name, equals, value in given if equals]
    if len(texts) != len(given):
        bad = next(name for name, equals, _ in given if not equals)
        raise InputError(f"--param {bad!r} is not of the form name=value.")
    texts += [("n_gpu", n_gpu)] if n_gpu is not None else []
    texts += [(f"do_{engine}", str(engine in engines)) for engine in ENGINES] if engines else []
    names = [name for name, _ in texts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{', '.join(twice)}: given more than once.")
    return {name: parse_parameter(name, text, table) for name, text in texts}
