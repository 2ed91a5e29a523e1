"""Two workers, two triggerers, metrics on: kill any, restart all, and nothing is lost or doubled."""

from __future__ import annotations

import concurrent.futures
from urllib.parse import parse_qs

import pytest

from support.compose import Stack

pytestmark = pytest.mark.needs("docker")
SETTINGS = {"COMPOSE_PROFILES": "standin,celery", "STATSD": "standin:8125", "STANDIN_SLOTS": "4"}
SCALE = {"worker": 2, "triggerer": 2}

# Every service; those that have nothing to do with each other at the same time.
RESTARTED = (
    ("worker", "dag-processor"),
    ("triggerer", "redis"),
    ("scheduler",),
    ("postgres",),
    ("api-server",),
)

_LISTEN = """
import socket
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind(("0.0.0.0", 8125))
while True:
    print(listener.recv(65536).decode(), file=open("/tmp/statsd", "a"))
"""


@pytest.fixture(scope="module", autouse=True)
def _statsd(stack: Stack) -> None:
    """A StatsD server that writes down what it hears."""
    stack.compose("exec", "-d", "standin", "python", "-c", _LISTEN)
    stack.install_test_engine()


def heard(stack: Stack) -> str:
    """What the StatsD server has heard."""
    return stack.run_in("standin", "cat", "/tmp/statsd")


@pytest.mark.timeout(2400)
def test_a_killed_worker_and_a_killed_triggerer_lose_nothing(stack: Stack) -> None:
    assert len(stack.containers("worker")) == 2
    scans = stack.place_scans(1, 8, behaviour="hold")
    runs = stack.send(scans)
    stack.wait_for_tasks(runs[:2], "ptychocam.wait", "deferred")
    more = stack.place_scans(21, 4)
    runs += stack.send(more)  # so that workers have something to lose
    stack.kill("worker")
    stack.kill("triggerer")
    stack.let_go(scans)
    stack.wait_for_runs(runs)
    stack.assert_exactly_once(scans + more, runs)


def polled_together(stack: Stack) -> set[str]:
    """The jobs of the newest polls; none when these are of more different sets than there are triggerers."""
    queries = [parse_qs(r["query"]) for r in stack.requests("nersc") if "/compute/jobs/" in r["path"]]
    polls = {ids for query in queries[-6:] for ids in query.get("kwargs", []) if ids.startswith("jobid=")}
    jobs = {job for ids in polls for job in ids.removeprefix("jobid=").split(",")}
    return jobs if len(polls) <= SCALE["triggerer"] else set()


@pytest.mark.timeout(2400)
def test_a_rolling_restart_under_load_loses_nothing(stack: Stack) -> None:
    stack.compose("up", "-d", "--scale=worker=2", "--scale=triggerer=2")  # the killed ones are back
    scans = stack.place_scans(41, 10, behaviour="hold")
    waiting = stack.send(scans)
    stack.wait_for_tasks(waiting, "ptychocam.wait", "deferred")
    stack.wait_for(
        lambda: len(polled_together(stack)) == 10, "two triggerers ask for ten jobs with two requests"
    )
    for number, services in enumerate(RESTARTED):
        more = stack.place_scans(60 + 2 * number, 2)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            restart = pool.submit(stack.compose, "restart", *services)
            done = stack.submit("submit", *more, "--engine", "ptychocam")  # while it is going on
            restart.result()
        assert done.returncode in (0, 3), done.stdout + done.stderr
        scans += more
        stack.wait_for(stack.is_well, f"the stack is well after the restart of {services}")
    stack.wait_for(lambda: stack.submit("flush").returncode == 0, "what the client kept is sent")
    stack.let_go(scans[:10])
    runs = stack.runs_of(scans)
    stack.wait_for_runs(runs)
    stack.assert_exactly_once(scans, runs)


def test_metrics_arrive(stack: Stack) -> None:
    stack.wait_for(lambda: "cosmic.scan.latency.transfer_auto_recon:" in heard(stack), "latency", 60)
    lines = heard(stack)
    for name in (
        "cosmic.scan.success.transfer_auto_recon:1|c",
        "cosmic.transfer.bytes:",
        "cosmic.transfer.rate:",
        "cosmic.transfer.time:",
        "cosmic.job.queue_time:",
        "cosmic.job.run_time:",
        "cosmic.job.node_seconds:",
        "pool.deferred_slots.globus:",
        "pool.deferred_slots.nersc:",
    ):
        assert f"airflow.{name}" in lines, name
