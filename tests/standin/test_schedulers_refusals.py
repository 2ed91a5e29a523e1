"""What sbatch says to requests that it refuses: the built-in runner says it in Slurm's own words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from standin.testing import until
from support.nersc import Nersc, cancel, nersc_running, script

pytestmark = pytest.mark.both

FAILED = "sbatch: error: Batch job submission failed: "
POLICY = f"sbatch: error: Job request does not match any supported policy.\n{FAILED}Unspecified error"
LIMIT = FAILED + "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
HELP = 'Try "sbatch --help" for more information'
PARTITION = f"sbatch: error: invalid partition specified: nosuch\n{FAILED}Invalid partition name specified"
NOT_AVAILABLE = FAILED + "Requested node configuration is not available"


@pytest.fixture(scope="module")
def nersc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nersc]:
    """One facility for the module."""
    with nersc_running(tmp_path_factory.mktemp("refusals")) as made:
        yield made


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("-C gpu -A nobody", FAILED + "Invalid account or account/partition combination specified"),
        ("-C gpu -q nosuch", FAILED + "Invalid qos specification"),
        ("-C haswell", FAILED + "Invalid feature specification"),
        ("-C gpu -G 99", NOT_AVAILABLE),
        ("-C gpu --mem=4T", f"sbatch: error: Memory specification can not be satisfied\n{NOT_AVAILABLE}"),
        ("-C gpu -L nosuch", FAILED + "Invalid license specification"),
        ("-C gpu --reservation=x", FAILED + "Requested reservation is invalid"),
        ("-C gpu -d expand:3", FAILED + "Requested operation not supported on this system"),
        ("-C gpu -d afterok:x", FAILED + "Job dependency problem"),
        ("-C gpu --gres=shark", "sbatch: error: Invalid generic resource (gres) specification"),
        ("-C gpu -t soon", "sbatch: error: Invalid --time specification"),
        ("-C gpu --mem=lots", "sbatch: error: Invalid --mem specification"),
        ("-C gpu --signal=NOPE", "sbatch: error: Invalid --signal specification"),
        ("-C gpu -N none", 'sbatch: error: "none" is not a valid node count'),
        ("-C gpu -N 2-1", "sbatch: error: Maximum node count 1 is less than minimum node count 2"),
        ("-C gpu -n none", 'sbatch: error: Invalid numeric value "none" for --ntasks.'),
        ("-C gpu --frobnicate", f"sbatch: unrecognized option '--frobnicate'\n{HELP}"),
        ("-C gpu stray", "sbatch: error: Invalid directive found in batch script: stray"),
        ("-C gpu -p nosuch", PARTITION),
        ("-C gpu -J " + 1025 * "x", FAILED + "Pathname of a file, directory or other parameter too long"),
        ("-q regular", f"sbatch: error: No architecture specified, cannot estimate job costs.\n{POLICY}"),
        ("-C gpu&cpu", POLICY),
        ("-C gpu -q gpu_regular", POLICY),
        ("-C gpu -q interactive", POLICY),
        ("-C gpu -q debug -t 31", f"sbatch: error: QOSMaxWallDurationPerJobLimit\n{LIMIT}"),
        ("-C gpu -q regular -t 2-00:01:00", f"sbatch: error: QOSMaxWallDurationPerJobLimit\n{LIMIT}"),
    ],
)  # fmt: skip
def test_directives(nersc: Nersc, lines: str, words: str) -> None:
    account = "" if "-A" in lines else "#SBATCH -A als_g\n"
    assert nersc.refusal(f"#!/bin/bash\n{account}#SBATCH {lines}\ntrue\n") == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "sbatch: error: Batch script is empty!"),
        (" \n\t\n", "sbatch: error: Batch script contains only whitespace!"),
        ("echo hello\n", "sbatch: error: This does not look like a batch script.  The first"),
        ("#!/bin/sh\r\n#SBATCH -C gpu\r\n", "sbatch: error: Batch script contains DOS line breaks (\\r\\n)"),
    ],
)
def test_texts_that_are_no_batch_scripts(nersc: Nersc, text: str, words: str) -> None:
    assert nersc.refusal(text).splitlines()[0] == words


def test_more_jobs_than_the_qos_takes(nersc: Nersc) -> None:
    waiting = script("true", directives="-q debug -H")
    held = [nersc.submit(waiting) for _ in range(5)]
    assert nersc.refusal(waiting) == f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{LIMIT}"
    for job_id in held:
        cancel(nersc, job_id)
    cancel(nersc, nersc.submit(waiting))


def test_two_run_at_once_in_debug(nersc: Nersc) -> None:
    jobs = [nersc.submit(script("sleep 600", directives="-q debug -t 30")) for _ in range(3)]
    until(lambda: [nersc.row("squeue", j)["state"] for j in jobs] == ["RUNNING", "RUNNING", "PENDING"], 60)
    until(lambda: nersc.row("squeue", jobs[2])["reason"] == "QOSMaxJobsPerUserLimit")
    for job_id in reversed(jobs):
        cancel(nersc, job_id)


def test_a_refused_configuration_leaves_a_row_and_other_refusals_none(nersc: Nersc) -> None:
    before = len(nersc.facility.jobs())
    assert nersc.refusal(script(directives="-J nobodys").replace("als_g", "nobody"))
    assert nersc.refusal(script(directives="-J greedy -G 99")) == NOT_AVAILABLE
    user = nersc.described["user"]
    (row,) = until(lambda: nersc.list("sacct", user=user, name="greedy")["output"])
    assert (row["state"], row["exitcode"], row["nodelist"]) == ("FAILED", "1:0", "None assigned")
    assert nersc.list("sacct", user=user, name="nobodys")["output"] == []
    assert len(nersc.facility.jobs()) - before <= 1
