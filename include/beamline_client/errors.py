"""Exit codes of the command, and the errors that lead to them."""

from __future__ import annotations

from typing import Iterable

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


class InputError(ClientError):
    """A path, parameter or setting is wrong; nothing was sent."""

    exit_code = BAD_INPUT


class SpoolError(ClientError):
    """The spool folder cannot be written or read."""

    exit_code = BAD_INPUT


class LockedError(ClientError):
    """Another process holds the lock."""

    exit_code = SPOOLED


class RefusedError(ClientError):
    """Airflow refuses access (credentials, role, certificate, address): no request would pass."""

    exit_code = REFUSED


class RejectedError(ClientError):
    """Airflow finds this one request wrong."""

    exit_code = REFUSED


class RetryLaterError(ClientError):
    """Airflow cannot take this request at the moment (the DAG is missing or broken), but may later."""

    exit_code = SPOOLED


class UnexpectedReplyError(ClientError):
    """Airflow, or a proxy before it, gave an answer that the API does not define."""

    exit_code = REFUSED


class NoSuchRunError(ClientError):
    """Airflow does not know the run."""

    exit_code = NO_SUCH_RUN


class UnreachableError(ClientError):
    """No usable answer within the time limit."""

    exit_code = UNREACHABLE


class ServerFaultError(UnreachableError):
    """Airflow can be reached, but answered 500 to this request each time."""
