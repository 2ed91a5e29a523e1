"""What many waiting jobs cost: requests are counted at the stand-in."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from facilities.superfacility.hook import SlurmJobSource, SuperfacilityHook, _lists_of_ids
from facilities.superfacility.triggers import SlurmJobTrigger
from standin.testing import Facility, until
from support.globus import first_event
from support.nersc import Nersc, script
from support.superfacility import CONN_ID

WAITS = 200
INTERVAL = 2.0
LOOKS = 4
LONGEST_URL = 8000  # what servers accept as a rule


def looks(facility: Facility) -> list[dict[str, Any]]:
    """The requests about jobs that the stand-in has answered."""
    return [one for one in facility.requests("nersc") if "/compute/jobs/" in one["path"]]


def ids_in(request: dict[str, Any]) -> set[str]:
    """The jobs that a request asks about."""
    return set(unquote(request["query"]).partition("jobid=")[2].partition("&")[0].split(","))


def test_two_hundred_waiting_jobs_cost_one_request_an_interval(nersc: Facility) -> None:
    """Some run, most wait in the queue. squeue is asked once (and again after two minutes)."""
    user = Nersc(nersc)
    ids = [user.submit(script("sleep 600", directives="-t 2880")) for _ in range(WAITS)]
    user.close()
    triggers = [
        SlurmJobTrigger(
            superfacility_conn_id=CONN_ID, machine="perlmutter", remote_id=job_id, deadline=time.time() + 600,
            min_poll_interval=INTERVAL, max_poll_interval=INTERVAL, first_pause=0.01,
        )
        for job_id in ids
    ]  # fmt: skip

    async def wait_for_all() -> tuple[list[dict[str, Any]], float, list[Any]]:
        tasks = [asyncio.create_task(first_event(trigger)) for trigger in triggers]
        await asyncio.to_thread(until, lambda: any(ids_in(one) == set(ids) for one in looks(nersc)))
        nersc.clear_requests()
        began = time.monotonic()
        await asyncio.to_thread(until, lambda: len(looks(nersc)) >= LOOKS)
        seconds = time.monotonic() - began
        seen = await asyncio.to_thread(nersc.requests, "nersc")
        await asyncio.to_thread(nersc.control, "nersc", "end_all")
        return seen, seconds, await asyncio.gather(*tasks)

    nersc.clear_requests()
    seen, seconds, events = asyncio.run(asyncio.wait_for(wait_for_all(), 120))
    accounted = [one for one in seen if "sacct=true" in one["query"]]
    queued = [one for one in seen if "sacct=false" in one["query"]]
    assert len(seen) == len(accounted) + len(queued)  # nothing else was asked: no tokens, no tasks
    assert len(queued) <= 1
    assert len(accounted) <= seconds / (0.9 * INTERVAL) + 1
    assert {frozenset(ids_in(one)) for one in accounted} == {frozenset(ids)}
    assert max(len(one["path"] + one["query"]) for one in seen) < LONGEST_URL
    assert [event["outcome"] for event in events] == ["ended"] * WAITS


def test_more_ids_than_a_url_holds_are_asked_for_in_parts(nersc: Facility, hook: SuperfacilityHook) -> None:
    wanted = [str(31_000_001 + number) for number in range(1000)]
    nersc.clear_requests()
    hook.jobs("perlmutter", wanted, "sacct")
    seen = looks(nersc)
    assert [len(ids_in(one)) for one in seen] == [363, 363, 274]
    assert set().union(*map(ids_in, seen)) == set(wanted)
    assert max(len(one["path"] + one["query"]) for one in seen) < LONGEST_URL


@given(st.sets(st.from_regex(r"[0-9]{1,18}(_[0-9]{1,4})?", fullmatch=True)))
def test_parts_are_whole_and_fit(ids: set[str]) -> None:
    parts = _lists_of_ids(ids)
    assert [job_id for part in parts for job_id in part] == sorted(ids)
    assert all(part and len("%2C".join(part)) <= 4000 for part in parts)


def test_a_thousand_waiting_jobs_are_asked_for_in_turns(nersc: Facility) -> None:
    """squeue is asked once for each turn, and each job's answer is its own."""
    held = script("true", directives="--hold")
    ids = nersc.control("nersc", "submit_many", script=held, count=1000)["job_ids"]
    turns = [frozenset(ids[start : start + 350]) for start in range(0, 1000, 350)]
    nersc.clear_requests()

    async def ask_twice() -> list[Any]:
        source = SlurmJobSource(CONN_ID, "perlmutter")
        assert source.per_request == 350
        try:
            return [await source.fetch(turn) for _ in range(2) for turn in turns]
        finally:
            await source.aclose()

    answers = asyncio.run(ask_twice())
    assert [frozenset(answer) for answer in answers] == turns * 2
    assert {job.reason for answer in answers for job in answer.values()} == {"JobHeldUser"}  # squeue's word
    seen = looks(nersc)
    assert [ids_in(one) for one in seen if "sacct=true" in one["query"]] == turns * 2
    assert [ids_in(one) for one in seen if "sacct=false" in one["query"]] == turns
