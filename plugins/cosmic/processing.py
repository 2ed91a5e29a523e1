"""How a scan is processed that nobody posted: the parameters of its day, from `beamline.yaml`."""

from __future__ import annotations

from datetime import date
from typing import Any

from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import ParamValidationError

from cosmic.beamline import Beamline, Engine
from cosmic.parameters import chosen_engines, reconstruction_params
from facilities.errors import UserError

_ANY_SCAN = "x.cxi"


def parameters_of(site: Beamline, day: date) -> dict[str, Any]:
    """The parameters that differ from the DAG's own defaults for scans of `day`, without `file_path`.

    :raises UserError: one of them is not a parameter of `transfer_auto_recon`, or does not fit; the message
        names its key in `beamline.yaml`.
    """
    chosen = _checked("processing.parameters", site.processing.parameters)
    for name, proposal in site.processing.proposals.items():
        if proposal.first_day <= day <= proposal.last_day:
            chosen |= _checked(f"processing.proposals.{name}.parameters", proposal.parameters)
    return chosen | _checked(f"processing.days.{day}", site.processing.days.get(day, {}))


def engines_of(parameters: dict[str, Any]) -> list[Engine]:
    """The engines that these parameters ask for."""
    return chosen_engines(_params(parameters).validate())


def _params(parameters: dict[str, Any]) -> ParamsDict:
    params = ParamsDict(reconstruction_params())
    params.update({"file_path": _ANY_SCAN, **parameters})
    return params


def _checked(key: str, parameters: dict[str, Any]) -> dict[str, Any]:
    known = set(reconstruction_params()) - {"file_path"}
    for name in parameters:
        if name not in known:
            raise _wrong(f"{key}.{name}", "it is not a parameter of transfer_auto_recon")
    for name, value in parameters.items():
        try:
            _params({name: value}).validate()
        except ParamValidationError as error:
            raise _wrong(f"{key}.{name}", str(error).splitlines()[0]) from error
    return dict(parameters)


def _wrong(key: str, why: str) -> UserError:
    return UserError(
        f"{key} in the beamline's settings cannot be used: {why}",
        next_step="correct the key in beamline.yaml, then clear this task.",
    )
