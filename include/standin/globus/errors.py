"""Makes errors in the dialects of Globus Transfer and Globus Auth, and the faults of a running task."""

from __future__ import annotations

import errno
import secrets
import string
from typing import Any

_ALPHABET = string.ascii_letters + string.digits


def request_id() -> str:
    """Nine random characters, as Transfer puts into each reply."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


class TransferError(Exception):
    """A Transfer request that is refused: HTTP status, code, message, and further keys of the reply."""

    def __init__(self, status: int, code: str, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.extra = extra

    def to_json(self, resource: str) -> dict[str, Any]:
        """The body of the reply."""
        return {
            "code": self.code,
            "message": self.message,
            "request_id": request_id(),
            "resource": resource,
            **self.extra,
        }


def bad_request(message: str, detail: str = "") -> TransferError:
    """A request that is malformed; `detail` makes the code more precise."""
    return TransferError(400, f"ClientError.BadRequest{'.' + detail if detail else ''}", message)


class OAuthError(Exception):
    """A token request that is refused, in OAuth's own dialect."""

    def __init__(self, status: int, error: str, description: str = "") -> None:
        super().__init__(description or error)
        self.status = status
        self.error = error
        self.description = description

    def to_json(self) -> dict[str, str]:
        """The body of the reply."""
        body = {"error": self.error}
        if self.description:
            body["error_description"] = self.description
        return body


class TaskFaultError(Exception):
    """What goes wrong with one path of a running task.

    :param code: Globus's code, such as FILE_NOT_FOUND.
    :param skippable: whether skip_source_errors passes over it.
    :param fatal: whether it ends the task; other faults are tried again until the deadline.
    """

    def __init__(self, code: str, details: str, *, skippable: bool = False, fatal: bool = False) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details
        self.skippable = skippable
        self.fatal = fatal

    @property
    def description(self) -> str:
        """The code in words."""
        return self.code.replace("_", " ").lower()


_CODES = {
    errno.ENOENT: "FILE_NOT_FOUND",
    errno.EACCES: "PERMISSION_DENIED",
    errno.EPERM: "PERMISSION_DENIED",
    errno.EROFS: "PERMISSION_DENIED",
    errno.ELOOP: "ENDPOINT_ERROR",  # Globus has no code of its own for it
    errno.EISDIR: "IS_A_DIRECTORY",
    errno.ENOTDIR: "NOT_A_DIRECTORY",
    errno.EEXIST: "NOT_A_DIRECTORY",  # a file where a folder must be made
    errno.ENOSPC: "NO_SPACE_LEFT",
    errno.EDQUOT: "QUOTA_EXCEEDED",
    errno.ETIMEDOUT: "TIMEOUT",
}


def fault_from_os_error(error: OSError, path: str, *, source: bool = False) -> TaskFaultError:
    """The fault that an operating-system error on a path amounts to."""
    code = _CODES.get(error.errno or 0, "UNKNOWN")
    details = f"Path: {path}; error: {error.strerror or error}"
    return TaskFaultError(code, details, skippable=source and code in ("FILE_NOT_FOUND", "PERMISSION_DENIED"))
