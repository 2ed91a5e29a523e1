"""Turns globus_sdk's exceptions, and replies that cannot be read, into errors of `facilities.errors`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import globus_sdk
from globus_sdk.exc import AuthorizationParameterInfo

from facilities.errors import (
    CredentialsError,
    FacilityError,
    LostReplyError,
    NotFoundError,
    TransientError,
    UserError,
)
from facilities.globus.model import condense

_ENDPOINT = re.compile(r"^Endpoint: (.+)$", re.MULTILINE)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class ExistsError(UserError):
    """The folder or file that was to be made exists already."""


class SubmissionConflictError(TransientError):
    """A living task moves the same paths; Globus does not say which."""


class PausedError(TransientError):
    """The collection's manager has paused what was asked for."""


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

    @property
    def identity(self) -> str:
        """The client's own identity: collections give permissions to this name."""
        return f"{self.client_id}@clients.auth.globus.org"


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
        next_step="look at https://status.globus.org if it stays so.",
        details=details,
    )


def _network_failure(error: globus_sdk.NetworkError, call: Call) -> TransientError:
    never_sent = isinstance(error, globus_sdk.GlobusConnectionTimeoutError)
    kind = LostReplyError if call.changes and not never_sent else TransientError
    return kind(
        f"Globus: {call.what} got no answer",
        remote_id=call.remote_id,
        next_step="check the network and https://status.globus.org if it stays so.",
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
    if code == "ConsentRequired":
        return _consent_required(error, call)
    if error.info.authorization_parameters or "LOGIN_DENIED" in (error.message or ""):
        return _login_refused(error, call)
    if code in ("EndpointNotFound", "EndpointDeleted"):
        return _no_collection(error, call)
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


def _no_collection(error: globus_sdk.GlobusAPIError, call: Call) -> UserError:
    """Not a `NotFoundError`: that would be read as a missing file."""
    named = _UUID.search(error.message or "")
    state = "has been deleted" if error.code == "EndpointDeleted" else "does not exist"
    return UserError(
        f"Globus: the collection {state} ({call.what})",
        remote_id=named[0] if named else call.remote_id,
        next_step="give the id of a collection that exists, as its page at https://app.globus.org shows it.",
        details=_message_of(error),
    )


def _consent_required(error: globus_sdk.GlobusAPIError, call: Call) -> CredentialsError:
    return CredentialsError(
        f"Globus: {call.what} needs a consent (data_access) that the client does not have",
        remote_id=call.remote_id,
        next_step=f"grant it to {call.identity} on the collection, then clear the task.",
        details=_message_of(error),
    )


def _login_refused(error: globus_sdk.GlobusAPIError, call: Call) -> CredentialsError:
    """The collection does not know the client, or asks for a session that a client cannot have."""
    needs = _session_needs(error.info.authorization_parameters)
    where = _collection_in(error)
    if needs:
        what = f"Globus: {where} refuses the client's login, it asks for {needs} ({call.what})"
        step = f"share the folder with {call.identity} in a guest collection without that requirement"
    else:
        what = f"Globus: the client has no account on {where} ({call.what})"
        step = (
            f"map {call.identity} to an account there, or to share the folder with it in a guest collection"
        )
    return CredentialsError(
        what,
        remote_id=call.remote_id,
        next_step=f"ask the collection's manager to {step}; then clear the task.",
        details=_message_of(error),
    )


def _collection_in(error: globus_sdk.GlobusAPIError) -> str:
    """Name and id of the collection that an endpoint's report is about, when it is one."""
    named = _ENDPOINT.search(error.message or "")
    return f"collection {named[1]}" if named else "the collection"


def _session_needs(needed: AuthorizationParameterInfo) -> str:
    """What a session has to have, for people; empty when nothing is asked for."""
    lists = {
        "identity": needed.session_required_identities,
        "an identity of the domain": needed.session_required_single_domain,
        "authentication policy": needed.session_required_policies,
    }
    needs = [f"{name} {' or '.join(values)}" for name, values in lists.items() if values]
    if needed.session_required_mfa:
        needs.append("multi-factor authentication")
    if not needs and needed:
        needs.append("another session")
    message = f" ({needed.session_message})" if needs and needed.session_message else ""
    return " and ".join(needs) + message


def _forbidden(error: globus_sdk.GlobusAPIError, call: Call) -> UserError:
    return UserError(
        f"Globus: permission denied for {call.what}",
        remote_id=call.remote_id,
        next_step=f"give {call.identity} access to the path on the collection, then clear the task.",
        details=_message_of(error),
    )


def _conflict(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    code = error.code or ""
    if code.endswith("Exists"):
        return ExistsError(f"Globus: {call.what}: it exists already", remote_id=call.remote_id)
    if "GCDisconnected" in code or "GCPaused" in code:
        return _outage(error, call)
    waits = {
        "Conflict": (
            SubmissionConflictError,
            "another task works on the same paths",
            "look for the other task at https://app.globus.org/activity, and cancel it if it is not wanted.",
        ),
        "TooManyPendingJobs": (
            TransientError,
            "the client has as many unfinished tasks as Globus allows",
            "look for its tasks at https://app.globus.org/activity, and cancel those that are not wanted.",
        ),
        "OperationPaused": (
            PausedError,
            "the collection's manager has paused it",
            "ask the collection's manager when it goes on.",
        ),
    }
    if code.rsplit(".", 1)[-1] not in waits:
        return _refused(error, call)
    kind, why, next_step = waits[code.rsplit(".", 1)[-1]]
    return kind(
        f"Globus: {call.what} has to wait, {why}",
        remote_id=call.remote_id,
        next_step=next_step,
        details=_message_of(error),
    )


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
    if reason in ("NotDirectory", "NotSupported", "IsDirectory") or "levels of symbolic links" in text:
        return _refused(error, call)
    return _outage(error, call)


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


def _outage(error: globus_sdk.GlobusAPIError, call: Call) -> TransientError:
    """The collection, not Globus, cannot at the moment."""
    kind = LostReplyError if call.changes and error.http_status >= 500 else TransientError
    report = condense(error.message or error.code or "")[:300]
    return kind(
        f"Globus: the collection cannot be used for {call.what}: {report}",
        remote_id=call.remote_id,
        next_step="ask the collection's manager if it stays so.",
        details=_message_of(error),
    )


def _busy(error: globus_sdk.GlobusAPIError, call: Call) -> TransientError:
    kind = LostReplyError if call.changes and error.http_status >= 500 else TransientError
    steps = {429: "look for what else sends many requests with the same client."}
    return kind(
        f"Globus: {call.what} cannot be done at the moment (HTTP {error.http_status})",
        remote_id=call.remote_id,
        next_step=steps.get(error.http_status, "look at https://status.globus.org if it stays so."),
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
    lines = text[:1000].replace("\\r\\n", "\n")  # of a GridFTP server, as Globus passes them on
    return f"Globus says: {lines}{request}"


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
