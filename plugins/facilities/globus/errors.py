"""Turns globus_sdk's exceptions, and replies that cannot be read, into errors of `facilities.errors`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

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
from facilities.globus.connection import GlobusSettings
from facilities.globus.model import condense
from facilities.retries import asked_pause

E = TypeVar("E", bound=FacilityError)
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
    client: GlobusSettings
    changes: bool = False  # the request changes something at Globus, so a lost reply leaves doubt

    @property
    def lost(self) -> type[TransientError]:
        """The class of error when it may have been acted on."""
        return LostReplyError if self.changes else TransientError

    def failure(
        self, kind: type[E], what: str, next_step: str, details: str, retry_after: float | None = None
    ) -> E:
        """The error that the call has failed with."""
        return kind(
            what, remote_id=self.remote_id, next_step=next_step, details=details, retry_after=retry_after
        )


_BY_CODE: Mapping[str, tuple[type[FacilityError], str, str]] = {
    "ConsentRequired": (
        CredentialsError,
        "Globus: {what} needs a consent (data_access) that the client does not have",
        "grant it to {identity} on the collection, then clear the task.",
    ),
    "403": (
        UserError,
        "Globus: permission denied for {what}",
        "give {identity} access to the path on the collection, then clear the task.",
    ),
    "NotFound": (
        NotFoundError,
        "Globus: {what}: the collection has no such path",
        "check the path on the collection.",
    ),
    "404": (
        NotFoundError,
        "Globus does not know what was asked for ({what})",
        "check the path and the collection's id.",
    ),
    "Exists": (ExistsError, "Globus: {what}: it exists already", ""),
    "Conflict": (
        SubmissionConflictError,
        "Globus: {what} has to wait, another task works on the same paths",
        "look for the other task at https://app.globus.org/activity, and cancel it if it is not wanted.",
    ),
    "TooManyPendingJobs": (
        TransientError,
        "Globus: {what} has to wait, the client has as many unfinished tasks as Globus allows",
        "look for its tasks at https://app.globus.org/activity, and cancel those that are not wanted.",
    ),
    "OperationPaused": (
        PausedError,
        "Globus: {what} has to wait, the collection's manager has paused it",
        "ask the collection's manager when it goes on.",
    ),
}
"""Class, message and next step by the end of the code, or by HTTP status."""


def explain(error: Exception, call: Call) -> FacilityError:
    """Turn an exception of globus_sdk into the right facility error."""
    if isinstance(error, FacilityError):
        return error
    if isinstance(error, globus_sdk.AuthAPIError):
        return _auth_failure(error, call)
    if isinstance(error, globus_sdk.GlobusAPIError):
        return _api_failure(error, call)
    if isinstance(error, globus_sdk.NetworkError):
        never_sent = isinstance(error, globus_sdk.GlobusConnectionTimeoutError)
        return call.failure(
            TransientError if never_sent else call.lost,
            f"Globus: {call.what} got no answer",
            "check the network and https://status.globus.org if it stays so.",
            f"{error} ({type(error.underlying_exception).__name__})",
        )
    if isinstance(error, globus_sdk.GlobusError):
        return call.failure(
            UserError,
            f"Globus: {call.what} is not possible",
            f"check connection '{call.client.conn_id}' and the task's arguments.",
            str(error),
        )
    return unreadable(call, f"{type(error).__name__}: {error}")


def unreadable(call: Call, details: str) -> TransientError:
    """The reply came but cannot be read; for a change that leaves in doubt whether it was done."""
    what = f"Globus: {call.what} was answered with something that cannot be read"
    return call.failure(call.lost, what, "look at https://status.globus.org if it stays so.", details)


def _auth_failure(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    if error.http_status == 429 or error.http_status >= 500:
        return _busy(error, call)
    return CredentialsError(
        f"Globus Auth refuses the client of connection '{call.client.conn_id}' while {call.what}",
        remote_id=call.client.client_id,
        next_step="put a valid client id and secret into the connection (a secret is made at "
        "https://app.globus.org/settings/developers), then clear the task.",
        details=_message_of(error),
    )


def _api_failure(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    code = error.code or ""
    if code == "ConsentRequired":
        return _by_code(code, error, call)
    if error.info.authorization_parameters or "LOGIN_DENIED" in (error.message or ""):
        return _login_refused(error, call)
    if code in ("EndpointNotFound", "EndpointDeleted"):
        return _no_collection(error, call)
    if "ExternalError" in code or "EndpointError" in code:
        return _collection_failure(error, call)
    if error.http_status == 401 or "AuthenticationFailed" in code:
        return _auth_failure(error, call)
    return _by_status(error, call)


def _by_status(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    if error.http_status == 409:
        return _conflict(error, call)
    if error.http_status in (403, 404):
        return _by_code(str(error.http_status), error, call)
    is_busy = error.http_status == 429 or error.http_status >= 500
    return _busy(error, call) if is_busy else _refused(error, call)


def _by_code(code: str, error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    kind, what, next_step = _BY_CODE[code]
    values = {"what": call.what, "identity": call.client.identity}
    return call.failure(kind, what.format_map(values), next_step.format_map(values), _message_of(error))


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


def _login_refused(error: globus_sdk.GlobusAPIError, call: Call) -> CredentialsError:
    """The collection does not know the client, or asks for a session that a client cannot have."""
    needs = _session_needs(error.info.authorization_parameters)
    who, named = call.client.identity, _ENDPOINT.search(error.message or "")
    where = f"collection {named[1]}" if named else "the collection"
    if needs:
        what = f"Globus: {where} refuses the client's login, it asks for {needs} ({call.what})"
        step = f"share the folder with {who} in a guest collection without that requirement"
    else:
        what = f"Globus: the client has no account on {where} ({call.what})"
        step = f"map {who} to an account there, or to share the folder with it in a guest collection"
    next_step = f"ask the collection's manager to {step}; then clear the task."
    return call.failure(CredentialsError, what, next_step, _message_of(error))


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


def _conflict(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    full, code = error.code or "", (error.code or "").rsplit(".", 1)[-1]
    if code.endswith("Exists"):
        return _by_code("Exists", error, call)
    if "GCDisconnected" in full or "GCPaused" in full:
        return _outage(error, call)
    return _by_code(code, error, call) if code in _BY_CODE else _refused(error, call)


def _collection_failure(error: globus_sdk.GlobusAPIError, call: Call) -> FacilityError:
    reason = (error.code or "").rsplit(".", 1)[-1]
    text = f"{reason} {error.message or ''}".lower()
    if reason == "Exists":
        return _by_code("Exists", error, call)
    if reason == "NotFound" or "no such file" in text:
        return _by_code("NotFound", error, call)
    if reason in ("PermissionDenied", "EndpointPermissionDenied"):
        return _by_code("403", error, call)
    if reason in ("NotDirectory", "NotSupported", "IsDirectory") or "levels of symbolic links" in text:
        return _refused(error, call)
    return _outage(error, call)


def _refused(error: globus_sdk.GlobusAPIError, call: Call) -> UserError:
    details = _message_of(error)
    is_about_id = "submission_id" in details or "submission id" in details.lower()
    what = f"Globus refuses {call.what} (HTTP {error.http_status})"
    kind = SubmissionIdError if is_about_id else UserError
    return call.failure(kind, what, "correct what Globus names below.", details)


def _outage(error: globus_sdk.GlobusAPIError, call: Call) -> TransientError:
    """The collection, not Globus, cannot at the moment."""
    report = condense(error.message or error.code or "")[:300]
    return call.failure(
        call.lost if error.http_status >= 500 else TransientError,
        f"Globus: the collection cannot be used for {call.what}: {report}",
        "ask the collection's manager if it stays so.",
        _message_of(error),
    )


def _busy(error: globus_sdk.GlobusAPIError, call: Call) -> TransientError:
    steps = {429: "look for what else sends many requests with the same client."}
    return call.failure(
        call.lost if error.http_status >= 500 else TransientError,
        f"Globus: {call.what} cannot be done at the moment (HTTP {error.http_status})",
        steps.get(error.http_status, "look at https://status.globus.org if it stays so."),
        _message_of(error),
        retry_after=asked_pause(error.headers),
    )


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
