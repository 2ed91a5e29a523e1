"""Makes exceptions of what the Superfacility API answers when something fails.

Most failures come as HTTP 200 with status "ERROR" (in changing letter case) and the text of the command
behind it; that text decides the class of the exception. Texts are Slurm's and NERSC's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from facilities.errors import (
    CredentialsError,
    FacilityError,
    LostReplyError,
    NotFoundError,
    TransientError,
    UserError,
)
from facilities.retries import asked_pause

RENEW = (
    "make a new client in Iris (iris.nersc.gov, Profile, Superfacility API Clients), security level red, "
    "with this machine's address in its IP range, and put its id and key in place of the old ones: into "
    "the two files that connection {conn_id} names, or into the connection itself."
)

_SHOWN = 1000  # characters of a service's own message that an error carries


@dataclass(frozen=True)
class Meaning:
    """A text that services answer with, the class of failure it means, and what to do about it."""

    pattern: str
    error: type[FacilityError]
    next_step: str
    vague: bool = False


_AGAIN = "look at https://www.nersc.gov/live-status/motd if it stays so."
_QUEUE = (
    "look at the limits of the qos (docs.nersc.gov, Queues and Charges) and at what is queued already; "
    "ask for less time, fewer nodes, or another qos."
)

MEANINGS = (
    Meaning(r"invalid account", UserError,
            "check the account (iris.nersc.gov, Projects): GPU jobs are charged to the one that ends in _g."),
    Meaning(r"invalid qos", UserError, "check the qos: regular, debug, shared, preempt, premium; realtime "
            "only by arrangement with NERSC."),
    Meaning(r"invalid feature|no architecture specified|does not match any supported policy", UserError,
            "check the constraint: gpu or cpu."),
    Meaning(r"requested node configuration is not available|requested (partition|nodes?) ", UserError,
            "ask for fewer nodes or GPUs per node."),
    Meaning(r"accounting/qos policy|qosmax|assocmax|time limit", UserError, _QUEUE),
    Meaning(r"invalid license", UserError, "check the licenses that the job asks for."),
    Meaning(r"batch script (is empty|contains dos)|does not look like a batch script", UserError,
            "correct the job script; its copy is beside the task's result."),
    Meaning(r"quota exceeded|no space left", UserError,
            "make room: showquota at NERSC names the full file system."),
    Meaning(r"permission denied|access denied|not permitted", UserError,
            "let the user of the client read and write there (chmod, chgrp, setfacl at NERSC)."),
    Meaning(r"no such file or directory|not found", NotFoundError, "check the path."),
    Meaning(r"invalid job id|job not found", NotFoundError, "check the job id: sacct -j ID at NERSC."),
    Meaning(r"not a directory|is a directory", UserError, "check the path."),
    Meaning(r"too large|exceeds|larger than", UserError,
            "the API moves files of at most 5 MB: use Globus for larger ones."),
    Meaning(r"unable to contact slurm controller|slurm temporarily unable", TransientError, _AGAIN),
    Meaning(
        r"socket timed out|zero bytes were transmitted|message (send|receive)|unexpected message|"
        r"slurm_persist_conn|slurmdbd|unable to contact|connection (refused|failure)|"
        r"unavailable|maintenance|try again|timed? ?out",
        TransientError,
        _AGAIN,
        vague=True,
    ),
)  # fmt: skip


def failure_of_text(
    text: str,
    what: str,
    *,
    remote_id: str | None = None,
    otherwise: type[FacilityError] = UserError,
    sent: bool = False,
) -> FacilityError:
    """Make the exception that a service's error text means.

    :param what: what failed, in one sentence, without a full stop.
    :param otherwise: the class for a text that is not known.
    :param sent: an action was asked for: a vague text leaves open whether it was taken.
    """
    shown = text.strip()[:_SHOWN] or "no reason was given"
    for meaning in MEANINGS:
        if re.search(meaning.pattern, shown, re.IGNORECASE):
            kind = meaning.error if not (sent and meaning.vague) else LostReplyError
            return kind(what, remote_id=remote_id, next_step=meaning.next_step, details=shown)
    advice = _AGAIN if issubclass(otherwise, TransientError) else "see the service's message below."
    return otherwise(what, remote_id=remote_id, next_step=advice, details=shown)


def failure_of_status(response: httpx.Response, what: str, *, client_id: str, conn_id: str) -> FacilityError:
    """Make the exception that an HTTP status of 400 and above means."""
    detail = _detail(response)
    state = f"HTTP {response.status_code}"
    if response.status_code in (401, 403):
        return CredentialsError(
            f"{what}: NERSC refuses the client of connection {conn_id}",
            remote_id=client_id,
            state=state,
            next_step="look at the client in Iris; if it has expired, is not of level red, or does not allow "
            f"this machine's address: {RENEW.format(conn_id=conn_id)}",
            details=detail,
        )
    if response.status_code == 429 or response.status_code >= 500:
        return TransientError(
            what, state=state, next_step=_AGAIN, details=detail, retry_after=asked_pause(response.headers)
        )
    if response.status_code == 404:
        return NotFoundError(what, state=state, next_step="check the name, path or id.", details=detail)
    return UserError(what, state=state, next_step="see the service's message below.", details=detail)


def failure_of_network(error: httpx.HTTPError, what: str, *, sent: bool) -> TransientError:
    """Make the exception that a network failure means.

    :param sent: whether the request asked for an action, which may have been taken.
    """
    never_left = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    kind = LostReplyError if sent and not never_left else TransientError
    return kind(f"{what}: {type(error).__name__}", next_step=_AGAIN, details=str(error)[:_SHOWN])


def read_object(response: httpx.Response, what: str, *, sent: bool) -> Any:
    """Read a reply's JSON.

    :raises LostReplyError: it cannot be read, and an action may have been taken.
    :raises TransientError: it cannot be read.
    """
    try:
        return response.json()
    except ValueError as error:
        kind = LostReplyError if sent else TransientError
        raise kind(
            f"{what}: the reply is not JSON", next_step=_AGAIN, details=response.text[:_SHOWN]
        ) from error


def expect_ok(
    reply: Any,
    what: str,
    *,
    remote_id: str | None = None,
    otherwise: type[FacilityError] = UserError,
    sent: bool = False,
) -> Mapping[str, Any]:
    """Check that a reply is an object whose status is not ERROR.

    :param otherwise: the class for an error text that is not known.
    :param sent: an action was asked for.
    :raises FacilityError: of the class that the error text means.
    """
    if not isinstance(reply, Mapping):
        kind = LostReplyError if sent else TransientError
        raise kind(f"{what}: the reply is not an object", next_step=_AGAIN, details=repr(reply)[:200])
    if str(reply.get("status") or "").lower() in ("error", "failed"):
        text = str(reply.get("error") or reply.get("output") or "")
        raise failure_of_text(text, what, remote_id=remote_id, otherwise=otherwise, sent=sent)
    return reply


def _detail(response: httpx.Response) -> str:
    """The reason in a reply: FastAPI's {"detail": text or list of places}, else its text."""
    try:
        body = response.json()
    except ValueError:
        return response.text.strip()[:_SHOWN]
    detail = body.get("detail", body) if isinstance(body, Mapping) else body
    if isinstance(detail, list):
        return "; ".join(_place(item) for item in detail)[:_SHOWN]
    return (detail if isinstance(detail, str) else json.dumps(detail))[:_SHOWN]


def _place(item: Any) -> str:
    if not isinstance(item, Mapping):
        return str(item)
    return f"{'.'.join(str(part) for part in item.get('loc') or ())}: {item.get('msg')}"
