"""Accepts or refuses a request for a job as Perlmutter's sbatch and controller do."""

from __future__ import annotations

import grp
import hashlib
import os
import re
import shlex
import signal as signals
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standin.nersc.options import Options
from standin.nersc.schedulers.durations import parse_memory, parse_moment, parse_time_limit
from standin.nersc.schedulers.interface import RejectedError, Submission
from standin.nersc.schedulers.job import Job
from standin.nersc.schedulers.script import check_text, directives

HOUR = 3600.0
MAX_HOURS = {
    "debug": 0.5, "regular": 48, "shared": 48, "preempt": 48, "premium": 48, "realtime": 48, "overrun": 48,
}  # fmt: skip
BASE_PRIORITY = {
    "realtime": 90000, "premium": 72000, "debug": 70000, "regular": 69000, "shared": 69000,
    "preempt": 65000, "overrun": 60000,
}  # fmt: skip
MAX_SUBMITTED = {"debug": 5}
MAX_RUNNING = {"debug": 2}
FEATURES = frozenset({"gpu", "cpu", "hbm40g", "hbm80g"})
GPUS_PER_NODE = 4
NODES = {"gpu": 1792, "cpu": 3072}
CPUS = {"gpu": 128, "cpu": 256}
DEFAULT_LIMIT = 600.0
MAX_NAME = 1024
NODE_MEMORY_MB = {"gpu": 229_992, "cpu": 487_802}

FAILED_PREFIX = "sbatch: error: Batch job submission failed: "
LIMIT_MESSAGE = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
DEPENDENCY_TYPES = frozenset({"after", "afterany", "afternotok", "afterok", "singleton"})


UNSUPPORTED = (
    f"sbatch: error: Job request does not match any supported policy.\n{FAILED_PREFIX}Unspecified error"
)


BAD_GRES = "sbatch: error: Invalid generic resource (gres) specification"


class UnavailableConfigurationError(RejectedError):
    """A refusal that nevertheless leaves a FAILED row in the accounting."""

    def __init__(self, job: Job, why: str = "") -> None:
        super().__init__(f"{why}{FAILED_PREFIX}Requested node configuration is not available")
        self.job = job


def refuse(reason: str) -> RejectedError:
    """The controller's refusal in sbatch's words."""
    return RejectedError(FAILED_PREFIX + reason)


def over_limit(which: str) -> RejectedError:
    """The refusal of a request that goes beyond a limit of its QOS."""
    return RejectedError(f"sbatch: error: {which}\n{FAILED_PREFIX}{LIMIT_MESSAGE}")


@dataclass(frozen=True)
class Site:
    """What a request is checked against.

    :param home: where sbatch is called, and what relative paths are relative to.
    :param submitted: how many unfinished jobs there are, by QOS.
    """

    options: Options
    home: Path
    submitted: Callable[[str], int]


def make_job(submission: Submission, site: Site) -> Job:
    """Check a request and make the job.

    :raises RejectedError: when sbatch or the controller refuses.
    """
    check_text(submission.text)
    asked = directives(submission.text)
    _refuse_unsupported(asked)
    architecture = _architecture(asked)
    qos = _qos(asked)
    time_limit = _time_limit(asked)
    _check_account(asked, site.options)
    _check_partition(asked)
    nodes = _node_count(asked)
    job = Job(
        **_identity(site.options),
        **_paths(asked, submission, site),
        **_behaviour(asked, site.options),
        name=asked.get("job-name", Path(submission.name or "sbatch").name),
        account=asked.get("account", site.options.accounts[0]),
        qos=_recorded_qos(qos, architecture),
        asked_qos=qos,
        partition="gpu_ss11" if architecture == "gpu" else "regular_milan_ss11",
        constraint=asked["constraint"],
        nodes=nodes,
        gpus=_gpus(asked, nodes),
        ntasks=_count(asked, "ntasks", nodes * _count(asked, "ntasks-per-node", 1)),
        cpus_per_task=_count(asked, "cpus-per-task", 1),
        memory_mb=_memory(asked),
        time_limit=time_limit,
        args=list(submission.args),
        script_sha256=hashlib.sha256(submission.text.encode()).hexdigest(),
        comment=asked.get("comment", ""),
        environment=_exported(asked.get("export", "ALL")),
        priority=BASE_PRIORITY[qos],
    )
    job.first_submit = job.submit
    _check_limits(job, qos, site)
    _check_configuration(job, architecture)
    return job


