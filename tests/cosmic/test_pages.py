"""What the Result tab says to people with different rights, and of runs that left little behind."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from fastapi import HTTPException
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from cosmic.beamline import DEFAULT_FILE, beamline
from cosmic.dag_constants import NO_STACK_KEY, REPORT_TASK, WARNINGS_KEY
from cosmic.scans import parse_scan_path

RUN_ID = "scan__of_test_pages"
SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
BEGAN = datetime(2026, 7, 1, 19, 0, tzinfo=UTC)


@pytest.fixture
def pages() -> Any:
    """The module: what it imports warns, so that it is imported with the plugins."""
    from cosmic.pages import result

    return result


@pytest.fixture
def session(airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """The session's database with a run that failed without any task."""
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(DEFAULT_FILE))
    with create_session() as session:
        run = DagRun(
            dag_id="transfer_auto_recon",
            run_id=RUN_ID,
            run_type="manual",
            state=DagRunState.FAILED,
            conf={"file_path": SCAN},
            run_after=BEGAN,
            start_date=BEGAN,
        )
        run.end_date = BEGAN + timedelta(seconds=90)
        session.add(run)
        session.flush()
        yield session
        session.rollback()


@pytest.fixture
def page(pages: Any, session: Session, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], str]:
    """Gives the page's HTML for a user who may clear tasks, or not."""
    return lambda may_clear: _page(pages, session, monkeypatch, may_clear)


@pytest.fixture
def reconstruction() -> dict[str, Any]:
    """A `cosmic.results.Reconstruction` without warnings."""
    return {
        "engine": "ptychocam",
        "result": "/nersc/a.cxi",
        "preview": "/nersc/a.png",
        "preview_size": [4, 4],
        "bytes": 1000,
        "quality": {
            "frames": 64,
            "iterations": 10,
            "final_error": 0.05,
            "pixel_size_m": [1e-8, 1e-8],
            "object_shape": [90, 90],
            "resolution_m": None,
        },
        "warnings": [],
        "job_id": "7",
        "queue_seconds": 1.0,
        "run_seconds": 2.0,
        "node_hours": 0.1,
    }


def _page(pages: Any, session: Session, monkeypatch: pytest.MonkeyPatch, may_clear: bool) -> str:
    manager = SimpleNamespace(is_authorized_dag=lambda **_: may_clear)
    monkeypatch.setattr(pages, "get_auth_manager", lambda: manager)
    user: Any = SimpleNamespace(get_id=lambda: "somebody", get_name=lambda: "somebody")
    request: Any = SimpleNamespace(
        scope={"root_path": "/airflow/cosmic"}, state=SimpleNamespace(page_user=user)
    )
    dag_id = session.scalar(select(DagRun.dag_id).where(DagRun.run_id == RUN_ID))
    reply = pages.result_page(dag_id, RUN_ID, session, user, request)
    policy = reply.headers["Content-Security-Policy"]
    html = bytes(reply.body).decode()
    nonce = html.partition('<script nonce="')[2].partition('"')[0]
    assert len(nonce) > 20
    assert f"script-src 'nonce-{nonce}'" in policy
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    return html


def test_who_may_not_clear_tasks_learns_what_to_do_instead(page: Callable[[bool], str]) -> None:
    html = page(False)
    assert "You may not clear tasks here" in html
    assert f"<code>submit_scan.py reprocess {SCAN}</code>" in html
    assert "You may not clear" not in page(True)


def test_without_a_script_times_are_the_beamlines_and_say_so(page: Callable[[bool], str]) -> None:
    html = page(True)
    time = '<time datetime="2026-07-01T12:00:00-07:00">2026-07-01 12:00:00 PDT (UTC-07:00)</time>'
    assert time in html


def test_a_run_that_was_ended_from_outside_says_so(page: Callable[[bool], str]) -> None:
    assert "No task of the run has failed by itself" in page(True)


