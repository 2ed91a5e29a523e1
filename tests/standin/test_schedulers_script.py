"""Batch scripts as sbatch reads and refuses them. No processes."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standin.nersc.options import Options
from standin.nersc.schedulers.durations import (
    UNLIMITED,
    elapsed,
    moment,
    parse_memory,
    parse_moment,
    parse_time_limit,
    short_elapsed,
)
from standin.nersc.schedulers.environment import fill_pattern, job_environment, output_path
from standin.nersc.schedulers.interface import RejectedError, Submission
from standin.nersc.schedulers.job import Job
from standin.nersc.schedulers.policy import Site, UnavailableConfigurationError, make_job
from standin.nersc.schedulers.script import directives, parse_options

HOME = Path("/fs/homes/me")
PREFIX = "sbatch: error: Batch job submission failed: "


def made(*lines: str, text: str | None = None, submitted: int = 0, **submission: Any) -> Job:
    """The job of a script with those directives."""
    text = (
        text
        if text is not None
        else "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), "date"])
    )
    site = Site(Options(user="me"), HOME, lambda _qos: submitted)
    return make_job(Submission("r", text, **submission), site)


def refusal(*lines: str, **parameters: Any) -> str:
    """sbatch's words."""
    with pytest.raises(RejectedError) as caught:
        made(*lines, **parameters)
    return str(caught.value)


def test_directives_of_every_form() -> None:
    job = made(
        "-C gpu -q regular --account=als_g", "-N2 --gpus 8", '--job-name="a b" # a comment', "-t 04:00:00",
        "--output=logs/%x-%j.out --error err", "--mem=16G", "--requeue", "--comment 'x y'", "-c4 -n 2",
    )  # fmt: skip
    assert (job.nodes, job.gpus, job.name, job.time_limit) == (2, 8, "a b", 4 * 3600)
    assert (job.qos, job.asked_qos, job.partition, job.account) == (
        "gpu_regular",
        "regular",
        "gpu_ss11",
        "als_g",
    )
    assert (job.stdout, job.stderr, job.memory_mb, job.requeue) == ("logs/%x-%j.out", "err", 16384, True)
    assert (job.comment, job.cpus_per_task, job.ntasks, job.work_dir) == ("x y", 4, 2, str(HOME))


def test_defaults_are_perlmutters() -> None:
    job = made("-C cpu")
    assert (job.qos, job.time_limit, job.nodes, job.requeue, job.gpus) == ("debug", 600, 1, False, 0)
    assert (job.name, job.stdout, job.stderr, job.memory_mb) == ("sbatch", "slurm-%j.out", None, None)
    assert made("-C cpu -q regular").qos == "regular_1"


def test_name_comes_from_directive_then_file() -> None:
    assert made("-C gpu", name="recon.sh").name == "recon.sh"
    assert made("-C gpu -J mine", name="recon.sh").name == "mine"


