"""`sacct` as a command, which finds jobs of earlier days where the listing of SFAPI does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.nersc import Nersc, nersc_running, script


@pytest.fixture(scope="module")
def nersc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nersc]:
    """One facility for the module."""
    with nersc_running(tmp_path_factory.mktemp("sacct")) as made:
        yield made


def run(nersc: Nersc, command: str) -> dict[str, Any]:
    reply = nersc.call("POST", "utilities/command/perlmutter", data={"executable": command})
    return nersc.result(reply.json()["task_id"])


@pytest.mark.both
def test_one_line_per_job_with_the_columns_that_were_asked_for(nersc: Nersc) -> None:
    ids = [nersc.submit(script("exit 3", directives=f"-J {name}")) for name in ("first", "second")]
    for job_id in ids:
        nersc.wait_for(job_id, "FAILED")
    command = "sacct -X -n -P '--delimiter=|' --name=first,other --format=JobID,State,ExitCode,JobName"
    assert run(nersc, command)["output"] == f"{ids[0]}|FAILED|3:0|first\n"
    assert run(nersc, command + " --starttime=2100-01-01")["output"] == ""
    with_header = run(nersc, f"sacct -X -P -j {ids[1]} -o JobID,JobName")
    assert with_header["output"] == f"JobID|JobName\n{ids[1]}|second\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sacct -P --format=JobID,Nothing", "Invalid field requested"),
        ("sacct -P --no-such-option", "unrecognized arguments"),
        ("sacct", "required"),
        ("sacct -P -j 12;ls", "Invalid job id"),
        ("squeue --me", "command not found"),  # not that of a Slurm which the machine happens to have
    ],
)
def test_what_it_does_not_have_is_refused(nersc: Nersc, command: str, said: str) -> None:
    nersc.ended(nersc.submit(script("true")))
    result = run(nersc, command)
    assert said in result["error"]
    assert result["exit_code"] != 0
