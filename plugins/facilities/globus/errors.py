"""Turns globus_sdk's exceptions, and replies that cannot be read, into errors of `facilities.errors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import globus_sdk

from facilities.errors import (
    CredentialsError,
    FacilityError,
    LostReplyError,
    NotFoundError,
    TransientError,
    UserError,
)


class ExistsError(UserError):
    """The folder or file that was to be made exists already."""


class SubmissionConflictError(TransientError):
    """A living task moves the same paths; Globus does not say which."""


class SubmissionIdError(UserError):
    """Globus does not accept the submission id (any more)."""


@dataclass(frozen=True)
class Call:
    """What was being asked, for the message."""

    what: str  # such as "reading task"
    remote_id: str | None
    conn_id: str
    client_id: str
    changes: bool  # the request changes something at Globus, so a lost reply leaves doubt


def explain(error: Exception, call: Call) -> FacilityError:
    """Turn an exception of globus_sdk into the right facility error."""
    if isinstance(error, FacilityError):
        return error
    if isinstance(error, globus_sdk.AuthAPIError):
        return _auth_failure(error, call)
    if isinstance(error, globus_sdk.GlobusAPIError):
        return _api_failure(error, call)
    if isinstance(error, globus_sdk.NetworkError):
        return _network_failure(error, call)
    if isinstance(error, globus_sdk.GlobusError):
        return UserError(
            f"Globus: {call.what} is not possible",
            remote_id=call.remote_id,
            next_step=f"check connection '{call.conn_id}' and the task's arguments.",
            details=str(error),
        )
    return unreadable(call, f"{type(error).__name__}: {error}")


def unreadable(call: Call, details: str) -> TransientError:
    """The reply came but cannot be read; for a change that leaves in doubt whether it was done."""
    kind = LostReplyError if call.changes else TransientError
    return kind(
        f"Globus: {call.what} was answered with something that cannot be read",
        remote_id=call.remote_id,
        next_step="wait; if it stays so, look at https://status.globus.org.",
        details=details,
    )


def _network_failure(error: globus_sdk.NetworkError, call: Call) -> TransientError:
    never_sent = isinstance(error, globus_sdk.GlobusConnectionTimeoutError)
    kind = LostReplyError if call.changes and not never_sent else TransientError
    return kind(
        f"Globus: {call.what} got no answer",
        remote_id=call.remote_id,
        next_step="wait; if it stays so, check the network and https://status.globus.org.",
        details=f"{error} ({type(error.underlying_exception).__name__})",
    )


def _auth_failure(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    if error.http_status == 429 or error.http_status >= 500:
        return _busy(error, call)
    return CredentialsError(
        f"Globus Auth refuses the client of connection '{call.conn_id}' while {call.what}",
        remote_id=call.client_id,
        next_step="put a valid client id and secret into the connection (a secret is made at "
        "https://app.globus.org/settings/developers), then clear the task.",
        details=_message_of(error),
    )


def _api_failure(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    code = error.code or ""
    if "ExternalError" in code or "EndpointError" in code:
        return _collection_failure(error, call)
    if error.http_status == 401 or "AuthenticationFailed" in code:
        return _auth_failure(error, call)
    by_status = {403: _forbidden, 404: _not_found, 409: _conflict, 429: _busy}
    reading = by_status.get(error.http_status, _busy if error.http_status >= 500 else _refused)
    return reading(error, call)


def _not_found(error: globus_sdk.GlobusAPIError, call: Call) -> NotFoundError:
    return NotFoundError(
        f"Globus does not know what was asked for ({call.what})",
        remote_id=call.remote_id,
        next_step="check the path and the collection's id.",
        details=_message_of(error),
    )


def _forbidden(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    identity = f"{call.client_id}@clients.auth.globus.org"
    if error.code == "ConsentRequired":
        return CredentialsError(
            f"Globus: {call.what} needs a consent (data_access) that the client does not have",
            remote_id=call.remote_id,
            next_step=f"grant it to {identity} on the collection, then clear the task.",
            details=_message_of(error),
        )
    return UserError(
        f"Globus: permission denied for {call.what}",
        remote_id=call.remote_id,
        next_step=f"give {identity} access to the path on the collection, then clear the task.",
        details=_message_of(error),
    )


def _conflict(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    code = error.code or ""
    if "TooManyPending" in code or "GCDisconnected" in code or "GCPaused" in code:
        return _busy(error, call)
    if code.rsplit(".", 1)[-1] in ("Conflict", "Exists"):
        kind = ExistsError if code.endswith("Exists") else SubmissionConflictError
        return kind(
            f"Globus: {call.what} is in conflict with what is there already",
            remote_id=call.remote_id,
            next_step="wait for the other task, or cancel it at https://app.globus.org/activity.",
            details=_message_of(error),
        )
    return _refused(error, call)


def _collection_failure(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    reason = (error.code or "").rsplit(".", 1)[-1]
    text = f"{reason} {error.message or ''}".lower()
    if reason == "Exists":
        return ExistsError(f"Globus: {call.what}: it exists already", remote_id=call.remote_id)
    if reason == "NotFound" or "no such file" in text:
        return NotFoundError(
            f"Globus: {call.what}: the collection has no such path",
            remote_id=call.remote_id,
            next_step="check the path on the collection.",
            details=_message_of(error),
        )
    if reason in ("PermissionDenied", "EndpointPermissionDenied"):
        return _forbidden(error, call)
    if reason in ("NotDirectory", "NotSupported", "IsDirectory"):
        return _refused(error, call)
    return _busy(error, call)


def _refused(error: globus_sdk.GlobusAPIError, call: Call) -> UserError:
    details = _message_of(error)
    kind = (
        SubmissionIdError if "submission_id" in details or "submission id" in details.lower() else UserError
    )
    return kind(
        f"Globus refuses {call.what} (HTTP {error.http_status})",
        remote_id=call.remote_id,
        next_step="correct what Globus names below.",
        details=details,
    )


def _busy(error: globus_sdk.GlobusAPIError, call: Call) -> TransientError:
    doubt = call.changes and error.http_status >= 500
    kind = LostReplyError if doubt else TransientError
    return kind(
        f"Globus: {call.what} cannot be done at the moment (HTTP {error.http_status})",
        remote_id=call.remote_id,
        next_step="wait; if it stays so, look at https://status.globus.org and at the collection.",
        details=_message_of(error),
        retry_after=_retry_after(error),
    )


def _retry_after(error: globus_sdk.GlobusAPIError) -> float | None:
    try:
        seconds = float(error.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None


def _message_of(error: globus_sdk.GlobusAPIError) -> str:
    parts = [error.code or "", error.message or ""]
    if not any(parts) and isinstance(error.raw_json, dict):
        parts = [str(error.raw_json.get(key, "")) for key in ("error", "error_description")]
    text = ": ".join(part for part in parts if part) or f"{error.http_status} {error.http_reason}"
    request = f" (request {error.request_id})" if error.request_id else ""
    return f"Globus says: {text[:1000]}{request}"


def read_json(reply: Any, call: Call) -> Any:
    """The JSON object of a reply.

    :raises TransientError: when it is none; `LostReplyError` for a call that changes something.
    """
    data = getattr(reply, "data", None)
    if not isinstance(data, Mapping):
        raise unreadable(call, f"HTTP {reply.http_status}, {reply.content_type or 'no content type'}")
    return data


def read_field(reply: Mapping[str, Any], key: str, what: str) -> str:
    """A text that a reply must have.

    :raises TransientError: when it does not.
    """
    value = reply.get(key)
    if not isinstance(value, str) or not value:
        raise TransientError(f"Globus: {what} was answered without a {key}")
    return value


def read_documents(reply: Mapping[str, Any], what: str) -> list[Any]:
    """The documents of a list.

    :raises TransientError: when the reply is no list.
    """
    documents = reply.get("DATA")
    if not isinstance(documents, list):
        raise TransientError(f"Globus: {what} was answered without a list")
    return documents
