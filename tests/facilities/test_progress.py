"""Live progress of waits: from the polls of triggers to who reads it, and that nothing depends on it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from facilities import progress
from facilities.globus.model import TaskSnapshot
from facilities.globus.trigger import GlobusTaskTrigger
from facilities.polling import Answer
from facilities.progress import Progress, Wait, forget_progress, note_progress, read_progress
from facilities.superfacility.slurm import SlurmJob, parse_state
from facilities.superfacility.triggers import SlurmJobTrigger
from support.superfacility import eventually


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where progress is written, often."""
    monkeypatch.setenv("AIRFLOW__FACILITIES__PROGRESS_FOLDER", str(tmp_path / "progress"))
    monkeypatch.setattr(progress, "WRITE_EVERY", 0.01)
    return tmp_path / "progress"


@dataclass
class Ti:
    """A task instance."""

    run_id: str
    dag_id: str = "dag"
    task_id: str = "wait"
    map_index: int | None = -1


def test_all_waits_of_a_process_are_in_one_file_until_they_end(folder: Path) -> None:
    def files() -> list[Path]:
        return list(folder.iterdir())

    async def waits() -> None:
        tis = [Ti(f"run {n}") for n in range(50)]
        for ti in tis:
            note_progress(ti, Progress("RUNNING", elapsed=60, limit=120))
        note_progress(Ti("mapped", map_index=3), Progress("ACTIVE", 1, 2, 3.5, trouble="paused"))
        await eventually(lambda: len(read_progress()) == 51)
        assert len(files()) == 1
        assert read_progress()[Wait("dag", "run 7", "wait")] == Progress("RUNNING", elapsed=60, limit=120)
        assert read_progress()[Wait("dag", "mapped", "wait", 3)].trouble == "paused"
        note_progress(tis[7], Progress("RUNNING", elapsed=70, limit=120))
        await eventually(lambda: read_progress()[Wait("dag", "run 7", "wait")].elapsed == 70)
        for ti in [*tis, Ti("mapped", map_index=3)]:
            forget_progress(ti)
        await eventually(lambda: not files())

    asyncio.run(waits())
    assert read_progress() == {}


def test_fifteen_thousand_waits_are_written_and_read(folder: Path) -> None:
    """As many as a triggerer may hold; the file stays below what readers take, with room for long ids."""
    known = Progress(
        "PENDING", start_estimate="2026-11-25T08:00:00-08:00", trouble="held (JobHeldUser)", limit=3600
    )
    waits = {
        Wait("transfer_auto_recon", f"NS_{n:09}_0_0__r2", "ptychocam.wait"): known for n in range(15_000)
    }

    def files() -> list[Path]:
        return list(folder.glob("*.json"))

    async def write() -> None:
        for wait, one in waits.items():
            note_progress(Ti(wait.run_id, wait.dag_id, wait.task_id), one)
        await eventually(lambda: len(read_progress()) == len(waits))
        (file,) = files()
        assert file.stat().st_size < progress._MAX_BYTES / 4
        assert read_progress() == waits
        for wait in waits:
            forget_progress(Ti(wait.run_id, wait.dag_id, wait.task_id))
        await eventually(lambda: not files())

    asyncio.run(write())