def test_what_is_not_a_directive() -> None:
    text = "#!/bin/bash\n#SBATCH -C gpu\n# comment\n\n  #SBATCH -J indented\n#SBATCH -q regular\n"
    text += "cd x\n#SBATCH -J late\n"
    assert directives(text) == {"constraint": "gpu", "qos": "regular"}
    assert directives("#!/bin/bash\n##SBATCH -J x\n#SBATCH -J a\n#SBATCH -J b\n") == {"job-name": "b"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "sbatch: error: Batch script is empty!"),
        (" \n\t\n", "sbatch: error: Batch script contains only whitespace!"),
        ("echo hello\n", "sbatch: error: This does not look like a batch script.  The first"),
        (" #!/bin/sh\n", "sbatch: error: This does not look like a batch script.  The first"),
        ("#!/bin/sh\r\n#SBATCH -C gpu\r\n", "sbatch: error: Batch script contains DOS line breaks (\\r\\n)"),
        ("#!/bin/sh\n\0", "sbatch: error: The Slurm controller does not allow scripts that"),
    ],
)
def test_texts_that_are_no_batch_scripts(text: str, words: str) -> None:
    assert refusal(text=text).splitlines()[0] == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-A nobody -C gpu", PREFIX + "Invalid account or account/partition combination specified"),
        ("-q nosuch -C gpu", PREFIX + "Invalid qos specification"),
        ("-C haswell", PREFIX + "Invalid feature specification"),
        ("-C gpu -N 2 -G 9", PREFIX + "Requested node configuration is not available"),
        ("-C cpu -G 1", PREFIX + "Requested node configuration is not available"),
        ("-C gpu --mem=4T", "sbatch: error: Memory specification can not be satisfied"),
        ("-C gpu -L nosuch", PREFIX + "Invalid license specification"),
        ("-C gpu --reservation=x", PREFIX + "Requested reservation is invalid"),
        ("-C gpu -d expand:3", PREFIX + "Requested operation not supported on this system"),
        ("-C gpu -d afterok", PREFIX + "Job dependency problem"),
        ("-C gpu -d afterok:x", PREFIX + "Job dependency problem"),
        ("-C gpu -d afterok:1?afterany:2", PREFIX + "Job dependency problem"),
        ("-C gpu --gres=shark", "sbatch: error: Invalid generic resource (gres) specification"),
        ("-C gpu -t soon", "sbatch: error: Invalid --time specification"),
        ("-C gpu --mem=lots", "sbatch: error: Invalid --mem specification"),
        ("-C gpu --signal=NOPE", "sbatch: error: Invalid --signal specification"),
        ("-C gpu --begin=eventually", "Invalid time specification (pos=0): eventually"),
        ("-C gpu -N none", 'sbatch: error: "none" is not a valid node count'),
        ("-C gpu -N 2-1", "sbatch: error: Maximum node count 1 is less than minimum node count 2"),
        ("-C gpu -n none", 'sbatch: error: Invalid numeric value "none" for --ntasks.'),
        ("-C gpu -G some", "sbatch: error: Invalid generic resource (gres) specification"),
        ("-C gpu --frobnicate", "sbatch: unrecognized option '--frobnicate'"),
        (
            "-C gpu --no",
            "sbatch: option '--no' is ambiguous; possibilities: '--no-kill' '--no-requeue' '--nodefile' "
            "'--nodelist' '--nodes'",
        ),
        ("-C gpu -Z", "sbatch: invalid option -- 'Z'"),
        ("-C gpu --time", "sbatch: option '--time' requires an argument"),
        ("-C gpu -J", "sbatch: option requires an argument -- 'J'"),
        ("-C gpu stray", "sbatch: error: Invalid directive found in batch script: stray"),
        ("-C gpu --requeue=1", "sbatch: option '--requeue' doesn't allow an argument"),
        ("-C gpu -J 'open", "sbatch: fatal: stdin: line 2: Unmatched `'` in [ 'open]"),
        ("-C gpu -p nosuch", "sbatch: error: invalid partition specified: nosuch"),
        ("-q regular", "sbatch: error: No architecture specified, cannot estimate job costs."),
        ("-C gpu -q gpu_regular", "sbatch: error: Job request does not match any supported policy."),
        ("-C gpu -q interactive", "sbatch: error: Job request does not match any supported policy."),
        ("-C gpu&cpu", "sbatch: error: Job request does not match any supported policy."),
    ],
)
def test_refusals_word_for_word(line: str, words: str) -> None:
    assert refusal(line).splitlines()[0] == words


def test_arrays_are_refused_clearly() -> None:
    assert "Invalid job array specification" in refusal("-C gpu -a 1-4")
    assert "runs no job arrays" in refusal("-C gpu --array=1-4%2")


def test_limits_of_a_qos() -> None:
    policy = PREFIX + "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    limit = f"sbatch: error: QOSMaxWallDurationPerJobLimit\n{policy}"
    assert refusal("-C gpu -q debug -t 31") == limit
    assert refusal("-C gpu -q regular -t 2-01:00:00") == limit
    assert refusal("-C gpu -q debug", submitted=5) == f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{policy}"
    assert made("-C gpu -q debug -t 30", submitted=4).time_limit == 1800


def test_impossible_configuration_keeps_the_job_for_the_books() -> None:
    with pytest.raises(UnavailableConfigurationError) as caught:
        made("-C gpu -J greedy -N 100000")
    assert caught.value.job.name == "greedy"


