"""What tasks do when they fail: try again, and keep why, with the command that runs the scan again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import facilities.failures
from cosmic.beamline import beamline
from cosmic.parameters import RECONSTRUCTION, STACK, read_parameters
from cosmic.scans import parse_scan_path, parse_whole_scan
from facilities.errors import FacilityError, UserError
from facilities.retries import RETRIES, FacilityRetryPolicy
from facilities.superfacility.slurm import seconds

# By the state in which a job ended: the parameter of which a new run needs more.
_LACKING = {"TIMEOUT": "time_limit_minutes", "OUT_OF_MEMORY": "n_gpu"}


def keep_error(context: Mapping[str, Any]) -> None:
    """Keep why a task failed; `on_failure_callback` and `on_retry_callback` of all tasks of the bundle."""
    error = context.get("exception")
    state = (error.state if isinstance(error, FacilityError) else None) or ""
    params = context.get("params") or {}
    command = reprocess_command(params, state) or stack_command(params)
    facilities.failures.keep_error(context, run_again=command)


def reprocess_command(params: Mapping[str, Any], state: str) -> str:
    """The client's command for a new run of a scan; empty when the run was not one of a scan.

    Example: after TIMEOUT, `submit_scan.py reprocess 2023/02/230216/x.cxi --param time_limit_minutes=480`.

    :param params: of the run that failed.
    :param state: in which its job ended. After TIMEOUT the command asks for twice the time, after
        OUT_OF_MEMORY for twice the GPUs, up to what a run may have.
    """
    if not RECONSTRUCTION.keys() <= {*params}:
        return ""
    try:
        path = parse_scan_path(params["file_path"]).relative
    except UserError:
        return ""
    command = f"submit_scan.py reprocess {shlex.quote(str(path))}"
    name = _LACKING.get(state.split(" ", maxsplit=1)[0].rstrip("+"))
    if name is None:
        return command
    had = int(params[name] or (seconds(beamline().job.time_limit) or 0) // 60)
    more = min(had * 2, RECONSTRUCTION[name].rules["maximum"])
    return f"{command} --param {name}={more}" if more > had else command


def stack_command(params: Mapping[str, Any]) -> str:
    """The client's command for a new stack; empty when the run was not one of `stack_scan`.

    Example: `submit_scan.py stack NS_230216033 --engine cdtools --param incomplete=true`.

    :param params: of the run that failed.
    """
    if not STACK.keys() <= {*params}:
        return ""
    try:
        values = read_parameters(STACK, params)
        scan = parse_whole_scan(values["scan"])
    except UserError:
        return ""
    incomplete = " --param incomplete=true" if values["incomplete"] else ""
    return f"submit_scan.py stack {shlex.quote(scan.name)} --engine {values['engine']}{incomplete}"


# No `start_date`: a run with an earlier logical date would have no tasks and succeed at once.
DEFAULT_ARGS: dict[str, Any] = {
    "owner": "bl7012",
    "retries": RETRIES,
    "retry_delay": timedelta(seconds=10),
    "retry_policy": FacilityRetryPolicy(),
    "on_failure_callback": keep_error,
    "on_retry_callback": keep_error,
}