def test_a_write_that_took_long_does_not_make_readers_take_its_writer_for_dead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause in proportion to a write of ten minutes would be hours."""
    monkeypatch.setattr(progress, "_REST", 1e9)
    monkeypatch.setattr(progress, "_REPEAT_AFTER", 0.05)

    async def waits() -> None:
        note_progress(Ti("run"), Progress("PENDING"))
        await eventually(lambda: len(read_progress()) == 1)
        note_progress(Ti("run"), Progress("RUNNING"))
        await eventually(lambda: [one.state for one in read_progress().values()] == ["RUNNING"])
        forget_progress(Ti("run"))
        await eventually(lambda: not list(folder.glob("*.json")))

    asyncio.run(asyncio.wait_for(waits(), 60))


def test_a_wait_that_begins_while_the_last_ones_file_is_removed_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing, go_on = threading.Event(), threading.Event()
    remove = progress._remove

    def remove_slowly(name: str) -> None:
        removing.set()
        go_on.wait(60)
        remove(name)

    async def waits() -> None:
        note_progress(Ti("first"), Progress("RUNNING"))
        await eventually(lambda: len(read_progress()) == 1)
        monkeypatch.setattr(progress, "_remove", remove_slowly)
        forget_progress(Ti("first"))
        await eventually(removing.is_set)
        note_progress(
            Ti("next"), Progress(trouble="NERSC does not answer")
        )  # once, as who waits for a service
        go_on.set()
        await asyncio.wait_for(eventually(lambda: {wait.run_id for wait in read_progress()} == {"next"}), 60)
        forget_progress(Ti("next"))
        await eventually(lambda: not list(folder.iterdir()))

    asyncio.run(waits())


def test_a_folder_that_cannot_be_written_or_read_costs_a_line_in_the_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file where the folder should be")

    async def waits() -> None:
        note_progress(Ti("run"), Progress("RUNNING"))
        await eventually(lambda: "cannot be written" in caplog.text)
        note_progress(Ti("run"), Progress("COMPLETING"))
        await asyncio.sleep(0.1)
        forget_progress(Ti("run"))

    asyncio.run(waits())
    assert caplog.text.count("cannot be written") == 1
    assert read_progress() == {}


def test_what_cannot_be_noted_ends_no_wait(caplog: pytest.LogCaptureFixture) -> None:
    note_progress(Ti("run"), Progress("RUNNING"))  # there is no event loop
    assert "could not be noted" in caplog.text
    forget_progress(Ti("run"))
    note_progress(None, Progress("RUNNING"))
    note_progress(Ti("run"), None)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"written": "yesterday", "waits": []}',
        '{"written": 9e12}',
        '{"written": 9e12, "waits": [["dag", "run"]]}',
        '{"written": 9e12, "waits": [["dag", "run", "wait", -1, 3]]}',
        json.dumps({"written": 0, "waits": [["dag", "run", "wait", -1, {"state": "RUNNING"}]]}),
    ],
)
def test_a_file_that_is_broken_or_left_by_a_dead_process_is_left_out(folder: Path, content: str) -> None:
    folder.mkdir()
    (folder / "host-1-0.json").write_text(content)
    good = {"written": time.time(), "waits": [["dag", "r", "t", -1, {"state": "RUNNING", "new": 1}]]}
    (folder / "host-2-0.json").write_text(json.dumps(good))
    assert read_progress() == {Wait("dag", "r", "t"): Progress("RUNNING")}


def test_what_dead_processes_have_left_is_removed_after_a_day(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    old, young = folder / "host-1-0.json", folder / "host-2-0.json"
    for path in (old, young):
        path.write_text("{}")
    (folder / "host-0-0.json").symlink_to("nowhere")  # listed, and not there, as when its writer removes it
    os.utime(old, (time.time() - 100_000,) * 2)

    async def waits() -> None:
        note_progress(Ti("run"), Progress("RUNNING"))
        await eventually(lambda: bool(read_progress()))
        forget_progress(Ti("run"))

    asyncio.run(waits())
    assert not old.exists()
    assert young.exists()
    assert "cannot be written" not in caplog.text


def task(**values: Any) -> TaskSnapshot:
    """A task as Globus shows it."""
    document = {"task_id": "6a9f8d1e-0c0c-11ee-9c5c-0242ac110002", "status": "ACTIVE", "type": "TRANSFER"}
    return TaskSnapshot.from_document({**document, "bytes_transferred": 400, **values})


def test_a_transfer_says_how_much_it_has_moved_and_what_keeps_it() -> None:
    trigger = GlobusTaskTrigger(globus_conn_id="c", remote_id="t", deadline=0, expected_bytes=1000)
    trigger.begin(3600, 0)
    assert trigger.progress() is None
    trigger.take(Answer(task(effective_bytes_per_second=12)), 1)
    assert trigger.progress() == Progress("ACTIVE", 400, 1000, 12)
    trigger.take(Answer(task(nice_status="PERMISSION_DENIED", is_ok=False)), 2)
    far = trigger.progress()
    assert far is not None
    assert far.trouble


def job(state: str, **values: Any) -> SlurmJob:
    """A job as squeue shows it."""
    return SlurmJob("80", "squeue", state, parse_state(state), **values)


def test_a_job_says_when_it_starts_and_how_long_it_has_run() -> None:
    trigger = SlurmJobTrigger(superfacility_conn_id="c", machine="m", remote_id="80", deadline=0)
    trigger.begin(3600, 0)
    assert trigger.progress() is None
    start = "2026-07-01T12:40:00-07:00"
    trigger.take(Answer(job("PENDING", start_estimate=start, limit=7200)), 1)
    assert trigger.progress() == Progress("PENDING", limit=7200, start_estimate=start)
    trigger.take(Answer(job("RUNNING", elapsed=720, limit=7200)), 2)
    assert trigger.progress() == Progress("RUNNING", elapsed=720, limit=7200)
    trigger.take(Answer(job("PENDING", reason="JobHeldUser", limit=7200)), 3)
    assert trigger.progress() == Progress("PENDING", limit=7200, trouble="held (JobHeldUser)")


def test_a_wait_notes_its_progress_at_each_poll_and_forgets_it_at_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Progress | None] = []

    class Poller:
        """Gives answers without a service."""

        def subscribe(self, _remote_id: str) -> Any:
            return self

        async def __aenter__(self) -> Any:
            return SimpleNamespace(next=self.next)

        async def __aexit__(self, *_: object) -> None:
            """Nothing is held."""

        async def next(self, _within: float) -> Any:
            if len(noted) < 2:
                await asyncio.sleep(0.02)
                noted.append(read_progress().get(Wait("dag", "run", "wait")))
                return Answer(job("RUNNING", elapsed=60))
            await eventually(lambda: bool(read_progress()))
            noted.append(read_progress().get(Wait("dag", "run", "wait")))
            return Answer(SlurmJob("80", "sacct", "COMPLETED", parse_state("COMPLETED")))

    monkeypatch.setattr(SlurmJobTrigger, "poller", lambda _: Poller())
    trigger = SlurmJobTrigger(
        superfacility_conn_id="c", machine="m", remote_id="80", deadline=time.time() + 60, first_pause=0
    )
    trigger._task_instance = Ti("run")

    async def wait() -> None:
        assert (await trigger.wait())["outcome"] == "ended"
        await eventually(lambda: not list(folder.iterdir()))

    asyncio.run(wait())
    assert noted[0] is None
    assert noted[-1] == Progress("RUNNING", elapsed=60)
