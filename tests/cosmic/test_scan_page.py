"""What the page of a scan says of its runs, from Airflow's database and from what is kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from fastapi import HTTPException
from sqlalchemy.orm import Session

from cosmic.beamline import DEFAULT_FILE

BEGAN = datetime(2026, 7, 1, 19, 0, tzinfo=UTC)
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def session(airflow_database: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Session]:
    """The session's database, a new index and a folder of its own for what is kept."""
    from cosmic.pages import scan
    from cosmic.scan_index import ScanIndex

    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(DEFAULT_FILE))
    monkeypatch.setenv("AIRFLOW__COSMIC__KEPT_RESULTS", str(tmp_path / "kept"))
    monkeypatch.setattr(scan, "index", ScanIndex())
    with create_session() as session:
        yield session
        session.rollback()


def add_run(session: Session, run_id: str, state: str = "success", after: int = 0, **conf: Any) -> DagRun:
    """A run of the file that its id names."""
    scan, energy, region = run_id.partition("__")[0].rsplit("_", 2)
    path = f"2023/02/230216/{scan}_ccdframes_{energy}_{region}.cxi"
    run = DagRun(
        dag_id="transfer_auto_recon",
        run_id=run_id,
        run_type="manual",
        state=DagRunState(state),
        conf={"file_path": path, **conf},
        run_after=BEGAN + timedelta(minutes=after),
        start_date=BEGAN,
    )
    run.end_date = BEGAN + timedelta(seconds=90) if state in ("success", "failed") else None
    session.add(run)
    session.flush()
    return run


def page(
    session: Session, monkeypatch: pytest.MonkeyPatch, name: str, run: str = "", *, may: bool = True
) -> Any:
    """The page's reply."""
    from cosmic.pages import scan

    manager = SimpleNamespace(is_authorized_dag=lambda **_: may)
    monkeypatch.setattr(scan, "get_auth_manager", lambda: manager)
    request: Any = SimpleNamespace(scope={"root_path": "/airflow/cosmic"}, headers={}, query_params={})
    user: Any = SimpleNamespace(get_id=lambda: "1", get_name=lambda: "Ada")
    return scan.scan_page(name, session, user, request, run)


def html_of(*arguments: Any, **keywords: Any) -> str:
    return bytes(page(*arguments, **keywords).body).decode()


def data_of(html: str) -> dict[str, Any]:
    """What the page's script gets."""
    text = html.partition('<script type="application/json" id="scan-data">')[2].partition("</script>")[0]
    found: dict[str, Any] = json.loads(text)
    return found


def add_result(monkeypatch: pytest.MonkeyPatch, run: DagRun, **changes: Any) -> None:
    """A result of ptychocam, of which the figures are kept."""
    from cosmic import kept_results
    from cosmic.run_summary import XComs
    from support.live import example_figures

    quality = {"final_error": 0.25, "iterations": 10, "frames": 4, "pixel_size_m": [1e-8, 1e-8]}
    result = {"engine": "ptychocam", "quality": quality, "warnings": ["careful"], "job_id": "7", "bytes": 6}
    result |= {"result": "/nersc/a.cxi", "node_hours": 0.5}
    held = {"ptychocam.collect": result}
    monkeypatch.setattr(XComs, "get", lambda _, task_id, *_key: held.get(task_id))
    figures = example_figures()[1] | changes
    kept_results.keep(run, "ptychocam", {"figures.json": json.dumps(figures).encode()})


