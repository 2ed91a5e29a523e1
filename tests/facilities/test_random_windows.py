"""Many tasks in one process, each hit at random and killed at random requests: one job, one transfer each.

The chaos suite does this to a whole Airflow; here a hundred times as many windows are opened in a minute,
without one, and a seed leads to the same windows again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from globus_sdk.transport import RequestsTransport

from facilities.errors import FacilityError, TransientError
from facilities.superfacility import operators, submission
from facilities.superfacility.session import SfapiSession
from standin.testing import Facility
from support.globus import Place, Run, making
from support.superfacility import Task

FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "drop_before"},
    {"kind": "drop_reply"},
    {"kind": "truncate"},
    {"kind": "reset"},
    {"kind": "reset", "act": True},
    {"kind": "status", "status": 429},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503},
    {"kind": "status", "status": 504},
    {"kind": "status", "status": 200, "body": "<html>"},
)
TRIES = 12


class Killer:
    """Ends a try like SIGKILL: at one request, before it is sent or after it was answered."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.left = -1
        self.after = False

    def arm(self) -> None:
        """The next try may be killed at one of its first requests, or not at all."""
        self.left = self.draw.randint(0, 12)
        self.after = self.draw.random() < 0.5

    def disarm(self) -> None:
        """Nothing is killed."""
        self.left = -1

    def around(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """The function that sends, with the killer before and after it."""

        def sending(*arguments: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise KeyboardInterrupt
            answer = send(*arguments, **more)
            if self.left == 0:
                raise KeyboardInterrupt
            return answer

        return sending


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for seconds waits for hundredths."""

    async def nap(seconds: float) -> None:
        await asyncio_sleep(min(seconds / 100, 0.05))

    from asyncio import sleep as asyncio_sleep

    monkeypatch.setattr("facilities.superfacility.triggers.jittered_sleep", nap)
    monkeypatch.setattr("facilities.superfacility.session._FIRST_WAIT", 0.01)
    monkeypatch.setattr(operators, "_MIN_WAIT", 0.05)
    monkeypatch.setattr(operators.SfapiSubmitJobOperator, "first_pause", 0.05)
    monkeypatch.setattr(submission, "_SOON", 0.1)


def _tries(run: Run, make: Callable[[], Any], killer: Killer, fault: Callable[[], None]) -> Any:
    """Try after try, as Airflow does, until one succeeds; the last one in peace."""
    for left in range(TRIES, 0, -1):
        if left > 1:
            fault()
            killer.arm()
        else:
            killer.disarm()
        try:
            return run.finish(make)
        except KeyboardInterrupt:
            pass
        except FacilityError as error:
            if not isinstance(error, TransientError):
                raise
        run.retry()
    raise AssertionError("the try in peace has failed, too")


@pytest.mark.parametrize("seed", range(5))
def test_a_submit_has_one_job_whatever_happens_and_wherever_it_is_killed(
    both: Facility, quick: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    killer = Killer(draw)
    monkeypatch.setattr(SfapiSession, "_exchange", killer.around(SfapiSession._exchange))
    both.control("nersc", "set", sacct_lag=0.2, time_scale=0.02, slots=8)
    for number in range(5):
        task = Task(both)
        task.ti.run_id += f"_{seed}_{number}"
        if draw.random() < 0.3:
            task.store = None
        make = task.submit(draw.choice(("true", "exit 3", "sleep 60")), settle=1.0)

        def fault() -> None:
            both.clear_faults()
            if draw.random() < 0.2:
                both.control("nersc", "revoke_tokens")
            for _ in range(draw.randint(0, 2)):
                path = draw.choice(("/compute/jobs/", "/compute/jobs/", "/tasks/", "/account/", "/token", ""))
                method = draw.choice(("POST", None))
                both.fault(service="nersc", path=path, method=method, times=1, **draw.choice(FAULTS))

        job_id = _tries(task, make, killer, fault)
        both.clear_faults()
        killer.disarm()
        task.retry()
        assert task.finish(make) == job_id  # as if its worker had been killed just before the end
        assert [job["job_id"] for job in task.books()] == [job_id], (seed, number, task.books())


@pytest.mark.parametrize("seed", range(5))
def test_a_transfer_moves_its_file_once_whatever_happens_and_wherever_it_is_killed(
    both: Facility, quick: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    killer = Killer(draw)
    monkeypatch.setattr(RequestsTransport, "request", killer.around(RequestsTransport.request))
    for number in range(5):
        run = Run()
        if draw.random() < 0.3:
            run.store = None
        place = Place(both, f"/2023/{seed}/{number}.cxi").write()
        make = making(place)

        def fault() -> None:
            both.clear_faults()
            if draw.random() < 0.2:
                both.control("globus", "revoke_tokens")
            for _ in range(draw.randint(0, 2)):
                path = draw.choice(("/transfer$", "/submission_id", "/task", "/stat", "/token", ""))
                both.fault(service="globus", path=path, times=1, **draw.choice(FAULTS))

        _tries(run, make, killer, fault)
        assert place.at_destination.read_bytes() == place.at_source.read_bytes()
        assert sum(task["files_moved"] for task in place.books()) == 1, (seed, number, place.books())
        assert {task["status"] for task in place.books()} == {"SUCCEEDED"}
