"""`make bench-scale`: very many waits at once, and what they cost; it fails when one that ended was not seen.

The jobs and transfers are real ones of the stand-in; the waits are real triggers, written into the database
as they are while their tasks are deferred. Two triggerers share them (one on SQLite), then one is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy

from cosmic.dag_constants import TRANSFER_AUTO_RECON
from deployment.standin_settings import standin_seed
from dev.benchmark.bundles import BENCHMARK, dag_bundles
from dev.benchmark.scale_facility import Waiting, submit
from dev.benchmark.triggerers import Triggerer, Usage
from dev.chaos.memory import MOST_GROWTH
from dev.chaos.system import best_database, postgres_programs
from dev.local_airflow.postgres import running_postgres
from dev.local_airflow.rest import Rest
from dev.local_airflow.stack import LocalAirflow, wait_until
from facilities.globus.hook import GlobusHook
from facilities.progress import read_progress
from facilities.superfacility.hook import JOBS_PER_REQUEST, SlurmJobSource
from standin.testing import spawn

INTERVAL = 30.0  # seconds between two answers that each wait wants; a wait that has lasted for hours wants 60
SAMPLE = 5.0
_ENDED = 50  # jobs, and a fifth as many transfers, that end while a triggerer is dead
_START_TIMEOUT = 300.0
_LOAD_TIMEOUT = 1800.0
_SEEN_TIMEOUT = 900.0
_GROWTH_SECONDS = 300.0  # over which memory is compared; in a shorter time it still grows with the caches
_REPEATS = 5
_INDEX_SECONDS = 2.5  # after which the index of scans is brought up to date by who asks


@dataclass
class Report:
    """The table, and what did not hold."""

    failures: list[str] = field(default_factory=list)

    def row(self, name: str, value: str) -> None:
        """Print a line of the table."""
        print(f"  {name:<52} {value}", flush=True)

    def check(self, name: str, holds: bool, value: str) -> None:
        """Print a line that must hold."""
        self.row(name, value if holds else f"{value}   FAILED")
        if not holds:
            self.failures.append(f"{name}: {value}")


@dataclass(frozen=True)
class Bench:
    """All that runs."""

    airflow: LocalAirflow
    engine: sqlalchemy.Engine
    rest: Rest
    waiting: Waiting
    report: Report

    def states(self) -> dict[str, int]:
        """How many task instances there are in each state."""
        query = "SELECT coalesce(state, 'none'), count(*) FROM task_instance GROUP BY 1"
        return {str(state): count for state, count in self._rows(query)}

    def deferred(self) -> set[str]:
        """The runs with a task that waits."""
        return {
            run_id for (run_id,) in self._rows("SELECT run_id FROM task_instance WHERE state = 'deferred'")
        }

    def assigned(self) -> list[int]:
        """How many triggers each triggerer has, dead ones too."""
        query = (
            "SELECT triggerer_id, count(*) FROM trigger WHERE triggerer_id IS NOT NULL GROUP BY 1 ORDER BY 1"
        )
        return [count for _, count in self._rows(query)]

    def running_triggerers(self) -> int:
        """How many triggerers have said that they run."""
        query = "SELECT count(*) FROM job WHERE job_type = 'TriggererJob' AND state = 'running'"
        return int(self._rows(query)[0][0])

    def _rows(self, query: str) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(sqlalchemy.text(query)))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="make bench-scale", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--transfers", type=int, default=2_000)
    parser.add_argument("--duration", type=float, default=300.0, help="seconds of the steady part")
    parser.add_argument("--database", default="", help="sqlite, postgresql, or an empty database's address")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    database = options.database or best_database()
    print(f"{options.jobs} waiting jobs and {options.transfers} waiting transfers ({database})", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="cosmic-scale-") as scratch,
        _running(Path(scratch), options.jobs, options.transfers, database) as bench,
    ):
        _measure(bench, 1 if database == "sqlite" else 2, options.duration)
    for failure in bench.report.failures:
        print(f"FAILED: {failure}")
    return 1 if bench.report.failures else 0


@contextmanager
def _running(folder: Path, jobs: int, transfers: int, database: str) -> Iterator[Bench]:
    """Everything but the triggerers and the waits."""
    report = Report()
    with ExitStack() as stack:
        facility = stack.enter_context(spawn(folder / "standin"))
        seed = standin_seed(facility.description)
        began = time.monotonic()
        waiting = submit(facility, seed, jobs, transfers)
        report.row("submitted to the stand-in", f"{time.monotonic() - began:.0f} s")
        settings = dag_bundles(waiting=BENCHMARK / "waiting_dags") | {"AIRFLOW__CORE__PARALLELISM": "2"}
        if database == "postgresql":
            database = stack.enter_context(running_postgres(postgres_programs())).address
        if database != "sqlite":
            settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = database
        airflow = LocalAirflow(folder / "airflow", extra=settings)
        airflow.prepare(seed)
        stack.callback(airflow.stop)
        airflow.start("api-server", "scheduler", "dag-processor")
        airflow.wait_ready()
        rest = Rest(airflow.url, "admin", airflow.passwords["admin"])
        rest.wait_for_dag(TRANSFER_AUTO_RECON)
        os.environ["AIRFLOW__FACILITIES__PROGRESS_FOLDER"] = str(airflow.home / "progress")
        engine = sqlalchemy.create_engine(airflow.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
        stack.callback(engine.dispose)
        yield Bench(airflow, engine, rest, waiting, report)


def _write_waits(airflow: LocalAirflow, waiting: Waiting) -> float:
    """Write the waits; returns the seconds that it took."""
    began = time.monotonic()
    file = airflow.home / "waits.json"
    content = {"jobs": waiting.job_ids, "transfers": waiting.transfer_ids, "interval": INTERVAL}
    file.write_text(json.dumps(content))
    command = [sys.executable, "-W", "ignore", "-m", "dev.benchmark.waits", str(file)]
    subprocess.run(command, env=airflow.environment, check=True)  # noqa: S603 - our own interpreter and module
    return time.monotonic() - began


def _measure(bench: Bench, count: int, duration: float) -> None:
    triggerers = [Triggerer(bench.airflow, f"triggerer-{number}") for number in range(count)]
    try:
        wait_until(lambda: bench.running_triggerers() == count, _START_TIMEOUT)
        seconds = _write_waits(bench.airflow, bench.waiting)
        bench.report.row("waits written into the database", f"{seconds:.0f} s")
        _load(bench, triggerers)
        _steady(bench, triggerers, duration)
        _answers(bench)
        _poll_cost(bench)
        _kill_one(bench, triggerers)
    finally:
        for triggerer in triggerers:
            if triggerer.process.poll() is None:
                triggerer.kill()


def _load(bench: Bench, triggerers: list[Triggerer]) -> None:
    """Wait until each wait has had its first answer."""
    began, wanted = time.monotonic(), len(bench.waiting.job_ids) + len(bench.waiting.transfer_ids)

    def all_asked() -> bool:
        for triggerer in triggerers:
            triggerer.check_alive()
        return len(read_progress()) >= wanted

    done = wait_until(all_asked, _LOAD_TIMEOUT, every=1.0)
    known = len(read_progress())
    bench.report.check(
        "all loaded and asked for", done, f"{known} of {wanted} after {time.monotonic() - began:.0f} s"
    )
    bench.report.row("shared as", " + ".join(map(str, bench.assigned())))
    _report_blocks(bench, triggerers)


def _report_blocks(bench: Bench, triggerers: list[Triggerer]) -> None:
    blocks = ", ".join(f"{triggerer.longest_block():.2f} s" for triggerer in triggerers)
    bench.report.row("longest time that an event loop stood still", blocks)


def _steady(bench: Bench, triggerers: list[Triggerer], duration: float) -> None:
    """Nothing happens but polls."""
    report = bench.report
    bench.waiting.facility.clear_requests()
    samples: list[list[Usage]] = []
    began = time.monotonic()
    while not samples or time.monotonic() - began < duration:
        for triggerer in triggerers:
            triggerer.check_alive()
        samples.append([triggerer.usage() for triggerer in triggerers])
        time.sleep(SAMPLE)
    seconds = time.monotonic() - began
    _check_requests(bench, seconds, len(triggerers))
    for number, of_one in enumerate(zip(*samples, strict=True), 1):
        first, last = of_one[0], of_one[-1]
        third = -(-len(of_one) // 3)
        early = median(usage.memory for usage in of_one[:third])
        late = median(usage.memory for usage in of_one[-third:])
        long_enough = duration >= _GROWTH_SECONDS
        name = f"triggerer {number}"
        note = "" if long_enough else " (too short to compare)"
        report.check(
            f"{name}: memory, first third and last",
            not long_enough or late <= MOST_GROWTH * early,
            f"{early:.0f} MiB, {late:.0f} MiB{note}",
        )
        span = max(seconds - SAMPLE, 1.0)
        parent = (last.parent_cpu - first.parent_cpu) / span
        runner = (last.runner_cpu - first.runner_cpu) / span
        report.row(f"{name}: CPU, of a core", f"{parent:.1%} (database, logs) + {runner:.1%} (waits, polls)")
        report.row(f"{name}: open files", str(last.files))
    _report_blocks(bench, triggerers)


def _check_requests(bench: Bench, seconds: float, triggerers: int) -> None:
    """No service is asked more often than it takes to ask for each id once an interval."""
    seen = bench.waiting.facility.requests()
    sacct = [one for one in seen if "/compute/jobs/" in one["path"] and "sacct=true" in one["query"]]
    squeue = [one for one in seen if "/compute/jobs/" in one["path"] and "sacct=false" in one["query"]]
    globus = [one for one in seen if one["path"].endswith("/task_list")]
    rounds = seconds / (0.9 * INTERVAL) + 1
    for name, requests, waits, per_request in (
        ("sacct", sacct, len(bench.waiting.job_ids), JOBS_PER_REQUEST),
        ("Globus", globus, len(bench.waiting.transfer_ids), GlobusHook.ids_per_request),
    ):
        allowed = rounds * (-(-waits // per_request) + triggerers)
        bench.report.check(
            f"{name}: requests in {seconds:.0f} s, and what they may be",
            len(requests) <= allowed,
            f"{len(requests)}, {allowed:.0f}; each {per_request} ids at most",
        )
        minimum = (seconds / (2 * INTERVAL)) * (waits // per_request)
        bench.report.check(
            f"{name}: as many as keep all up to date", len(requests) >= minimum, f"{minimum:.0f}"
        )
    bench.report.check("squeue: no more than sacct", len(squeue) <= len(sacct) + triggerers, str(len(squeue)))
    other = len(seen) - len(sacct) - len(squeue) - len(globus)
    bench.report.row("other requests (tokens)", str(other))


def _answers(bench: Bench) -> None:
    """How long lists and pages take."""
    runs = f"/api/v2/dags/{TRANSFER_AUTO_RECON}/dagRuns?limit=50&order_by=-run_after"
    for name, path in (
        ("Airflow's list of runs", runs),
        ("the same, the last page", f"{runs}&offset={len(bench.waiting.job_ids) - 50}"),
        ("page of scans", "/cosmic/scans"),
        ("page of one scan", "/cosmic/scans/NS_230210000"),
    ):
        seconds = []
        for _ in range(_REPEATS):
            began = time.monotonic()
            _get(bench, path)
            seconds.append(time.monotonic() - began)
            time.sleep(_INDEX_SECONDS)
        bench.report.row(f"{name}: first, then median", f"{seconds[0]:.2f} s, {median(seconds[1:]):.2f} s")


def _get(bench: Bench, path: str) -> None:
    headers = {"Authorization": f"Bearer {bench.rest.token}"}
    request = urllib.request.Request(bench.rest.url + path, headers=headers)  # noqa: S310 - our own address
    with urllib.request.urlopen(request, timeout=120) as reply:  # noqa: S310
        reply.read()


def _poll_cost(bench: Bench) -> None:
    """CPU that one request takes here, with all that is made of its reply."""
    ids = frozenset(bench.waiting.job_ids[:JOBS_PER_REQUEST])
    source = SlurmJobSource("superfacility_default", "perlmutter")
    asyncio.run(source.fetch(ids))  # squeue and the token are asked for once
    seconds = []
    for _ in range(_REPEATS):
        began = time.process_time()
        asyncio.run(source.fetch(ids))
        seconds.append(time.process_time() - began)
    bench.report.row(f"CPU of a poll of {len(ids)} jobs", f"{median(seconds) * 1000:.0f} ms")


def _kill_one(bench: Bench, triggerers: list[Triggerer]) -> None:
    """Kill a triggerer; jobs and transfers end meanwhile."""
    report = bench.report
    victim = triggerers.pop(0)
    dead = victim.kill()
    killed = time.monotonic()
    if not triggerers:  # the only one: it is started again, as a supervisor would
        triggerers.append(Triggerer(bench.airflow, "triggerer-again"))
    for path in (bench.airflow.home / "progress").glob("*.json"):
        if int(path.name.rsplit("-", 2)[1]) in dead:
            path.unlink()
    jobs = min(_ENDED, len(bench.waiting.job_ids) // 4)
    transfers = min(_ENDED // 5, len(bench.waiting.transfer_ids) // 4)
    ended = {*bench.waiting.end_jobs(jobs), *bench.waiting.end_transfers(transfers)}
    report.row("ended after one triggerer was killed", f"{len(ended)} jobs and transfers")

    def all_seen() -> bool:
        triggerers[0].check_alive()
        return not ended & bench.deferred()

    seen = wait_until(all_seen, _SEEN_TIMEOUT, every=2.0)
    missed = len(ended & bench.deferred())
    report.check("of these, not seen", seen, f"{missed} after {time.monotonic() - killed:.0f} s")
    wanted = len(bench.waiting.job_ids) + len(bench.waiting.transfer_ids) - len(ended)
    taken = wait_until(lambda: len(read_progress()) >= wanted, _SEEN_TIMEOUT, every=1.0)
    report.check(
        "the other one waits for all",
        taken,
        f"{len(read_progress())} of {wanted} after {time.monotonic() - killed:.0f} s",
    )
    _report_blocks(bench, triggerers)
    usage = triggerers[0].usage()
    report.row("its memory, open files", f"{usage.memory:.0f} MiB, {usage.files}")
    still = bench.deferred()
    report.check("waits that are still there", len(still) == wanted, f"{len(still)} of {wanted}")
    resumed = wait_until(
        lambda: not bench.states().keys() & {"scheduled", "queued", "running"}, _SEEN_TIMEOUT, 2.0
    )
    states = bench.states()
    report.check("their tasks went on", resumed and "failed" not in states, f"{states}")


if __name__ == "__main__":
    sys.exit(main())