def _refuse_unsupported(asked: dict[str, str]) -> None:
    """Refuse what would change how the job runs and is not built, rather than run something else."""
    if "array" in asked:
        raise refuse(
            "Invalid job array specification\n"
            "sbatch: error: The stand-in's built-in scheduler runs no job arrays; submit single jobs."
        )
    for name, reason in (
        ("reservation", "Requested reservation is invalid"),
        ("clusters", "No cluster records found"),
        ("test-only", "The stand-in's built-in scheduler does not support --test-only"),
        ("wait", "The stand-in's built-in scheduler does not support --wait"),
        ("deadline", "The stand-in's built-in scheduler does not support --deadline"),
    ):
        if name in asked:
            raise refuse(reason)
    for licence in asked.get("licenses", "").replace(";", ",").split(","):
        if licence and licence.split(":")[0].lower() not in ("cfs", "scratch", "u1", "u2"):
            raise refuse("Invalid license specification")


def _architecture(asked: dict[str, str]) -> str:
    features = [part for part in re.split(r"[&|\[\]()*,]", asked.get("constraint", "")) if part]
    if any(feature not in FEATURES for feature in features):
        raise refuse("Invalid feature specification")
    architectures = {"cpu" if feature == "cpu" else "gpu" for feature in features}
    if not features:
        raise RejectedError(
            f"sbatch: error: No architecture specified, cannot estimate job costs.\n{UNSUPPORTED}"
        )
    if len(architectures) != 1:
        raise RejectedError(UNSUPPORTED)
    return architectures.pop()


def _qos(asked: dict[str, str]) -> str:
    qos = asked.get("qos", "debug")
    if qos in MAX_HOURS:
        return qos
    if qos == "interactive" or qos.startswith(("gpu_", "regular_")):
        raise RejectedError(UNSUPPORTED)
    raise refuse("Invalid qos specification")


def _recorded_qos(qos: str, architecture: str) -> str:
    if architecture == "gpu" and qos in ("debug", "regular", "shared", "preempt", "premium"):
        return f"gpu_{qos}"
    return "regular_1" if qos == "regular" else qos


def _time_limit(asked: dict[str, str]) -> float:
    try:
        seconds = parse_time_limit(asked["time"]) if "time" in asked else DEFAULT_LIMIT
    except ValueError as error:
        raise RejectedError("sbatch: error: Invalid --time specification") from error
    return seconds or DEFAULT_LIMIT


def _check_account(asked: dict[str, str], options: Options) -> None:
    if "account" in asked and asked["account"].lower() not in options.accounts:
        raise refuse("Invalid account or account/partition combination specified")


def _check_partition(asked: dict[str, str]) -> None:
    if asked.get("partition", "gpu_ss11") not in ("gpu_ss11", "regular_milan_ss11"):
        raise RejectedError(
            f"sbatch: error: invalid partition specified: {asked['partition']}\n"
            f"{FAILED_PREFIX}Invalid partition name specified"
        )


def _count(asked: dict[str, str], name: str, default: int) -> int:
    text = asked.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,7}", text, re.ASCII) or int(text) < 1:
        raise RejectedError(f'sbatch: error: Invalid numeric value "{text}" for --{name}.')
    return int(text)


def _node_count(asked: dict[str, str]) -> int:
    """--nodes=MINIMUM[-MAXIMUM]; none at all means one."""
    text = asked.get("nodes", "1")
    match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", text, re.ASCII)
    if match is None:
        raise RejectedError(f'sbatch: error: "{text}" is not a valid node count')
    minimum, maximum = int(match[1]), int(match[2] or match[1])
    if maximum < minimum:
        raise RejectedError(
            f"sbatch: error: Maximum node count {maximum} is less than minimum node count {minimum}"
        )
    return max(minimum, 1)


def _gpus(asked: dict[str, str], nodes: int) -> int:
    gres = re.fullmatch(r"gpu(?::[a-z0-9]+)?(?::(\d+))?", asked.get("gres", "")) if "gres" in asked else None
    if "gres" in asked and gres is None:
        raise RejectedError(BAD_GRES)
    if "gpus" in asked:
        return _gpu_count(asked, "gpus")
    if "gpus-per-node" in asked:
        return nodes * _gpu_count(asked, "gpus-per-node")
    if "gpus-per-task" in asked:
        return _count(asked, "ntasks", 1) * _gpu_count(asked, "gpus-per-task")
    return nodes * int(gres[1] or 1) if gres else 0


def _gpu_count(asked: dict[str, str], name: str) -> int:
    match = re.fullmatch(r"(?:[a-z0-9]+:)?(\d{1,6})", asked[name], re.ASCII)
    if match is None:
        raise RejectedError(BAD_GRES)
    return int(match[1])


