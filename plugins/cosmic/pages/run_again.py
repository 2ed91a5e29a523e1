"""The form of *Run again*: the parameters of the job and the engines, and what a reader has changed in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData

from cosmic.parameters import RECONSTRUCTION, Parameter

MAY_CHANGE: Mapping[str, Parameter] = {
    name: parameter for name, parameter in RECONSTRUCTION.items() if name != "file_path"
}
"""All but the file."""


@dataclass(frozen=True)
class FormField:
    """One field: a box (`checked`), a list (`options`: value and text of each), or a text."""

    name: str
    parameter: Parameter
    text: str
    checked: bool
    options: list[tuple[str, str]]

    @property
    def help(self) -> str:
        """What it is, with its bounds."""
        if not self.parameter.is_number:
            return self.parameter.description
        low, high = self.parameter.rules["minimum"], self.parameter.rules["maximum"]
        return f"{self.parameter.description} From {low:g} to {high:g}."

    @property
    def is_default(self) -> bool:
        """Whether it has the value that a run has when none is given."""
        return _shown(self.parameter, self.parameter.default) == (
            self.checked if self.parameter.type == "boolean" else self.text
        )


Fields = dict[str, list[FormField]]  # by section


def fields_of(conf: Mapping[str, Any]) -> Fields:
    """The fields, with the values of a run's parameters."""
    sections: Fields = {}
    for name, parameter in MAY_CHANGE.items():
        shown = _shown(parameter, conf.get(name, parameter.default))
        display = parameter.rules.get("values_display", {})
        options = [
            (option or "", str(display.get(option or "null", option)))
            for option in parameter.rules.get("enum", ())
        ]
        text, checked = (str(shown), False) if isinstance(shown, str) else ("", shown)
        sections.setdefault(parameter.section, []).append(FormField(name, parameter, text, checked, options))
    return sections


def changes(conf: Mapping[str, Any], form: FormData) -> dict[str, Any]:
    """What of the form differs from what it showed of a run's parameters; not checked yet."""
    found: dict[str, Any] = {}
    for name, parameter in MAY_CHANGE.items():
        sent: str | bool
        if parameter.type == "boolean":
            sent = name in form
        elif isinstance(value := form.get(name), str):
            sent = value.strip()
        else:
            continue
        if sent != _shown(parameter, conf.get(name, parameter.default)):
            found[name] = _value(parameter, sent)
    return found


def _shown(parameter: Parameter, value: Any) -> str | bool:
    """What the form has for a value."""
    if parameter.type == "boolean":
        return value is True
    return "" if value is None else str(value)


def _value(parameter: Parameter, sent: str | bool) -> Any:
    """What a run gets; as it was typed when it does not fit, which its check will say."""
    if sent == "" and parameter.default is None:
        return None
    try:
        return parameter.read(sent)
    except ValueError:
        return sent