def test_warnings_of_a_result_stand_above_it_and_are_escaped(
    page: Callable[[bool], str], monkeypatch: pytest.MonkeyPatch, reconstruction: dict[str, Any]
) -> None:
    from cosmic.run_summary import XComs

    held = {"ptychocam.collect": reconstruction}
    monkeypatch.setattr(XComs, "get", lambda _, task_id, *_key: held.get(task_id))
    assert "has warnings" not in page(True)
    reconstruction["warnings"] = ["13 of 64 frames are empty", "<b>bold</b>"]
    html = page(True)
    box = html.partition("<strong>ptychocam has warnings.</strong>")[2].partition("</div>")[0]
    assert "<li>13 of 64 frames are empty</li>" in box
    assert "<li>&lt;b&gt;bold&lt;/b&gt;</li>" in box
    assert html.index("has warnings") < html.index("<h2>ptychocam</h2>")


def test_a_success_with_warnings_does_not_look_like_one_without(
    page: Callable[[bool], str],
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    reconstruction: dict[str, Any],
) -> None:
    from cosmic.run_summary import XComs

    session.execute(update(DagRun).where(DagRun.run_id == RUN_ID).values(state=DagRunState.SUCCESS))
    held = {"ptychocam.collect": reconstruction}
    monkeypatch.setattr(XComs, "get", lambda _, task_id, *_key: held.get(task_id))
    assert '<strong class="success">Success</strong>' in page(True)
    reconstruction["warnings"] = ["13 of 64 frames are empty"]
    html = page(True)
    assert '<strong class="partial">Success, with warnings</strong>' in html
    assert 'class="success"' not in html


def test_the_runs_message_has_the_first_warning(reconstruction: dict[str, Any]) -> None:
    from cosmic.results import describe

    assert "WARNING" not in describe(reconstruction)  # type: ignore[arg-type]
    reconstruction["warnings"] = ["3 frames are empty.", "hot pixels", "saturated"]
    assert describe(reconstruction).endswith(", WARNING: 3 frames are empty (and 2 more)")  # type: ignore[arg-type]


