"""Keeps why a task failed: in its XCom `error`, for pages and programs, and as the last lines of its log."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from typing import Any, TypedDict

from facilities.errors import FacilityError

log = logging.getLogger(__name__)

ERROR_KEY = "error"
"""Key of the XCom. Airflow removes it when the task is tried again."""

_MAX_DETAILS = 4000  # characters: the ends of two log files fit; an XCom is not for more
_LOG_WIDTH = 100  # characters


class KeptError(TypedDict):
    """Why a task failed, in plain values."""

    what: str
    id: str | None  # of the remote thing, if there is one
    state: str | None  # last that the service reported
    next_step: str
    run_again: str  # a command, or empty
    details: str  # further lines, at most 4,000 characters of them


def keep_error(context: Mapping[str, Any], *, run_again: str = "") -> None:
    """Keep the exception that ended a try; for `on_failure_callback` and `on_retry_callback`.

    Does nothing for a task that was ended without one: by a person, or with its worker. Example::

        default_args = {"on_failure_callback": keep_error, "on_retry_callback": keep_error}

    :param run_again: the command with which the reader runs the work again.
    """
    error = context.get("exception")
    if not isinstance(error, BaseException):
        return
    kept = kept_error(error, run_again)
    log.error("%s", in_lines(kept))
    context["ti"].xcom_push(key=ERROR_KEY, value=dict(kept))


def kept_error(error: BaseException, run_again: str = "") -> KeptError:
    """The plain values of an exception of any class."""
    if not isinstance(error, FacilityError):
        first_line = next(iter(str(error).splitlines()), "")[:500]
        error = FacilityError(
            f"The task stopped with {type(error).__name__}" + (f": {first_line}" if first_line else ""),
            next_step="run it again; if it fails again, report this and the task's log to the maintainers.",
        )
    return KeptError(
        what=error.what,
        id=error.remote_id,
        state=error.state,
        next_step=error.next_step,
        run_again=run_again,
        details=error.details[:_MAX_DETAILS],
    )


def in_lines(error: KeptError) -> str:
    """What failed and what to do about it, in lines short enough for a log view that does not wrap them."""
    about = [error["what"]]
    about += [f"id {error['id']}"] if error["id"] else []
    about += [f"last state {error['state']}"] if error["state"] else []
    lines = ["; ".join(about) + "."]
    lines += [f"What to do: {error['next_step']}"] if error["next_step"] else []
    wrapped = [
        textwrap.fill(line, _LOG_WIDTH, break_long_words=False, break_on_hyphens=False) for line in lines
    ]
    # A command is copied: it stays on one line.
    wrapped += ["To run it again:", f"    {error['run_again']}"] if error["run_again"] else []
    return "\n".join(wrapped)
