"""Whether a client may use a collection now, and what Globus answers when it may not."""

from __future__ import annotations

import json
from typing import Any, Literal

from standin.globus import scopes
from standin.globus.auth import Auth
from standin.globus.collections import OUTAGES, Collection
from standin.globus.errors import TransferError

Operation = Literal["ls", "stat", "mkdir", "rename"]

_LISTING_FAILED = "ExternalError.DirListingFailed"
_NO_ACCOUNT = (
    "Identity set contains an identity from an allowed domain, "
    "but it does not map to a valid username for this connector"
)
_NO_SESSION = "None of your authenticated identities are from domains allowed by resource policies"


def require_operation(auth: Auth, owner_id: str, collection: Collection, operation: Operation) -> None:
    """Check that an operation in the foreground may be tried.

    :raises TransferError: 403 for a missing consent or an authentication policy, 409 while the collection's
        manager pauses it, 502 for an endpoint that does not answer or refuses the client's login.
    """
    _require_consent(auth, owner_id, collection)
    if collection.pause_rule and collection.pauses("ls" if operation == "stat" else operation):
        raise TransferError(
            409,
            "OperationPaused",
            f"The manager of endpoint '{collection.display_name}' has paused this operation: "
            f"{collection.pause_rule['message']}",
        )
    outage = OUTAGES.get(collection.condition)
    if outage is not None:
        listing = operation == "ls" and outage.listing
        code = f"{_LISTING_FAILED}.{outage.listing}" if listing else "EndpointError"
        raise TransferError(502, code, collection.report(outage.action, outage.message))
    _require_policy(collection)
    if collection.refusal is not None:
        message = f"Command Failed: {_login_failed(collection)}"
        raise TransferError(502, f"{_LISTING_FAILED}.LoginFailed", message, **_parameters(collection))


def require_submission(auth: Auth, owner_id: str, collection: Collection) -> None:
    """Check that a task may be submitted. A pause or an outage does not prevent that.

    :raises TransferError: 403 for a missing consent, an authentication policy or a login that is refused.
    """
    _require_consent(auth, owner_id, collection)
    _require_policy(collection)
    if collection.refusal is not None:
        name = f"{collection.display_name} ({collection.collection_id})"
        message = f"Error validating login to endpoint '{name}', {_login_failed(collection)}"
        raise TransferError(403, "PermissionDenied", message, **_parameters(collection))


def _require_consent(auth: Auth, owner_id: str, collection: Collection) -> None:
    if collection.needs_consent and not auth.has_data_access(owner_id, collection.collection_id):
        access = scopes.data_access(collection.collection_id)
        needed = f"urn:globus:auth:scope:transfer.api.globus.org:all[*{access}]"
        raise TransferError(
            403, "ConsentRequired", "Missing required data_access consent", required_scopes=[needed]
        )


def _require_policy(collection: Collection) -> None:
    if collection.refusal == "policy":
        message = collection.requires.get("session_message", "An authentication policy is not satisfied")
        raise TransferError(403, "AuthorizationRequired", message, **_parameters(collection))


def _parameters(collection: Collection) -> dict[str, Any]:
    return {"authorization_parameters": collection.requires} if collection.requires else {}


def _login_failed(collection: Collection) -> str:
    """The reply of a GridFTP server that refuses a login, as Globus passes it on."""
    why = _NO_SESSION if collection.requires else _NO_ACCOUNT
    answer = {
        "DATA_TYPE": "result#1.1.0",
        **_parameters(collection),
        "code": "permission_denied",
        "has_next_page": False,
        "http_response_code": 403,
        "message": why,
    }
    lines = (
        "530-Login incorrect. : Mapping collection to specified ID failed.",
        "530-GlobusError: v=1 c=LOGIN_DENIED",
        f"530-GridFTP-Message: {why}",
        f"530-GridFTP-JSON-Result: {json.dumps(answer)}",
        "530 End.",
    )
    return collection.report("login", "Login Failed", "\\r\\n".join(lines))
