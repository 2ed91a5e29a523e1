"""Exit codes of the command, and the errors that lead to them."""

from __future__ import annotations

from typing import Any, Iterable, Optional

ACCEPTED, BAD_INPUT, SPOOLED, REFUSED, RUN_FAILED = 0, 2, 3, 4, 5
NO_SUCH_RUN, UNREACHABLE, STILL_RUNNING, INTERRUPTED = 6, 7, 8, 130
_WORST_FIRST = (
    1,
    BAD_INPUT,
    REFUSED,
    UNREACHABLE,
    SPOOLED,
    RUN_FAILED,
    NO_SUCH_RUN,
    STILL_RUNNING,
    ACCEPTED,
)


def worst_exit_code(codes: Iterable[int]) -> int:
    """The exit code of a command with several outcomes."""
    return min(codes, key=_WORST_FIRST.index, default=ACCEPTED)


class ClientError(Exception):
    """Base of this client's errors; the message says what failed and what to do next."""

    exit_code = 1

    def __init_subclass__(cls, *, exit_code: Optional[int] = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.exit_code = cls.exit_code if exit_code is None else exit_code


class InputError(ClientError, exit_code=BAD_INPUT):
    """A path, parameter or setting is wrong; nothing was sent."""


class SpoolError(ClientError, exit_code=BAD_INPUT):
    """The spool folder cannot be written or read."""


class LockedError(ClientError, exit_code=SPOOLED):
    """Another process holds the lock."""


class RefusedError(ClientError, exit_code=REFUSED):
    """Airflow refuses access (credentials, role, certificate, address): no request would pass."""


class RejectedError(ClientError, exit_code=REFUSED):
    """Airflow finds this one request wrong."""


class RetryLaterError(ClientError, exit_code=SPOOLED):
    """Airflow cannot take this request at the moment (the DAG is missing or broken), but may later."""


class UnexpectedReplyError(ClientError, exit_code=REFUSED):
    """Airflow, or a proxy before it, gave an answer that the API does not define."""


class NoSuchRunError(ClientError, exit_code=NO_SUCH_RUN):
    """Airflow does not know the run."""


class UnreachableError(ClientError, exit_code=UNREACHABLE):
    """No usable answer within the time limit."""


class ServerFaultError(UnreachableError):
    """Airflow can be reached, but answered 500 to this request each time."""
