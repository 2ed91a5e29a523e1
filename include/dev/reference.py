"""Writes docs/reference/parameters.md from the DAGs' own parameters: `python -m dev.reference`."""

from __future__ import annotations

from pathlib import Path

from cosmic.dag_constants import PROCESS_NEWFILE, STACK_SCAN, TRANSFER_AUTO_RECON
from cosmic.parameters import RECONSTRUCTION, REQUIRED, STACK, TRANSFER, Parameter

FILE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "parameters.md"

_HEAD = """\
# Parameters

Made by `make reference` from `plugins/cosmic/parameters.py`. The names are those that the beamline computer
has always sent. Numbers may be sent as text, as the form does. A value that does not fit, and a name that is
not here, is refused before a run exists.
"""


def parameters() -> str:
    """The page."""
    parts = [_HEAD]
    tables = {TRANSFER_AUTO_RECON: RECONSTRUCTION, PROCESS_NEWFILE: TRANSFER, STACK_SCAN: STACK}
    for dag_id, table in tables.items():
        parts.append(f"\n## {dag_id}\n")
        section = None
        for name, parameter in table.items():
            if parameter.section != section:
                section = parameter.section
                parts.append(
                    f"\n### {section}\n\n| name | value | default | meaning |\n| --- | --- | --- | --- |\n"
                )
            meaning = parameter.description.replace("|", "\\|")
            parts.append(f"| `{name}` | {_values(parameter)} | {_default(parameter)} | {meaning} |\n")
    return "".join(parts)


def _values(parameter: Parameter) -> str:
    rules = parameter.rules
    if "enum" in rules:
        return ", ".join(f"`{value}`" for value in rules["enum"] if value is not None)
    bounds = f", {rules['minimum']} to {rules['maximum']}" if parameter.is_number else ""
    return parameter.type + bounds


def _default(parameter: Parameter) -> str:
    if parameter.default is None or parameter.default is REQUIRED:
        return "" if parameter.default is None else "required"
    value = parameter.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    FILE.write_text(parameters(), encoding="utf-8")