def test_indented_directives_are_why_there_is_no_architecture() -> None:
    assert "No architecture specified" in refusal(text="#!/bin/bash\n  #SBATCH -C gpu\ndate\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("0:30", 60), ("90:00", 5400), ("4:00:00", 14400), ("04:00:00", 14400), ("1-0", 86400),
     ("1-2:30", 95400), ("1-02:03:04", 93840), ("0", 0), ("UNLIMITED", UNLIMITED)],
)  # fmt: skip
def test_time_limits(text: str, seconds: float) -> None:
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "-5", "1-2-3", "4h", "\uff11"])
def test_wrong_time_limits(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_time_limit(text)


def test_memory() -> None:
    assert [parse_memory(t) for t in ("16G", "100", "100M", "2048K", "1T", "0")] == [
        16384,
        100,
        100,
        2,
        1048576,
        0,
    ]


@given(st.integers(0, 99 * 86400))
def test_printed_times_read_back(seconds: int) -> None:
    for shown in (elapsed(seconds), short_elapsed(seconds)):
        assert parse_time_limit(shown) == -(-seconds // 60) * 60


@given(st.integers(946_684_800, 3_786_912_000))
def test_moments_read_back(stamp: int) -> None:
    zone = ZoneInfo("America/Los_Angeles")
    shown = moment(stamp, zone, "")
    assert moment(parse_moment(shown, zone, 0.0), zone, "") == shown  # an hour a year comes twice
    assert parse_moment("now+2hours", zone, stamp) == stamp + 7200


_WORD = st.text(st.characters(exclude_characters="\0\r\n", codec="utf-8"), min_size=1)


@given(_WORD)
def test_quoted_names_survive(name: str) -> None:

    assert directives(f"#!/bin/sh\n#SBATCH --job-name={shlex.quote(name)}\n")["job-name"] == name


@given(st.text())
def test_any_text_gives_a_job_or_a_refusal(text: str) -> None:
    for candidate in (text, f"#!/bin/sh\n#SBATCH {text}\n", f"#!/bin/sh\n#SBATCH -C gpu {text}\n"):
        try:
            job = made(text=candidate)
        except RejectedError as error:
            assert "sbatch: " in str(error)  # noqa: PT017 - both outcomes are right
        else:
            assert job.state == "PENDING"


@given(
    st.lists(
        st.sampled_from(["-N1", "--nodes=1", "--requeue", "-H", "--time", "5", "-J", "x", "--", "-", "--x=1"])
    )
)
def test_any_words_give_options_or_a_refusal(words: list[str]) -> None:
    try:
        assert set(parse_options(words)) <= {"nodes", "requeue", "hold", "time", "job-name"}
    except RejectedError as error:
        assert "sbatch: " in str(error)  # noqa: PT017 - both outcomes are right


def test_file_patterns(tmp_path: Path) -> None:
    job = made("-C gpu -J recon")
    job.job_id, job.node_list, job.work_dir = 42, "nid[001000-001003]", str(tmp_path)
    assert fill_pattern("%x-%j-%6j-%u-%N-%%j-%z", job) == "recon-42-000042-me-nid-%j-%z"
    assert output_path("a/%j.out", job, tmp_path) == f"{tmp_path}/a/42.out"
    assert output_path("/dev/null", job, tmp_path) == "/dev/null"
    for outside in ("/etc/passwd", "../../x", "/tmp/x"):
        assert output_path(outside, job, tmp_path).startswith("/nonexistent/")
    (tmp_path / "link").symlink_to("/etc")
    assert output_path("link/x", job, tmp_path).startswith("/nonexistent/")


def test_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_CLIENT_SECRET", "secret")
    job = made("-C gpu -G 2 --export=ALL,MODE=fast,1BAD=x --mem=1G")
    job.job_id, job.start, job.restarts, job.node_list = 7, time.time(), 1, "nid001000"
    environment = job_environment(job, Options(user="me"), HOME)
    assert "secret" not in environment.values()
    assert (environment["MODE"], environment["SLURM_JOB_ID"], environment["SLURM_GPUS"]) == ("fast", "7", "2")
    assert (environment["SLURM_RESTART_COUNT"], environment["HOME"]) == ("1", str(HOME))
    assert "1BAD" not in environment
