"""Packs the beamline computer's client into one file, `build/submit_scan.py`: `make client`.

The file is a zip archive that Python runs (zipapp): the package `beamline_client`, and in it `dag.json` with
the version and the ids and the parameters of the DAGs that it starts, so that the client checks names and
bounds that are the DAGs' own.
The same source gives the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipapp
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "include" / "beamline_client"
CLIENT = REPOSITORY / "build" / "submit_scan.py"
INTERPRETER = "/usr/bin/env python3"

CHECKED = ("type", "enum", "minimum", "maximum", "pattern", "minLength", "maxLength")
ONLY_SHOWN = ("title", "section", "values_display")  # in the trigger form


def build(target: Path = CLIENT) -> Path:
    """Write the client's file, unless it is there with the same content; returns where it is.

    :raises ValueError: a parameter of the DAG has a rule that the client cannot check.
    """
    content = _archive()
    if not target.exists() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f"{target.name}.{os.getpid()}.new")
        new.write_bytes(content)
        new.chmod(0o755)
        new.replace(target)
    return target


def _archive() -> bytes:
    files = {f"{SOURCE.name}/{path.name}": path.read_text() for path in SOURCE.glob("*.py")}
    files["__main__.py"] = files[f"{SOURCE.name}/__main__.py"]
    files[f"{SOURCE.name}/dag.json"] = json.dumps(describe_dag(), indent=1)
    archive, program = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # dated 1980, whatever the source's date is
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, files[name])
    archive.seek(0)
    zipapp.create_archive(archive, program, INTERPRETER)
    return program.getvalue()


def describe_dag() -> dict[str, Any]:
    """The bundle's version, and the id and the JSON schema of each parameter of the DAGs that are started."""
    # Importing Airflow takes seconds and makes a folder: not for who only wants to know where the file is.
    from cosmic.dag_constants import STACK_SCAN, TRANSFER_AUTO_RECON  # noqa: PLC0415
    from cosmic.parameters import RECONSTRUCTION, STACK  # noqa: PLC0415

    return {
        "dag_id": TRANSFER_AUTO_RECON,
        "version": version("cosmic-airflow-bundle"),
        "parameters": _schemas(RECONSTRUCTION),
        "stack": {"dag_id": STACK_SCAN, "parameters": _schemas(STACK)},
    }


def _schemas(table: Mapping[str, Any]) -> dict[str, Any]:
    from cosmic.parameters import REQUIRED  # noqa: PLC0415 - see above

    parameters: dict[str, Any] = {}
    for name, parameter in table.items():
        schema = parameter.schema()
        unknown = set(schema) - set(CHECKED) - set(ONLY_SHOWN)
        if unknown:
            raise ValueError(f"{name}: the client cannot check {', '.join(sorted(unknown))}.")
        checked = {key: schema[key] for key in CHECKED if key in schema}
        default = {} if parameter.default is REQUIRED else {"default": parameter.default}
        parameters[name] = {**checked, **default, "description": parameter.description}
    return parameters


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:  # Airflow makes a folder when it is imported
        os.environ["AIRFLOW_HOME"] = home
        build()
