"""Writes docs/reference/parameters.md from the DAGs' own parameters: `python -m dev.reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import Param

from cosmic.dag_constants import PROCESS_NEWFILE, TRANSFER_AUTO_RECON
from cosmic.parameters import RECONSTRUCTION, TRANSFER, dag_params

FILE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "parameters.md"

_HEAD = """\
# Parameters

Made by `make reference` from `plugins/cosmic/parameters.py`. The names are those that the beamline computer
has always sent. A value that does not fit is refused before a run exists.
"""


def parameters() -> str:
    """The page."""
    parts = [_HEAD]
    for dag_id, params in (
        (TRANSFER_AUTO_RECON, dag_params(RECONSTRUCTION)),
        (PROCESS_NEWFILE, dag_params(TRANSFER)),
    ):
        parts.append(f"\n## {dag_id}\n")
        section = None
        for name, param in params.items():
            if param.schema.get("section") != section:
                section = param.schema.get("section")
                parts.append(
                    f"\n### {section}\n\n| name | value | default | meaning |\n| --- | --- | --- | --- |\n"
                )
            parts.append(f"| `{name}` | {_values(param.schema)} | {_default(param)} | {_meaning(param)} |\n")
    return "".join(parts)


def _values(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    text = " or ".join(kind for kind in types if kind != "null")
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None or high is not None:
        text += (
            f", {low} to {high}"
            if None not in (low, high)
            else f", from {low}"
            if high is None
            else f", to {high}"
        )
    return text


def _default(param: Param) -> str:
    value = param.value
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return (
        f"`{value}`"
        if isinstance(value, str | int | float)
        else ""
        if "null" in str(param.schema)
        else "required"
    )


def _meaning(param: Param) -> str:
    text = param.schema.get("description_md") or param.description or param.schema["title"]
    return " ".join(str(text).split()).replace("|", "\\|")


if __name__ == "__main__":
    FILE.write_text(parameters(), encoding="utf-8")
