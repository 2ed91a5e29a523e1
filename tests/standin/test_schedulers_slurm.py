"""Real Slurm's side: how its commands are called, and how recorded output of them is read.

The commands are programs of the test's own that print what Slurm 22.05 printed and note their arguments;
Slurm itself is met by `make slurm-test`.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from standin.nersc.database import Database
from standin.nersc.options import LiveOptions
from standin.nersc.schedulers.interface import Query, QueryError, RejectedError, Submission
from standin.nersc.schedulers.rows import SACCT_COLUMNS, SQUEUE_COLUMNS
from standin.nersc.schedulers.slurm import (
    BOOK_FIELDS,
    FIELD,
    RECORD,
    UNKNOWN_OUTCOME,
    SlurmScheduler,
    parse_sacct,
    parse_squeue,
    slurm_answers,
)
from standin.service import ControlError

RECORDED = (Path(__file__).parent / "slurm_sacct.txt").read_text()
HEADINGS = (Path(__file__).parent / "slurm_headings.txt").read_text().splitlines()[1].split("|")
T = TypeVar("T")


class Cluster:
    """Fake commands in a folder of their own, and a scheduler that calls them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.database = Database(folder / "state.sqlite")
        self.options = LiveOptions(self.database, 4)
        self.scheduler = SlurmScheduler(self.database, self.options, self.home)

    def command(self, name: str, output: str = "", errors: str = "", code: int = 0) -> None:
        """Let a command print that and end with that code."""
        (self.folder / f"{name}.out").write_text(output)
        (self.folder / f"{name}.err").write_text(errors)
        path = self.folder / name
        path.write_text(
            f"#!/bin/sh\nPATH={os.defpath}\n"
            f'for word; do printf "%s\\0" "$word"; done >> {self.folder}/{name}.args\n'
            f"printf '\\n' >> {self.folder}/{name}.args\nenv > {self.folder}/{name}.env\n"
            f"cat > {self.folder}/{name}.in\ncat {self.folder}/{name}.out\ncat {self.folder}/{name}.err >&2\n"
            f"exit {code}\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of a command."""
        path = self.folder / f"{name}.args"
        lines = path.read_text().split("\0\n") if path.exists() else []
        return [line.split("\0") for line in lines if line]

    def read(self, name: str) -> str:
        """A file beside the commands."""
        return (self.folder / name).read_text()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose commands are the only ones: this machine's Slurm, if it has one, is not found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    made = Cluster(tmp_path)
    yield made
    made.database.close()


def run(work: Awaitable[T]) -> T:
    """Run a coroutine."""

    async def main() -> T:
        return await work

    return asyncio.run(main())


def squeue_output(*records: dict[str, str]) -> str:
    """What squeue prints with our format; values by heading, the last of equal headings."""
    lines = [HEADINGS, *([record.get(heading.lower(), "") for heading in HEADINGS] for record in records)]
    return "".join(FIELD.join(line) + RECORD + "\n" for line in lines)


def test_recorded_rows() -> None:
    rows = {row["jobname"] + row["jobid"]: row for row in parse_sacct(RECORDED)}
    assert all(list(row) == list(SACCT_COLUMNS) for row in rows.values())
    assert (rows["ok4"]["state"], rows["ok4"]["constraints"], rows["ok4"]["user"]) == (
        "COMPLETED",
        "gpu",
        "root",
    )
    assert (rows["timeout18"]["state"], rows["timeout18"]["elapsedraw"]) == ("TIMEOUT", "78")
    assert rows["x.sh12"]["state"] == "CANCELLED by 0"
    assert rows["depkill22"]["start"] == "None"
    assert (rows["arr24_1"]["jobid"], rows["arr24_1"]["jobidraw"]) == ("24_1", "25")
    assert rows["k954"]["exitcode"] == "0:9"
    assert rows["nodefail_noreq29"]["state"] == "NODE_FAIL"


def test_squeue_rows_keep_the_last_of_equal_headings() -> None:
    output = squeue_output({"state": "RUNNING", "name": "a|b", "work_dir": "/x"})
    (row,) = parse_squeue(output)
    assert tuple(row) == SQUEUE_COLUMNS
    assert (row["state"], row["name"], row["work_dir"]) == ("RUNNING", "a|b", "/x")
    assert parse_squeue(squeue_output()) == []


_VALUE = st.text(st.characters(exclude_characters=f"{FIELD}{RECORD}", codec="utf-8"))


@example([["\n", "", ""], ["a\n\nb", "|", "c"]])
@given(st.lists(st.lists(_VALUE, min_size=3, max_size=3), max_size=4))
def test_names_with_bars_and_line_breaks_survive(rows: list[list[str]]) -> None:
    """Rows are told apart by their fields, not by lines; only a last field may not end in a line break."""
    rows = [[first, second, third.rstrip("\n").split("\n")[0]] for first, second, third in rows]
    text = "\n".join(FIELD.join(row) for row in [["JobID", "JobName", "State"], *rows]) + "\n"
    assert [list(row.values()) for row in parse_sacct(text)] == rows
    squeue = "".join(FIELD.join(row) + RECORD + "\n" for row in [["JOBID", "NAME", "STATE"], *rows])
    expected = [[first.lstrip("\n"), second, third] for first, second, third in rows]
    assert [list(row.values()) for row in parse_squeue(squeue)] == expected


def test_submit_hands_the_text_to_sbatch_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_CLIENT_SECRET", "secret")
    cluster.command("sbatch", "77;cluster\n")
    submission = Submission("r1", "#!/bin/sh\ndate\n")
    assert run(cluster.scheduler.submit(submission)) == "77"
    assert run(cluster.scheduler.submit(submission)) == "77"
    assert cluster.calls("sbatch") == [["--parsable"]]
    assert cluster.read("sbatch.in") == "#!/bin/sh\ndate\n"
    assert "secret" not in cluster.read("sbatch.env")
    assert "TZ=America/Los_Angeles\n" in cluster.read("sbatch.env")


def test_submit_by_path_keeps_arguments_whole(cluster: Cluster) -> None:
    cluster.command("sbatch", "78\n")
    submission = Submission("r1", "#!/bin/sh\n", ("a b", "--hold"), "/global/x.sh")
    assert run(cluster.scheduler.submit(submission)) == "78"
    assert cluster.calls("sbatch") == [["--parsable", "--", "/global/x.sh", "a b", "--hold"]]


def test_refusals_are_sbatchs_words(cluster: Cluster) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid qos specification"
    cluster.command("sbatch", errors=words + "\n", code=1)
    with pytest.raises(RejectedError) as caught:
        run(cluster.scheduler.submit(Submission("r1", "#!/bin/sh\n")))
    assert str(caught.value) == words
    cluster.command("sbatch", "79\n")
    assert run(cluster.scheduler.submit(Submission("r1", "#!/bin/sh\n"))) == "79"


def test_a_submit_that_a_crash_cut_off_is_not_repeated(cluster: Cluster) -> None:
    cluster.command("sbatch", "80\n")
    cluster.database.run("INSERT INTO submissions VALUES ('r1', NULL)")
    with pytest.raises(RejectedError, match="look it up by its name") as caught:
        run(cluster.scheduler.submit(Submission("r1", "#!/bin/sh\n")))
    assert str(caught.value) == UNKNOWN_OUTCOME
    assert cluster.calls("sbatch") == []


def test_queries(cluster: Cluster) -> None:
    cluster.command("sacct", RECORDED)
    cluster.command("squeue", squeue_output({"jobid": "5", "state": "PENDING"}))
    rows = run(cluster.scheduler.sacct(Query({"jobid": "4,7", "user": "root"})))
    assert rows[0]["jobid"] == "4"
    assert cluster.calls("sacct")[0][-2:] == ["--jobs=4,7", "--user=root"]
    assert "--allocations" in cluster.calls("sacct")[0]
    assert run(cluster.scheduler.squeue(Query({})))[0]["state"] == "PENDING"
    with pytest.raises(QueryError, match="unrecognized option '--format'"):
        run(cluster.scheduler.squeue(Query({"format": "%all"})))
    with pytest.raises(QueryError, match="Invalid job id"):
        run(cluster.scheduler.sacct(Query({"jobid": "1 --helpstate"})))
    cluster.command("squeue", errors="slurm_load_jobs error: Invalid job id specified\n", code=1)
    with pytest.raises(QueryError, match="slurm_load_jobs error: Invalid job id specified"):
        run(cluster.scheduler.squeue(Query({"jobid": "999"})))


def test_cached_view_is_one_listing(cluster: Cluster) -> None:
    cluster.command("sacct", RECORDED)
    for job_id, name in (("4", "ok"), ("54", "k9")):
        rows = run(cluster.scheduler.sacct(Query({"jobid": job_id}, cached=True)))
        assert [row["jobname"] for row in rows] == [name]
    rows = run(cluster.scheduler.sacct(Query({"name": "ok", "user": "root"}, cached=True)))
    assert [row["jobid"] for row in rows] == ["4"]
    assert run(cluster.scheduler.sacct(Query({"state": "CANCELLED"}, cached=True)))
    assert len(cluster.calls("sacct")) == 1


def test_cancel(cluster: Cluster) -> None:
    cluster.command("squeue")
    cluster.command("scancel")
    for job_id in ("12", "24_1", "12;rm", "--user=root", ""):
        run(cluster.scheduler.cancel(job_id))
    assert cluster.calls("scancel") == [["--", "12"], ["--", "24_1"]]


def test_a_command_that_is_not_installed_is_named(cluster: Cluster) -> None:
    with pytest.raises(RejectedError, match="sbatch: command not found"):
        run(cluster.scheduler.submit(Submission("r1", "#!/bin/sh\n")))
    with pytest.raises(QueryError, match="squeue: command not found"):
        run(cluster.scheduler.squeue(Query({})))


def test_books_count_the_runs(cluster: Cluster) -> None:
    times = "2026-11-22T17:20:04", "2026-11-22T17:20:06", "2026-11-22T17:20:08"
    rest = ["als_g", "regular", "1", "3", "None", "/scratch"]
    rows = [
        list(BOOK_FIELDS),
        ["30", "twice", "root", "0", "NODE_FAIL", "0:0", *times, *rest],
        ["30", "twice", "root", "0", "CANCELLED by 0", "0:0", times[2], "None", times[2], *rest],
    ]
    cluster.command("sacct", "\n".join(FIELD.join(row) for row in rows) + "\n")
    cluster.command("scancel")
    cluster.command("squeue", "30\n")
    cluster.database.run("INSERT INTO submissions VALUES ('r1', '30'), ('r2', '31'), ('r3', NULL)")
    run(cluster.scheduler.cancel("30"))
    cluster.command("squeue", errors="slurm_load_jobs error: Invalid job id specified\n", code=1)
    run(cluster.scheduler.cancel("30"))
    job, unaccounted = run(cluster.scheduler.all_jobs())
    assert cluster.calls("sacct")[0][-1] == "--jobs=30,31"
    assert (unaccounted["job_id"], unaccounted["active"], unaccounted["runs"]) == ("31", True, 0)
    assert (job["runs"], job["restarts"], job["state"], job["cancelled_by"]) == (1, 1, "CANCELLED", 0)
    assert (job["states"], job["time_limit"]) == (["NODE_FAIL", "CANCELLED"], 180.0)
    assert [cancel["effective"] for cancel in job["cancels"]] == [True, False]
    run(cluster.scheduler.controls()["end_all"]({}))
    assert cluster.calls("scancel")[-1] == ["30", "31"]


def test_controls(cluster: Cluster) -> None:
    cluster.command("scontrol")
    cluster.command("scancel")
    cluster.command("squeue", squeue_output({"jobid": "5", "nodelist": "nid[1-2]", "state": "RUNNING"}))
    verbs: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = cluster.scheduler.controls()
    run(verbs["hold"]({"job_id": "5"}))
    assert run(verbs["node_failure"]({"job_id": "5"})) == {"job_id": "5", "nodes": "nid[1-2]"}
    run(verbs["restore_nodes"]({"nodes": "nid[1-2]"}))
    run(verbs["signal"]({"job_id": "5", "number": 10}))
    assert cluster.calls("scontrol") == [
        ["hold", "5"],
        ["update", "NodeName=nid[1-2]", "State=DOWN", "Reason=stand-in"],
        ["update", "NodeName=nid[1-2]", "State=RESUME"],
    ]
    assert cluster.calls("scancel") == [["--full", "--signal=10", "--", "5"]]
    for verb, body in (
        ("hold", {"job_id": "5 6"}),
        ("signal", {"job_id": "5", "number": 99}),
        ("restore_nodes", {"nodes": "a b"}),
    ):
        with pytest.raises(ControlError):
            run(verbs[verb](body))
    cluster.command("scontrol", errors="slurm_suspend error: Access denied\n", code=1)
    with pytest.raises(ControlError, match="Access denied"):
        run(verbs["suspend"]({"job_id": "5"}))


def test_slurm_is_chosen_only_when_it_answers(cluster: Cluster) -> None:
    assert not slurm_answers()
    cluster.command("sbatch")
    cluster.command("scontrol", "Slurmctld(primary) at vm is DOWN\n")
    assert not slurm_answers()
    cluster.command("scontrol", "Slurmctld(primary) at vm is UP\n")
    assert slurm_answers()