def _memory(asked: dict[str, str]) -> int | None:
    if "mem" not in asked:
        return None
    try:
        return parse_memory(asked["mem"]) or None
    except ValueError as error:
        raise RejectedError("sbatch: error: Invalid --mem specification") from error


def _check_limits(job: Job, qos: str, site: Site) -> None:
    if job.time_limit > MAX_HOURS[qos] * HOUR:
        raise over_limit("QOSMaxWallDurationPerJobLimit")
    if qos in MAX_SUBMITTED and site.submitted(qos) >= MAX_SUBMITTED[qos]:
        raise over_limit("QOSMaxSubmitJobPerUserLimit")
    if len(job.name) > MAX_NAME:
        raise refuse("Pathname of a file, directory or other parameter too long")


def _check_configuration(job: Job, architecture: str) -> None:
    if (job.memory_mb or 0) > NODE_MEMORY_MB[architecture]:
        raise UnavailableConfigurationError(job, "sbatch: error: Memory specification can not be satisfied\n")
    available = (
        job.nodes <= NODES[architecture]
        and job.gpus <= job.nodes * (GPUS_PER_NODE if architecture == "gpu" else 0)
        and job.ntasks * job.cpus_per_task <= job.nodes * CPUS[architecture]
    )
    if not available:
        raise UnavailableConfigurationError(job)


def _identity(options: Options) -> dict[str, Any]:
    uid, gid = os.getuid(), os.getgid()
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    return {"user": options.user_name, "uid": uid, "gid": gid, "group": group}


def _paths(asked: dict[str, str], submission: Submission, site: Site) -> dict[str, Any]:
    work_dir = asked.get("chdir", str(site.home))
    shown = shlex.join([submission.name or "/dev/stdin", *submission.args])
    return {
        "work_dir": str(site.home / work_dir),
        "stdout": asked.get("output", "slurm-%j.out"),
        "stderr": asked.get("error"),
        "stdin": asked.get("input", "/dev/null"),
        "command": str(site.home / submission.name) if submission.name else "",
        "submit_line": f"sbatch {shown}",
    }


def _behaviour(asked: dict[str, str], options: Options) -> dict[str, Any]:
    now = time.time()
    begin = None
    if "begin" in asked:
        try:
            begin = parse_moment(asked["begin"], options.zone, now)
        except ValueError as error:
            raise RejectedError(
                f"Invalid time specification (pos=0): {asked['begin']}\n"
                "sbatch: error: Invalid --begin specification"
            ) from error
    if asked.get("open-mode", "truncate")[:1].lower() not in ("a", "t"):
        raise RejectedError("sbatch: error: Invalid --open-mode specification")
    return {
        "open_mode": "append" if asked.get("open-mode", "")[:1].lower() == "a" else "truncate",
        "signal": _early_signal(asked),
        "dependency": _dependency(asked),
        "kill_on_invalid_dependency": asked.get("kill-on-invalid-dep", "no").lower().startswith("y"),
        "requeue": "requeue" in asked and "no-requeue" not in asked,
        "begin": begin,
        "submit": now,
        "hold": "user" if "hold" in asked else "",
    }


def _early_signal(asked: dict[str, str]) -> dict[str, Any] | None:
    """--signal=[B:]NAME[@SECONDS]; without B it goes to the job's steps only."""
    if "signal" not in asked:
        return None
    match = re.fullmatch(r"(?:([BR]{1,2}):)?(?:SIG)?([A-Z0-9]+)(?:@(\d{1,5}))?", asked["signal"].upper())
    number = None
    if match is not None:
        number = int(match[2]) if match[2].isdigit() else getattr(signals, f"SIG{match[2]}", None)
    if match is None or number is None or not 0 < int(number) < 65:
        raise RejectedError("sbatch: error: Invalid --signal specification")
    return {"number": int(number), "before": int(match[3] or 60), "batch": "B" in (match[1] or "")}


def _dependency(asked: dict[str, str]) -> str:
    text = asked.get("dependency", "")
    for clause in filter(None, text.split(",")):
        kind, *ids = clause.split(":")
        if kind == "expand":
            raise refuse("Requested operation not supported on this system")
        known = kind in DEPENDENCY_TYPES and "?" not in clause
        if not known or (kind != "singleton") != bool(ids) or not all(re.fullmatch(r"\d+", i) for i in ids):
            raise refuse("Job dependency problem")
    return text


def _exported(text: str) -> dict[str, str]:
    """NAME=VALUE parts of --export; ALL, NONE and bare names change nothing in a clean environment."""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {name: value for name, _, value in pairs if re.fullmatch(r"[A-Za-z_]\w*", name)}
