"""Makes the environment and the files of a batch script. Nothing of the server's own environment."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from standin.nersc.options import Options
from standin.nersc.schedulers.job import Job

BASE_PATH = "/usr/local/bin:/usr/bin:/bin"
NOWHERE = "/nonexistent"


def clean_environment(options: Options, home: Path) -> dict[str, str]:
    """The environment of a login at NERSC, with the server's SLURM_CONF."""
    slurm = {"SLURM_CONF": os.environ["SLURM_CONF"]} if "SLURM_CONF" in os.environ else {}
    return slurm | {
        "PATH": f"{options.job_path}:{BASE_PATH}" if options.job_path else BASE_PATH,
        "HOME": str(home), "USER": options.user_name, "LOGNAME": options.user_name, "SHELL": "/bin/bash",
        "LANG": "C.UTF-8", "TZ": options.timezone, "NERSC_HOST": "perlmutter",
    }  # fmt: skip


def job_environment(job: Job, options: Options, home: Path) -> dict[str, str]:
    """The environment of a batch script."""
    start = int(job.start or 0)
    name_list = job.node_list
    environment = clean_environment(options, home) | {
        "ENVIRONMENT": "BATCH", "SLURM_CLUSTER_NAME": "perlmutter", "SLURM_CONF": "/etc/slurm/slurm.conf",
        "SLURM_CPUS_ON_NODE": str(job.cpus_per_task), "SLURM_CPUS_PER_TASK": str(job.cpus_per_task),
        "SLURM_GTIDS": "0", "SLURM_JOBID": str(job.job_id), "SLURM_JOB_ACCOUNT": job.account,
        "SLURM_JOB_CPUS_PER_NODE": str(job.ntasks * job.cpus_per_task // job.nodes or 1),
        "SLURM_JOB_CONSTRAINTS": job.constraint, "SLURM_JOB_GID": str(job.gid),
        "SLURM_JOB_ID": str(job.job_id), "SLURM_JOB_NAME": job.name, "SLURM_JOB_NODELIST": name_list,
        "SLURM_JOB_NUM_NODES": str(job.nodes), "SLURM_JOB_PARTITION": job.partition,
        "SLURM_JOB_QOS": job.qos, "SLURM_JOB_START_TIME": str(start),
        "SLURM_JOB_END_TIME": str(start + int(options.real(job.time_limit))),
        "SLURM_JOB_UID": str(job.uid), "SLURM_JOB_USER": job.user, "SLURM_LOCALID": "0",
        "SLURM_NNODES": str(job.nodes), "SLURM_NODEID": "0", "SLURM_NODELIST": name_list,
        "SLURM_NPROCS": str(job.ntasks), "SLURM_NTASKS": str(job.ntasks), "SLURM_PROCID": "0",
        "SLURM_SUBMIT_DIR": str(home), "SLURM_SUBMIT_HOST": socket.gethostname(),
        "SLURM_TASKS_PER_NODE": str(max(job.ntasks // job.nodes, 1)),
        "SLURMD_NODENAME": name_list.partition("[")[0],
    }  # fmt: skip
    if job.gpus:
        per_node = max(job.gpus // job.nodes, 1)
        environment |= {"SLURM_GPUS": str(job.gpus), "SLURM_GPUS_ON_NODE": str(per_node),
                        "SLURM_JOB_GPUS": ",".join(map(str, range(per_node))),
                        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(per_node)))}  # fmt: skip
    if job.memory_mb is not None:
        environment["SLURM_MEM_PER_NODE"] = str(job.memory_mb)
    if job.restarts:
        environment["SLURM_RESTART_COUNT"] = str(job.restarts)
    return environment | job.environment


def fill_pattern(pattern: str, job: Job) -> str:
    """A file name with Slurm's patterns filled in; a number before the letter pads with zeros."""
    values = {
        "j": str(job.job_id), "J": str(job.job_id), "A": str(job.job_id), "a": "4294967294", "x": job.name,
        "u": job.user, "N": job.node_list.partition("[")[0], "n": "0", "t": "0", "s": "batch",
    }  # fmt: skip

    def filled(match: re.Match[str]) -> str:
        letter = match[2]
        if letter == "%":
            return "%"
        value = values.get(letter)
        if value is None:
            return match[0]
        return value.zfill(min(int(match[1]), 10)) if match[1] and value.isdigit() else value

    return re.sub(r"%(\d{0,2})([A-Za-z%])", filled, pattern)


def output_path(pattern: str, job: Job, file_system: Path) -> str:
    """The absolute path of a job's file.

    NERSC's file system is all that there is: a path that leads out of it does not exist.
    """
    if pattern == "/dev/null":
        return pattern
    path = Path(job.work_dir) / fill_pattern(pattern, job)
    inside = path.resolve().is_relative_to(file_system)
    return str(path) if inside else f"{NOWHERE}{path}"
