"""The trigger that watches the scan folder, against a stand-in Globus; only Airflow's runs are made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from airflow.triggers.shared_stream import SharedStreamManager

from cosmic import noticed_scans, runs, watcher
from cosmic.scans import ScanPath, day_folder, parse_scan_path
from cosmic.watcher import SCAN_FOLDER, NewScansTrigger
from facilities.errors import TransientError
from standin.testing import Facility

Write = Callable[..., Path]
Change = Callable[..., None]
Scans = asyncio.Queue[str]


class AssetStore:
    """The asset's state store."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    async def aget(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = value

    async def adelete(self, key: str) -> None:
        self.values.pop(key, None)


@pytest.fixture
def with_run(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Paths of scans that have a run."""
    known: set[str] = set()

    def ask(scans: Iterable[ScanPath]) -> set[ScanPath]:
        return {scan for scan in scans if str(scan.relative) in known}

    monkeypatch.setattr(runs, "with_a_run", ask)
    return known


@pytest.fixture
def fast(change_site: Change, monkeypatch: pytest.MonkeyPatch) -> Change:
    """The watcher on, looking often."""
    change_site("watcher", enabled=True, interval_seconds=1, min_age_seconds=5)
    monkeypatch.setattr(watcher, "jittered_sleep", lambda seconds: asyncio.sleep(seconds / 20))
    return change_site


def today(number: int, *, days_ago: int = 0, suffix: str = "") -> str:
    day = (datetime.now(ZoneInfo("America/Los_Angeles")) - timedelta(days=days_ago)).date()
    return f"{day_folder(day)}/NS_{day:%y%m%d}{number:03}_ccdframes_0_0{suffix}.cxi"


@asynccontextmanager
async def watching(
    count: int = 1, store: AssetStore | None = None
) -> AsyncIterator[list[asyncio.Queue[str]]]:
    """Run triggers as the triggerer does; gives a queue of scan paths for each."""
    manager, queues, tasks = SharedStreamManager(), [], []
    for number in range(count):
        trigger, queue = NewScansTrigger(), Scans()
        trigger.asset_state_store = store or AssetStore()  # type: ignore[assignment]
        key = trigger.shared_stream_key()
        stream = manager.subscribe(trigger_id=number, trigger=trigger, key=key)

        async def drain(trigger: NewScansTrigger, stream: Any, queue: Scans) -> None:
            async for event in trigger.filter_shared_stream(stream):
                for path in event.payload["scans"]:
                    queue.put_nowait(path)

        queues.append(queue)
        tasks.append(asyncio.create_task(drain(trigger, stream, queue)))
    try:
        yield queues
    finally:
        await manager.stop_all()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def take(queue: Scans, count: int) -> list[str]:
    return sorted([await asyncio.wait_for(queue.get(), 60) for _ in range(count)])


async def looks(standin: Facility, more: int) -> None:
    """Wait until the folder of today has been listed so many times more."""
    before = await asyncio.to_thread(listings, standin)
    deadline = asyncio.get_running_loop().time() + 60
    while await asyncio.to_thread(listings, standin) < before + 2 * more:
        assert asyncio.get_running_loop().time() < deadline, "no more listings"
        await asyncio.sleep(0.02)


def listings(standin: Facility) -> int:
    requests = standin.requests("globus")
    return sum(request["path"].endswith("/ls") and request["status"] == 200 for request in requests)


def test_new_finished_scans_are_told_once_those_of_yesterday_too(
    standin: Facility, write: Write, fast: Change, with_run: set[str]
) -> None:
    old = [today(1, suffix="_a"), today(1, days_ago=1, suffix="_a")]
    for path in old:
        write(path)
    write(today(2, suffix="_a"), age=0)
    write(f"{today(1)[:18]}notes.cxi")

    async def scenario() -> None:
        async with watching() as (queue,):
            assert await take(queue, 2) == sorted(old)
            with_run.update(old)
            await looks(standin, 4)
            assert queue.empty()
            write(today(3, suffix="_a"), age=60)
            assert await take(queue, 1) == [today(3, suffix="_a")]

    asyncio.run(scenario())


def test_a_restart_goes_on_where_it_was(
    standin: Facility, write: Write, fast: Change, with_run: set[str]
) -> None:
    store = AssetStore()
    for number in (1, 2):
        write(today(number, suffix="_b"))
    with_run.update(
        path for n in range(1, 9) for path in (today(n, suffix="_a"), today(n, days_ago=1, suffix="_a"))
    )

    async def first() -> None:
        async with watching(store=store) as (queue,):
            assert await take(queue, 2) == [today(1, suffix="_b"), today(2, suffix="_b")]

    async def second() -> None:
        # The event of the second was lost: no run came of it.
        with_run.add(today(1, suffix="_b"))
        async with watching(store=store) as (queue,):
            assert await take(queue, 1) == [today(2, suffix="_b")]
        with_run.add(today(2, suffix="_b"))

    async def third() -> None:
        async with watching(store=store) as (queue,):
            await looks(standin, 4)
            assert queue.empty()

    asyncio.run(first())
    asyncio.run(second())
    asyncio.run(third())
    remembered = sorted(store.values)
    # Somebody deletes the runs in Airflow: what was dealt with is not begun again.
    with_run.clear()
    asyncio.run(third())
    assert sorted(store.values) == remembered


def test_many_triggers_share_one_listing(
    standin: Facility, write: Write, fast: Change, with_run: set[str]
) -> None:
    write(today(1, suffix="_c"))

    async def scenario() -> None:
        async with watching(5) as queues:
            for queue in queues:
                while await take(queue, 1) != [today(1, suffix="_c")]:
                    pass
            before = listings(standin)
            started = asyncio.get_running_loop().time()
            await looks(standin, 6)
            seconds = asyncio.get_running_loop().time() - started
            # Two folders a look, one look an interval (a twentieth of a second here), however many listen.
            assert listings(standin) - before <= 2 * (seconds / 0.05 + 2)

    asyncio.run(scenario())


def test_off_means_that_nothing_is_listed_and_on_is_noticed_without_a_restart(
    standin: Facility, write: Write, fast: Change, with_run: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast("watcher", enabled=False)
    monkeypatch.setattr(watcher, "OFF_SLEEP", 0.05)
    write(today(1, suffix="_d"))
    standin.clear_requests()

    async def scenario() -> None:
        async with watching() as (queue,):
            await asyncio.sleep(0.5)  # nothing to wait for: nothing is to happen
            assert standin.requests("globus") == []
            fast("watcher", enabled=True)
            while await take(queue, 1) != [today(1, suffix="_d")]:
                pass

    asyncio.run(scenario())


def test_an_outage_is_waited_for(
    standin: Facility,
    write: Write,
    fast: Change,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runs, "with_a_run", lambda _: set())
    write(today(1, suffix="_e"))
    answers = iter([TransientError("Globus does not answer"), TransientError("Globus does not answer")])
    lister = watcher.list_folders

    def shaky(site: Any) -> Any:
        if (error := next(answers, None)) is not None:
            raise error
        return lister(site)

    monkeypatch.setattr(watcher, "list_folders", shaky)

    async def scenario() -> None:
        async with watching() as (queue,):
            while await take(queue, 1) != [today(1, suffix="_e")]:
                pass

    asyncio.run(scenario())
    assert capsys.readouterr().out.count("The scan folder cannot be listed; trying again.") == 2


def test_airflow_not_answering_loses_nothing(
    standin: Facility, write: Write, fast: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(today(1, suffix="_f"))
    answers = iter([ConnectionError("refused")])

    def ask(scans: Iterable[ScanPath]) -> set[ScanPath]:
        if (error := next(answers, None)) is not None:
            raise error
        return set()

    monkeypatch.setattr(runs, "with_a_run", ask)

    async def scenario() -> None:
        async with watching() as (queue,):
            while await take(queue, 1) != [today(1, suffix="_f")]:
                pass

    asyncio.run(scenario())


def test_it_is_stored_without_arguments_and_belongs_to_the_asset() -> None:
    (watch,) = SCAN_FOLDER.watchers
    assert watch.trigger.serialize() == ("cosmic.watcher.NewScansTrigger", {})


# The DAG that starts what was noticed


class Event:
    def __init__(self, *paths: str) -> None:
        self.extra = {"payload": {"scans": list(paths)}}


def noticed(monkeypatch: pytest.MonkeyPatch, *events: Event) -> tuple[Any, dict[str, dict[str, Any]]]:
    started: dict[str, dict[str, Any]] = {}

    def start(run_id: str, conf: dict[str, Any], note: str) -> bool:
        if run_id.endswith("known"):
            return False
        return started.setdefault(run_id, conf) is conf

    monkeypatch.setattr(runs, "start", start)
    context = {"triggering_asset_events": {SCAN_FOLDER: list(events)}}
    monkeypatch.setattr(noticed_scans, "get_current_context", lambda: context)
    return noticed_scans.start_noticed(), started


def test_each_scan_of_all_events_is_started_once(standin: Facility, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [today(n) for n in (1, 2, 3)]
    result, started = noticed(monkeypatch, Event(paths[0], paths[1]), Event(paths[1], paths[2]))
    assert result == {"started": paths, "known": []}
    assert started == {
        parse_scan_path(path).run_id(): {"do_ptychocam": True, "file_path": path} for path in paths
    }


def test_started_by_hand_it_starts_nothing(standin: Facility, monkeypatch: pytest.MonkeyPatch) -> None:
    assert noticed(monkeypatch) == ({"started": [], "known": []}, {})