@pytest.fixture
def stack_page(
    page: Callable[[bool], str], session: Session, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Gives the page of a run of `stack_scan` by its XComs, by task and key."""
    from cosmic.run_summary import XComs

    def show(state: str, xcoms: dict[tuple[str, str], Any], **conf: Any) -> str:
        session.execute(
            update(DagRun)
            .where(DagRun.run_id == RUN_ID)
            .values(dag_id="stack_scan", state=state, conf={"scan": "NS_230216033", **conf})
        )
        session.expire_all()
        monkeypatch.setattr(XComs, "get", lambda _, task_id, key="return_value": xcoms.get((task_id, key)))
        return page(True)

    return show


def test_the_stacks_that_were_made(stack_page: Callable[..., str], session: Session) -> None:
    first = {"region": 0, "stack": "/n/a_0.nxs", "bytes": 2_000_000, "energies": [0, 2, 5], "missing": []}
    second = {"region": 1, "stack": "/n/<a>_1.nxs", "bytes": 900, "energies": [0, 5], "missing": [2, 3]}
    made = {"message": "", "stacks": [first, second], "without_result": [2], "job_id": "17"}
    for energy in (0, 1):
        add_file(session, f"NS_230216033_{energy}_0", "success")
    html = stack_page("success", {("collect", "return_value"): made, ("submit", "job"): {"job_id": "17"}})
    assert "<h1>NS_230216033</h1>" in html
    assert '<strong class="success">Success</strong>' in html
    assert "Region 0</th><td>/n/a_0.nxs (2.0 MB), for MANTiS: 3 energies, 0 to 5</td>" in html
    assert "/n/&lt;a&gt;_1.nxs (0.0 MB), for MANTiS: 2 energies, 0 to 5; " in html
    assert '<strong class="partial">2 missing</strong>: 2, 3</td>' in html
    assert 'Region 2</th><td><strong class="partial">no stack</strong>' in html
    assert html.count("sacct -j 17") == 1
    assert "2 of 2 files done." in html
    assert "not known to be at NERSC" not in html


def test_a_stack_that_was_not_made_says_why_and_what_to_do(stack_page: Callable[..., str]) -> None:
    html = stack_page("success", {("check", NO_STACK_KEY): "No stack of NS_230216033: 1 failed (0_1)"})
    assert "<strong>No stack was made.</strong> No stack of NS_230216033: 1 failed (0_1)</p>" in html
    assert "<code>submit_scan.py stack NS_230216033 --engine ptychocam</code>" in html


def test_a_stack_that_failed_has_its_job_and_the_command_for_another(stack_page: Callable[..., str]) -> None:
    conf = {"engine": "cdtools", "incomplete": True}
    html = stack_page("failed", {("submit", "job"): {"job_id": "18"}}, **conf)
    assert "<th>stack</th><td>18; at NERSC: <code>sacct -j 18</code>" in html
    command = "submit_scan.py stack NS_230216033 --engine cdtools --param incomplete=true"
    assert f"<code>{command}</code>" in html


def test_there_is_no_preview_of_a_run_without_a_result(pages: Any, session: Session) -> None:
    from cosmic.pages import pictures

    for engine in ("ptychocam", "..", "nothing"):
        with pytest.raises(HTTPException) as refused:
            pictures.preview("transfer_auto_recon", RUN_ID, engine, session)
        assert refused.value.status_code == 404


def add_run(session: Session, run_id: str, state: str, path: str) -> None:
    """Add a run of a file."""
    session.add(
        DagRun(
            dag_id="transfer_auto_recon",
            run_id=run_id,
            run_type="manual",
            state=DagRunState(state),
            conf={"file_path": path},
            run_after=BEGAN,
        )
    )
    session.flush()


def add_file(session: Session, run_id: str, state: str) -> None:
    """Add a run of another file of the scan, named after it."""
    scan, energy, rest = run_id.partition("__")[0].split("_", 3)[1:]
    add_run(session, run_id, state, f"2023/02/230216/NS_{scan}_ccdframes_{energy}_{rest}.cxi")


def add_warnings(session: Session, run_id: str) -> None:
    """Add what the last task of a run leaves when its results have warnings."""
    run = session.scalar(select(DagRun).where(DagRun.run_id == run_id))
    assert run is not None
    operator: Any = EmptyOperator(task_id=REPORT_TASK)
    task = TaskInstance(operator, None, run_id)
    task.dag_id = run.dag_id
    session.add(task)
    session.flush()
    session.add(
        XComModel(
            dag_run_id=run.id,
            dag_id=run.dag_id,
            run_id=run_id,
            task_id=REPORT_TASK,
            key=WARNINGS_KEY,
            value="1",
        )
    )
    session.flush()


def test_a_scan_with_one_file_has_no_list_of_files(page: Callable[[bool], str], session: Session) -> None:
    add_file(session, "NS_230216033_0_0", "failed")
    add_file(session, "NS_2302160331_0_0", "failed")
    assert "Scan NS_" not in page(True)


def test_the_files_of_the_scan_are_counted_by_their_newest_runs(
    page: Callable[[bool], str], session: Session
) -> None:
    for energy in range(10, 0, -1):
        add_file(session, f"NS_230216033_{energy}_0", "success")
    add_file(session, "NS_230216033_0_0", "running")
    add_file(session, "NS_230216033_2_0__r2", "failed")
    add_file(session, "NS_230216033_10_0__r2", "failed")
    add_file(session, "NS_230216033_10_0__r3", "success")
    add_file(session, "NS_230216033_3_1_cosmic2", "failed")
    add_run(session, "NS_230216033_.somebodys.own", "running", "calibration.cxi")
    add_run(session, "NS_230216033_ccdframes_0_0.1a2b3c4d", "running", f"copy/{SCAN}")
    for run_id in ("NS_230216033_9_0", "NS_230216033_1_0", "NS_230216033_10_0", "NS_230216033_2_0__r2"):
        add_warnings(session, run_id)
    html = page(True)
    assert "<h2>Scan NS_230216033</h2>" in html
    assert "9 of 12 files done, 2 of them with warnings, 2 failed, 1 running." in html
    runs = "/airflow/dags/transfer_auto_recon/runs"
    assert f'<a href="{runs}?run_id_pattern=NS_230216033_" target="_top">Its runs</a>' in html
    links = [
        f'<a href="{runs}/{name}" target="_top">{name}</a>'
        for name in ("NS_230216033_2_0__r2", "NS_230216033_3_1_cosmic2")
    ]
    assert f"Failed: {', '.join(links)}</p>" in html
    links = [
        f'<a href="{runs}/{name}" target="_top">{name}</a>'
        for name in ("NS_230216033_1_0", "NS_230216033_9_0")
    ]
    assert f"With warnings: {', '.join(links)}</p>" in html


@pytest.mark.parametrize(
    ("form", "stem"),
    [
        ("", "CX_230216033_ccdframes_{}_0"),
        ("", "NS_230216033_ccdframes_{}"),
        ("CX-7_<number>.<yymmdd>_<region>.cxi", "CX-7_033.230216_{}"),
    ],
)
def test_the_files_of_a_scan_with_another_name_are_counted(
    page: Callable[[bool], str], session: Session, tmp_path: Path, form: str, stem: str
) -> None:
    """The site's forms of names are those of beamline.yaml."""
    if form:
        text = DEFAULT_FILE.read_text().replace("scan_names:", f"scan_names:\n      - {form}", 1)
        (tmp_path / "site.yaml").write_text(text)
        os.environ["AIRFLOW__COSMIC__BEAMLINE_FILE"] = str(tmp_path / "site.yaml")  # which `session` resets
    for number in range(3):
        scan = parse_scan_path(f"2023/02/230216/{stem.format(number)}.cxi")
        add_run(session, scan.run_id(), "success", f"/{scan.relative}")
    conf = {"file_path": str(scan.relative)}
    session.execute(update(DagRun).where(DagRun.run_id == RUN_ID).values(conf=conf))
    session.expire_all()
    assert "3 of 3 files done." in page(True)


def test_of_too_many_runs_of_a_scan_the_newest_count(
    page: Callable[[bool], str], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic import scan_files

    monkeypatch.setattr(scan_files, "MAX_RUNS", 2)
    for ending in ("", "__r2"):
        for energy in (1, 2):
            state = "success" if ending else "failed"
            add_file(session, f"NS_230216033_{energy}_0{ending}", state)
    assert "2 of 2 files done." in page(True)


def test_of_many_failures_the_first_are_linked(page: Callable[[bool], str], session: Session) -> None:
    for number in range(800):
        add_file(session, f"NS_230216033_{number // 4}_{number % 4}", "failed")
    html = page(True)
    assert "0 of 800 files done, 800 failed." in html
    assert html.count("/runs/NS_230216033_") == 20


@pytest.fixture
def kept_run(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DagRun:
    """The run, with a result of ptychocam of which everything is kept."""
    from cosmic import kept_results
    from cosmic.plan import result_prefix
    from cosmic.run_summary import XComs
    from support.live import example_figures

    monkeypatch.setenv("AIRFLOW__COSMIC__KEPT_RESULTS", str(tmp_path / "kept"))
    run = session.scalars(select(DagRun).where(DagRun.run_id == RUN_ID)).one()
    prefix = result_prefix(beamline(), parse_scan_path(SCAN), "ptychocam", run)
    held = {"ptychocam.collect": {"preview": prefix + ".png"}}
    monkeypatch.setattr(XComs, "get", lambda _, task_id, *_key: held.get(task_id))
    content, figures = example_figures()
    files = {name.removeprefix("view_"): picture for name, picture in content.items()}
    files |= {name: base64.b64decode(figures["thumbnail_png"]) for name in ("thumbnail.png", "preview.png")}
    kept_results.keep(run, "ptychocam", files | {"figures.json": json.dumps(figures).encode()})
    return run


def test_pictures_and_figures_are_served_without_nersc(kept_run: DagRun, session: Session) -> None:
    """No connection to NERSC is known here."""
    from cosmic.pages import pictures
    from support.live import example_figures

    content, figures = example_figures()
    address = ("transfer_auto_recon", RUN_ID, "ptychocam")
    for picture in ("amplitude", "phase"):
        reply = pictures.full_picture(*address, picture, session)
        assert reply.body == content[f"view_{picture}.gz"]
        assert reply.headers["Content-Encoding"] == "gzip"
    for served in (pictures.preview, pictures.thumbnail):
        reply = served(*address, session)
        assert bytes(reply.body).startswith(b"\x89PNG")
        assert reply.media_type == "image/png"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in reply.headers["Content-Security-Policy"]
    assert json.loads(bytes(pictures.figures(*address, session).body)) == figures


def test_a_picture_of_no_name_and_what_is_not_kept_are_words(kept_run: DagRun, session: Session) -> None:
    from cosmic import kept_results
    from cosmic.pages import pictures

    with pytest.raises(HTTPException, match="amplitude and phase"):
        pictures.full_picture("transfer_auto_recon", RUN_ID, "ptychocam", "../figures.json", session)
    shutil.rmtree(Path(str(kept_results.root())))
    with pytest.raises(HTTPException, match=r"No thumbnail of this result is kept\."):
        pictures.thumbnail("transfer_auto_recon", RUN_ID, "ptychocam", session)


def test_pages_that_wait_for_nersc_leave_threads_and_connections_to_others(
    kept_run: DagRun, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are few, hold no connection to the database, and do not try again by themselves."""
    from cosmic import kept_results
    from cosmic.pages import pictures
    from facilities.errors import TransientError

    session.commit()
    shutil.rmtree(Path(str(kept_results.root())))
    address = ("transfer_auto_recon", RUN_ID, "ptychocam")
    made: list[tuple[bool, int]] = []

    class Hanging:
        def __init__(self, _: str, attempts: int = 4) -> None:
            made.append((session.in_transaction(), attempts))

        def close(self) -> None:
            """As a hook."""

        def download(self, *_: str) -> bytes:
            if len(made) < pictures._AT_ONCE:
                with pytest.raises(HTTPException, match="could not be read"):
                    pictures.preview(*address, session)
            else:
                with pytest.raises(HTTPException, match="many pages wait for it") as refused:
                    pictures.preview(*address, session)
                assert refused.value.status_code == 503
            raise TransientError("NERSC does not answer")

    monkeypatch.setattr(pictures, "SuperfacilityHook", Hanging)
    try:
        for _ in range(2):  # what was taken is given back
            made.clear()
            with pytest.raises(HTTPException, match="could not be read"):
                pictures.preview(*address, session)
            assert made == [(False, 1)] * pictures._AT_ONCE
    finally:
        session.execute(delete(DagRun).where(DagRun.run_id == RUN_ID))
        session.commit()


def test_figures_are_json_whatever_numbers_a_program_wrote() -> None:
    from cosmic.pages.pictures import parse_figures

    assert parse_figures(b'{"a": NaN, "b": [1e999, -Infinity, 2.5]}') == {"a": None, "b": [None, None, 2.5]}
    for text in (b"[1]", b"{", b"[" * 100_000):
        with pytest.raises(ValueError, match=r".+"):
            parse_figures(text)


def test_no_other_dags_run_has_pictures_or_a_log_here(kept_run: DagRun, session: Session) -> None:
    """Not even one that claims the same result."""
    from cosmic.pages import job_log, pictures

    other = DagRun(
        dag_id="somebodys", run_id=RUN_ID, run_type="manual", conf={"file_path": SCAN}, run_after=BEGAN
    )
    session.add(other)
    session.flush()
    for served in (pictures.preview, pictures.thumbnail, pictures.figures):
        with pytest.raises(HTTPException, match="has no ptychocam reconstruction"):
            served("somebodys", RUN_ID, "ptychocam", session)
    with pytest.raises(HTTPException, match="has no ptychocam reconstruction"):
        pictures.full_picture("somebodys", RUN_ID, "ptychocam", "phase", session)
    reply = job_log.job_log("somebodys", RUN_ID, "ptychocam", session)
    assert json.loads(bytes(reply.body)) == {"why_not": "There is no job yet."}


def test_the_result_tab_leads_to_the_page_of_the_scan(page: Callable[[bool], str]) -> None:
    assert f'<a href="/airflow/cosmic/scans/NS_230216033?run={RUN_ID}">' in page(True)
