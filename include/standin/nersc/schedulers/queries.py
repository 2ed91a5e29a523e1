"""Selects the jobs that squeue and sacct list for a set of options."""

from __future__ import annotations

import pwd
import re
from collections.abc import Callable, Mapping
from zoneinfo import ZoneInfo

from standin.nersc.schedulers.durations import parse_moment
from standin.nersc.schedulers.interface import Query, QueryError
from standin.nersc.schedulers.job import Job
from standin.nersc.schedulers.rows import sacct_state, squeue_state
from standin.nersc.schedulers.states import COMPACT

IDS = frozenset({"jobid", "jobs", "job", "j"})
_JOB_ID = re.compile(r"\d{1,18}(_\d{1,9})?", re.ASCII)
WIDEST = 61 * 86400.0


def _names(state: str) -> tuple[str, str]:
    """A state's name and its short form."""
    return state, COMPACT.get(state, state)


Match = Callable[[Job, str], bool]
_COMMON: dict[str, Match] = {
    "user": lambda job, value: value in (job.user, str(job.uid)),
    "account": lambda job, value: value.lower() == job.account.lower(),
    "partition": lambda job, value: value == job.partition,
    "qos": lambda job, value: value.lower() in (job.qos.lower(), job.asked_qos.lower()),
    "name": lambda job, value: value.lower() == job.name.lower(),
}
_SQUEUE = _COMMON | {
    "states": lambda job, value: value.upper() in ("ALL", *_names(squeue_state(job))),
}
_SACCT = _COMMON | {
    "state": lambda job, value: value.upper() in _names(sacct_state(job).partition(" ")[0]),
}
SYNONYMS = {"users": "user", "accounts": "account", "partitions": "partition", "names": "name"}


def keep_squeue(job: Job, filters: Mapping[str, str]) -> bool:
    """Whether squeue lists an unfinished job."""
    return _matches(job, filters, {"state": "states"} | SYNONYMS, _SQUEUE)


def keep_sacct(job: Job, query: Query, until: float) -> bool:
    """Whether sacct lists a job.

    Unless it is named by its id, a job that never became eligible (held, or waiting for another) is not
    listed, not even after it was cancelled.
    """
    if query.job_ids is None and (job.eligible is None or job.eligible > until):
        return False
    return _matches(job, query.filters, {"states": "state"} | SYNONYMS, _SACCT)


def _matches(
    job: Job, filters: Mapping[str, str], synonyms: Mapping[str, str], known: Mapping[str, Match]
) -> bool:
    return all(
        any(known[synonyms.get(name, name)](job, part.strip()) for part in value.split(","))
        for name, value in filters.items()
        if synonyms.get(name, name) in known
    )


def check_filters(command: str, filters: Mapping[str, str], own_user: str) -> None:
    """Refuse options that the command does not have, and users that do not exist.

    :raises QueryError: in the command's words.
    """
    known = IDS | set(SYNONYMS) | set(_COMMON) | {"state", "states"}
    if command == "sacct":
        known |= {"starttime", "endtime"}
    for name, value in filters.items():
        if name not in known:
            raise QueryError(
                f"{command}: unrecognized option '--{name}'\nTry \"{command} --help\" for more information"
            )
        if name in ("user", "users"):
            for user in value.split(","):
                _check_user(command, user.strip(), own_user)
        if name in IDS and not all(_JOB_ID.fullmatch(part.strip()) for part in value.split(",")):
            raise QueryError(f"{command}: error: Invalid job id: {value}")


def _check_user(command: str, user: str, own_user: str) -> None:
    if user == own_user or user.isdigit():
        return
    try:
        pwd.getpwnam(user)
    except (KeyError, ValueError) as error:
        what = "Invalid user" if command == "squeue" else "sacct: error: Invalid user id"
        raise QueryError(f"{what}: {user}") from error


def sacct_window(query: Query, zone: ZoneInfo, now: float) -> tuple[float, float]:
    """From when to when sacct looks: since midnight, unless ids or times are given.

    :raises QueryError: for a time that cannot be read, or more than about two months.
    """
    midnight = parse_moment("today", zone, now)
    try:
        until = parse_moment(query.filters["endtime"], zone, now) if "endtime" in query.filters else now
        since = parse_moment(query.filters["starttime"], zone, now) if "starttime" in query.filters else None
    except ValueError as error:
        raise QueryError(f"sacct: error: Invalid time specification ({error})") from error
    if query.cached:
        return max(since or midnight, midnight), until
    if since is None:
        return (0.0 if query.job_ids is not None else midnight), until
    if until - since > WIDEST:
        raise QueryError("sacct: error: slurmdbd: Too wide of a date range in query")
    return since, until