def test_the_newest_run_is_shown_and_others_can_be_chosen(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run(session, "NS_230216033_0_0", "failed")
    add_run(session, "NS_230216033_1_0", "failed")
    add_run(session, "NS_230216033_0_0__r2", "failed")
    html = html_of(session, monkeypatch, "NS_230216033")
    assert "<h1>NS_230216033</h1>" in html
    assert "<h2>Run NS_230216033_0_0__r2</h2>" in html
    data = data_of(html)
    assert data["chosen"] == "NS_230216033_0_0__r2"
    assert [[run["id"] for run in file["runs"]] for file in data["files"]] == [
        ["NS_230216033_0_0__r2", "NS_230216033_0_0"],
        ["NS_230216033_1_0"],
    ]
    older = html_of(session, monkeypatch, "NS_230216033", "NS_230216033_1_0")
    assert "<h2>Run NS_230216033_1_0</h2>" in older
    gone = html_of(session, monkeypatch, "NS_230216033", HOSTILE)
    assert "<h2>Run NS_230216033_0_0__r2</h2>" in gone
    assert "The run &lt;img src=x onerror=alert(1)&gt; is not a run of this scan" in gone


def test_another_scans_run_is_not_shown(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    add_run(session, "NS_230216033_0_0")
    add_run(session, "NS_230216034_0_0")
    html = html_of(session, monkeypatch, "NS_230216033", "NS_230216034_0_0")
    assert "<h2>Run NS_230216033_0_0</h2>" in html


def test_a_newest_run_that_was_just_deleted_leaves_the_one_before(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run(session, "NS_230216033_0_0")
    newest = add_run(session, "NS_230216033_0_0__r2", after=5)
    assert "<h2>Run NS_230216033_0_0__r2</h2>" in html_of(session, monkeypatch, "NS_230216033")
    session.delete(newest)
    session.flush()
    assert "<h2>Run NS_230216033_0_0</h2>" in html_of(session, monkeypatch, "NS_230216033")


def test_a_run_that_was_just_stopped_does_not_go_on(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(session, "NS_230216033_0_0", "running")
    assert data_of(html_of(session, monkeypatch, "NS_230216033"))["state"]["name"] == "waiting"
    run.state = DagRunState.FAILED
    session.flush()
    assert data_of(html_of(session, monkeypatch, "NS_230216033"))["state"]["name"] == "failed"


def test_a_run_that_was_marked_as_success_does_not_pass_for_a_copy(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic.run_summary import XComs

    add_run(session, "NS_230216033_0_0", do_ptychocam=True)
    add_run(session, "NS_230216034_0_0", do_ptychocam=False)
    held = {"copy_to_nersc": {"bytes": 1}}
    monkeypatch.setattr(XComs, "get", lambda _, task_id, *_key: held.get(task_id))
    marked, copied = (html_of(session, monkeypatch, f"NS_23021603{n}") for n in (3, 4))
    assert "It has no result: somebody has marked it" in marked
    assert "no reconstruction was asked for" not in marked
    assert "It was only copied: no reconstruction was asked for." in copied


def test_a_scan_without_a_run_is_words(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HTTPException, match="No scan NS_230216999 has a run here") as refused:
        page(session, monkeypatch, "NS_230216999")
    assert refused.value.status_code == 404


def test_the_page_has_its_own_policy_and_hostile_values_are_text(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(session, "NS_230216033_0_0", do_ptychocam=True)
    add_result(
        monkeypatch,
        run,
        metadata={HOSTILE: HOSTILE, "sample": "</script><script>alert(1)</script>"},
        notes=[HOSTILE],
        parameters={HOSTILE: [HOSTILE]},
    )
    reply = page(session, monkeypatch, "NS_230216033")
    html = bytes(reply.body).decode()
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "<img src=x" not in html
    assert "<script>alert(1)" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") == 5
    assert " style=" not in html
    for script in html.split("<script")[1:]:
        assert 'nonce="' in script.partition(">")[0] or 'type="application/json"' in script.partition(">")[0]


def test_figures_warnings_and_metadata_are_there_when_nersc_is_not(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(session, "NS_230216033_0_0", do_ptychocam=True)
    add_result(monkeypatch, run)
    html = html_of(session, monkeypatch, "NS_230216033")
    for text in ("0.25 after 10 iterations", "707.50 eV", "ALS-01234", "10.00 nm", "/nersc/a.cxi"):
        assert text in html
    assert html.index("has warnings") < html.index("ptychocam: figures")
    assert "All figures are not kept here" not in html


def test_a_result_of_which_nothing_is_kept_says_so(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = add_run(session, "NS_230216033_0_0", do_ptychocam=True)
    add_result(monkeypatch, run)
    monkeypatch.setenv("AIRFLOW__COSMIC__KEPT_RESULTS", str(tmp_path / "nothing"))
    html = html_of(session, monkeypatch, "NS_230216033")
    assert "All figures are not kept here" in html
    assert "0.25 after 10 iterations" in html
    assert "707.50 eV" not in html


def test_advice_is_for_what_the_reader_may(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    add_run(session, "NS_230216033_0_0", "failed")
    assert "You may also clear the tasks" in html_of(session, monkeypatch, "NS_230216033")
    html = html_of(session, monkeypatch, "NS_230216033", may=False)
    assert "You may not clear tasks here" in html
    assert "submit_scan.py reprocess 2023/02/230216/NS_230216033_ccdframes_0_0.cxi" in html


def test_parameters_that_differ_from_the_default_are_marked() -> None:
    from cosmic.scan_details import parameters

    conf = {"do_ptychocam": True, "n_iter": "800", "qos": None, "n_gpu": 1, "period_bg_refine": 0.0}
    sections = {section.title: section.values for section in parameters(conf, ["ptychocam"])}
    assert set(sections) == {"What to run", "Both engines", "ptychocam", "Slurm job"}
    changed = {
        value.name: (value.value, value.default)
        for values in sections.values()
        for value in values
        if value.changed
    }
    assert changed == {"do_ptychocam": ("yes", "no"), "n_iter": ("800", "500")}
    both = {section.title for section in parameters(conf, ["ptychocam", "cdtools"])}
    assert "CDTools" in both
    distance = next(s for s in parameters({}, ["cdtools"]) if s.title == "CDTools").values[3]
    assert (distance.name, distance.value, distance.changed) == ("propagation_distance", "50e-6", False)
    old = parameters({"n_iter": 10**9}, ["ptychocam"])
    assert next(v for s in old for v in s.values if v.name == "n_iter").changed


def test_the_time_line_is_of_the_runs_own_steps(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmic.scan_details import Chain, Step, duration

    steps = [
        Step("transfer", BEGAN, BEGAN + timedelta(minutes=1), "success"),
        Step("job", BEGAN + timedelta(minutes=1), None, "running"),
    ]
    chain = Chain(steps, BEGAN + timedelta(minutes=4))
    assert chain.seconds == 240
    assert chain.place(steps[0], 300) == (0.0, 75.0)
    assert chain.place(steps[1], 300) == (75.0, 225.0)
    assert [step.seconds(chain.now) for step in steps] == [60, 180]
    assert [duration(n) for n in (0.5, 59, 61, 7260)] == ["0.5 s", "59 s", "1 min", "2 h 1 min"]


def test_nersc_is_asked_once_for_all_who_look_at_a_jobs_log() -> None:
    from cosmic.pages.job_log import KEPT_FOR, Answers

    assert KEPT_FOR >= 15
    now, asked, go = [0.0], [], threading.Event()

    def ask(path: str) -> dict[str, Any]:
        asked.append(path)
        go.wait(60)
        return {"text": f"{path} {len(asked)}"}

    answers = Answers(ask, clock=lambda: now[0])
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(answers.get("/a"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert found == [{"text": "/a 1"}] * 20
    now[0] = KEPT_FOR - 0.1
    assert answers.get("/a") == {"text": "/a 1"}
    assert answers.get("/b") == {"text": "/b 2"}
    now[0] = KEPT_FOR
    assert answers.get("/a") == {"text": "/a 3"}


def test_while_nersc_hangs_the_answer_before_is_shown() -> None:
    from cosmic.pages.job_log import KEPT_FOR, Answers

    now, asked, go, hangs = [0.0], [], threading.Event(), threading.Event()

    def ask(path: str) -> dict[str, Any]:
        asked.append(path)
        if len(asked) == 2:
            hangs.set()
            assert go.wait(60)
        return {"text": str(len(asked))}

    answers = Answers(ask, clock=lambda: now[0])
    assert answers.get("/a") == {"text": "1"}
    now[0] = KEPT_FOR
    first = threading.Thread(target=answers.get, args=("/a",))
    first.start()
    assert hangs.wait(60)
    others: list[Any] = []
    other = threading.Thread(target=lambda: others.append(answers.get("/a")))
    other.start()
    other.join(30)
    go.set()
    first.join()
    other.join()
    assert others == [{"text": "1"}]
    assert answers.get("/a") == {"text": "2"}


def test_the_job_is_the_one_that_was_submitted_last(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models.task_state_store import TaskStateStoreModel

    from cosmic.pages.job_log import newest_job
    from cosmic.run_summary import XComs

    run = add_run(session, "NS_230216033_0_0", "running")
    assert newest_job(session, run, "ptychocam") is None
    held = {("ptychocam.submit", "job"): {"job_id": "17"}}
    monkeypatch.setattr(XComs, "get", lambda _, *key: held.get(key))
    assert newest_job(session, run, "ptychocam") == "17"
    again = TaskStateStoreModel(
        dag_run_id=run.id,
        task_id="ptychocam.wait",
        map_index=-1,
        key="slurm_job",
        dag_id=run.dag_id,
        run_id=run.run_id,
        value='{"job_id": "18"}',
    )
    session.add(again)
    session.flush()
    assert newest_job(session, run, "ptychocam") == "18"
    again.value = '{"job_id": "../18"}'
    session.flush()
    assert newest_job(session, run, "ptychocam") == "17"


def test_data_is_sent_again_only_when_it_differs(session: Session) -> None:
    from cosmic.pages import scan

    add_run(session, "NS_230216033_0_0")
    request: Any = SimpleNamespace(scope={"root_path": "/cosmic"}, headers={})
    first = scan.scan_data("NS_230216033", session, request)
    assert first.status_code == 200
    assert data_of(f'<script type="application/json" id="scan-data">{bytes(first.body).decode()}</script>')[
        "files"
    ]
    request.headers = {"if-none-match": first.headers["ETag"]}
    assert scan.scan_data("NS_230216033", session, request).status_code == 304


def test_data_are_made_once_for_all_who_look(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmic.pages import scan
    from cosmic.scan_index import ScanIndex

    monkeypatch.setattr(scan, "index", index := ScanIndex())
    made: list[str] = []

    def count(found: Any, airflow: str, make: Any = scan._data) -> Any:
        made.append(found.name)
        return make(found, airflow)

    monkeypatch.setattr(scan, "_data", count)
    run = add_run(session, "NS_230216033_0_0", "running")
    other = add_run(session, "NS_230216034_0_0", "running")

    def look() -> list[str]:
        made.clear()
        request: Any = SimpleNamespace(scope={"root_path": "/cosmic"}, headers={})
        replies = [scan.scan_data("NS_230216033", session, request) for _ in range(20)]
        assert len({reply.headers["ETag"] for reply in replies}) == 1
        return made

    assert look() == ["NS_230216033"]
    other.state = DagRunState.FAILED
    session.flush()
    index.refresh(session, at_once=True)
    assert look() == [], "only another scan has changed"
    run.state = DagRunState.FAILED
    session.flush()
    index.refresh(session, at_once=True)
    assert look() == ["NS_230216033"]


def test_vendored_parts_are_those_of_their_packages() -> None:
    from cosmic.pages.vendor import FILES, FOLDER, vendored

    lines = [line.partition("  ") for line in (FOLDER / "README.md").read_text().splitlines()]
    sums = {name: checksum for checksum, _, name in lines if len(checksum) == 64}
    held = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()} - {"README.md"}
    assert held == set(sums)
    for name, checksum in sums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == checksum
    assert {path for path, _ in FILES.values()} < held
    with pytest.raises(HTTPException):
        vendored("../app.py")


def steps_of(
    monkeypatch: pytest.MonkeyPatch,
    tasks: dict[str, tuple[str, int, int | None]],
    xcoms: dict[str, Any],
    progress: dict[str, Any],
) -> list[tuple[str, str, int, int | None]]:
    """Name, state, start and end of each step, in seconds after the run's post."""
    from cosmic.run_summary import XComs
    from cosmic.scan_details import chain

    monkeypatch.setattr(XComs, "get", lambda _, task_id, *_key: xcoms.get(task_id))
    rows = [
        SimpleNamespace(
            task_id=name,
            state=state,
            start_date=BEGAN + timedelta(seconds=start),
            end_date=None if end is None else BEGAN + timedelta(seconds=end),
        )
        for name, (state, start, end) in tasks.items()
    ]
    session: Any = SimpleNamespace(scalars=lambda _: rows)
    run: Any = SimpleNamespace(dag_id="d", run_id="r", queued_at=BEGAN, end_date=None)
    found = chain(session, run, progress, BEGAN + timedelta(seconds=1000))
    assert found is not None
    return [
        (
            step.name,
            step.state,
            int((step.start - BEGAN).total_seconds()),
            None if step.end is None else int((step.end - BEGAN).total_seconds()),
        )
        for step in found.steps
    ]


BEGUN: dict[str, tuple[str, int, int | None]] = {
    "check_scan": ("success", 2, 3),
    "copy_to_nersc": ("success", 4, 100),
    "ptychocam.submit": ("success", 101, 110),
    "cdtools.submit": ("skipped", 5, 5),
    "cdtools.wait": ("skipped", 5, 5),
}
FIRST = [
    ("waiting to begin", "success", 0, 2),
    ("transfer", "success", 4, 100),
    ("ptychocam: submission", "success", 101, 110),
]


def test_a_job_that_goes_on_is_in_the_queue_or_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from facilities.progress import Progress

    tasks = BEGUN | {"ptychocam.wait": ("deferred", 111, None)}
    pending = {"ptychocam.wait": Progress("PENDING")}
    assert steps_of(monkeypatch, tasks, {}, pending) == [
        *FIRST,
        ("ptychocam: in Slurm's queue", "waiting", 111, None),
    ]
    running = {"ptychocam.wait": Progress("RUNNING", elapsed=600, limit=14400)}
    assert steps_of(monkeypatch, tasks, {}, running) == [
        *FIRST,
        ("ptychocam: in Slurm's queue", "success", 111, 400),
        ("ptychocam: Slurm job", "running", 400, None),
    ]
    assert steps_of(monkeypatch, tasks, {}, {})[-1] == (
        "ptychocam: queue and Slurm job",
        "running",
        111,
        None,
    )


def test_a_job_that_has_ended_has_slurms_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole seconds: it is submitted before the task that submits it begins."""
    moments = {
        name: (BEGAN + timedelta(seconds=seconds)).isoformat()
        for name, seconds in (("submitted", 100), ("started", 300), ("ended", 900))
    }
    tasks = BEGUN | {"ptychocam.wait": ("success", 111, 905), "ptychocam.collect": ("failed", 906, 910)}
    xcoms = {"ptychocam.wait": {"job_id": "17", **moments}}
    assert steps_of(monkeypatch, tasks, xcoms, {})[2:] == [
        FIRST[2],
        ("ptychocam: in Slurm's queue", "success", 100, 300),
        ("ptychocam: Slurm job", "success", 300, 900),
        ("ptychocam: check of the result", "failed", 906, 910),
    ]
