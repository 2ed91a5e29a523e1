"""Makes rows of squeue and sacct as the API gives them: lower-cased column names, all values strings."""

from __future__ import annotations

from standin.nersc.options import Options
from standin.nersc.schedulers.durations import elapsed, limit, moment, short_elapsed
from standin.nersc.schedulers.interface import Row
from standin.nersc.schedulers.job import Job
from standin.nersc.schedulers.states import COMPACT, COMPLETING, PENDING

SACCT_COLUMNS = tuple(
    """account admincomment alloccpus allocnodes alloctres associd avecpu avecpufreq avediskread avediskwrite
    avepages averss avevmsize blockid cluster comment constraints consumedenergy consumedenergyraw container
    cputime cputimeraw dbindex derivedexitcode elapsed elapsedraw eligible end exitcode flags gid group jobid
    jobidraw jobname layout maxdiskread maxdiskreadnode maxdiskreadtask maxdiskwrite maxdiskwritenode
    maxdiskwritetask maxpages maxpagesnode maxpagestask maxrss maxrssnode maxrsstask maxvmsize maxvmsizenode
    maxvmsizetask mcslabel mincpu mincpunode mincputask ncpus nnodes nodelist ntasks partition priority qos
    qosraw reason reqcpufreq reqcpufreqgov reqcpufreqmax reqcpufreqmin reqcpus reqmem reqnodes reqtres
    reservation reservationid reserved resvcpu resvcpuraw start state submit submitline suspended
    systemcomment systemcpu timelimit timelimitraw totalcpu tresusageinave tresusageinmax tresusageinmaxnode
    tresusageinmaxtask tresusageinmin tresusageinminnode tresusageinmintask tresusageintot tresusageoutave
    tresusageoutmax tresusageoutmaxnode tresusageoutmaxtask tresusageoutmin tresusageoutminnode
    tresusageoutmintask tresusageouttot uid user usercpu wckey wckeyid workdir""".split()  # noqa: SIM905 - 109 quoted words are harder to read
)
SQUEUE_COLUMNS = (
    "account", "tres_per_node", "min_cpus", "min_tmp_disk", "end_time", "features", "group", "over_subscribe",
    "jobid", "name", "comment", "time_limit", "min_memory", "req_nodes", "command", "priority", "qos",
    "reason", "", "st", "user", "reservation", "wckey", "exc_nodes", "nice", "s:c:t", "exec_host", "cpus",
    "nodes", "dependency", "array_job_id", "sockets_per_node", "cores_per_socket", "threads_per_core",
    "array_task_id", "time_left", "time", "nodelist", "contiguous", "partition", "nodelist(reason)",
    "start_time", "state", "uid", "submit_time", "licenses", "core_spec", "schednodes", "work_dir",
)  # fmt: skip
SQUEUE_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""squeue's format letters of the columns of %all, in its order; of equal headings the last one counts."""
CLUSTER = "perlmutter"
HELD = {"user": "JobHeldUser", "admin": "JobHeldAdmin", "requeue": "job requeued in held state"}
"""Reasons of held jobs in squeue, by who holds them; the last is what `scontrol requeuehold` makes."""


def shown_exit_code(code: int, signal: int) -> str:
    """code:signal as sacct writes it: it takes 128 from codes that shells make of signals."""
    return f"{code - 128 if code >= 128 else code}:{signal}"


def sacct_state(job: Job) -> str:
    """The State column of sacct."""
    if "sacct" in job.forced:
        return job.forced["sacct"]
    if job.sacct_state:
        return job.sacct_state
    if job.state == "CANCELLED" and job.cancelled_by is not None:
        return f"CANCELLED by {job.cancelled_by}"
    return job.state


def squeue_state(job: Job) -> str:
    """The STATE column of squeue. A requeued job is COMPLETING, too, until its processes are gone."""
    if "squeue" in job.forced:
        return job.forced["squeue"]
    return COMPLETING if job.completing and not job.node_lost else job.state


def sacct_reason(job: Job) -> str:
    """The Reason column of sacct: why a job waited, as far as the accounting has it."""
    reason = job.reason if job.start is None else job.waited_for
    if reason in ("Resources", "Priority"):
        return "None"
    if reason == HELD["requeue"]:
        return HELD["user"]
    return "Dependency" if reason.startswith("Dependency") else reason


def as_allocation(job: Job) -> Job:
    """A job that started at once, as sacct shows it before its submission has reached the accounting."""
    state = job.state if job.ended else PENDING
    return Job(**{**job.to_record(), "name": "allocation", "state": state, "eligible": None,
                  "waited_for": "None"})  # fmt: skip


ALLOCATION = {
    "alloccpus": "0", "allocnodes": "0", "alloctres": "", "constraints": "", "cputime": "00:00:00",
    "cputimeraw": "0", "flags": "StartRecieved", "ncpus": "0", "nnodes": "0", "partition": "",
    "priority": "0", "qos": "Unknown", "qosraw": "0", "reqcpus": "0", "reqmem": "16?", "reqnodes": "0",
    "reqtres": "", "submitline": "", "timelimit": "", "timelimitraw": "", "workdir": "",
}  # fmt: skip
"""Columns of such a job that sacct cannot fill in yet (recorded, Slurm 22.05)."""


def sacct_row(job: Job, options: Options, now: float) -> Row:
    """One row of `sacct -X --format=ALL`."""
    spent = options.scaled(job.elapsed(now))
    cpus = job.ntasks * job.cpus_per_task
    allocated = job.start is not None
    tres = f"billing={cpus},cpu={cpus},mem={job.memory_mb or 0}M,node={job.nodes}" + (
        f",gres/gpu={job.gpus}" if job.gpus else ""
    )
    waited = options.scaled(max((job.start or job.end or now) - job.eligible, 0)) if job.eligible else 0.0
    row = dict.fromkeys(SACCT_COLUMNS, "")
    row |= _sacct_times(job, options, spent, waited, cpus)
    row |= {
        "account": job.account, "alloccpus": str(cpus if allocated else 0),
        "allocnodes": str(job.nodes if allocated else 0), "alloctres": tres if allocated else "",
        "associd": "4", "cluster": CLUSTER, "comment": job.comment, "constraints": job.constraint,
        "dbindex": str(job.db_index), "derivedexitcode": "0:0",
        "exitcode": shown_exit_code(job.exit_code, job.exit_signal), "flags": job.flags,
        "gid": str(job.gid), "group": job.group, "jobid": str(job.job_id), "jobidraw": str(job.job_id),
        "jobname": job.name, "ncpus": str(cpus), "nnodes": str(job.nodes),
        "nodelist": job.node_list or "None assigned", "partition": job.partition,
        "priority": str(job.priority), "qos": job.qos, "qosraw": "2",
        "reason": sacct_reason(job),
        "reqcpufreq": "Unknown", "reqcpufreqgov": "Unknown", "reqcpufreqmax": "Unknown",
        "reqcpufreqmin": "Unknown", "reqcpus": str(cpus), "reqmem": f"{job.memory_mb or 0}M",
        "reqnodes": str(job.nodes), "reqtres": tres, "state": sacct_state(job), "submitline": job.submit_line,
        "uid": str(job.uid), "user": job.user, "wckeyid": "0", "workdir": job.work_dir,
    }  # fmt: skip
    return row


def _sacct_times(job: Job, options: Options, spent: float, waited: float, cpus: int) -> Row:
    zone = options.zone
    began = "None" if job.ended else "Unknown"
    return {
        "cputime": elapsed(spent * cpus), "cputimeraw": str(int(spent) * cpus),
        "elapsed": elapsed(spent), "elapsedraw": str(int(spent)),
        "eligible": moment(job.eligible, zone, "Unknown"), "end": moment(job.end, zone, "Unknown"),
        "reserved": elapsed(waited), "resvcpu": elapsed(waited * cpus), "resvcpuraw": str(int(waited) * cpus),
        "start": moment(job.start, zone, began), "submit": moment(job.submit, zone, "Unknown"),
        "suspended": elapsed(options.scaled(job.suspended)), "systemcpu": "00:00:00",
        "timelimit": limit(job.time_limit, short=False), "timelimitraw": str(int(job.time_limit // 60)),
        "totalcpu": elapsed(job.cpu_seconds), "usercpu": elapsed(job.cpu_seconds),
    }  # fmt: skip


def squeue_row(job: Job, options: Options, now: float, expected: float | None) -> Row:
    """One row of `squeue -o %all`; `expected` is the start estimate of a pending job."""
    state = squeue_state(job)
    pending = job.state == PENDING
    reason = "None" if pending and state == COMPLETING else job.reason
    spent = 0.0 if pending else options.scaled(job.elapsed(now))
    begin = expected if pending else job.start
    end = None if begin is None else begin + options.real(job.time_limit)
    nodes = "" if pending else job.node_list
    row = dict.fromkeys(SQUEUE_COLUMNS, "(null)")
    row |= {
        "account": job.account, "tres_per_node": f"gres:gpu:{job.gpus // job.nodes}" if job.gpus else "N/A",
        "min_cpus": "1", "min_tmp_disk": "0",
        "end_time": moment(job.end if job.ended else end, options.zone, "N/A"), "features": job.constraint,
        "group": str(job.gid), "over_subscribe": "OK", "jobid": str(job.job_id), "name": job.name,
        "comment": job.comment or "(null)", "time_limit": limit(job.time_limit, short=True),
        "min_memory": f"{job.memory_mb or 0}M", "req_nodes": "", "command": job.command or "(null)",
        "priority": str(job.priority), "qos": job.qos, "reason": reason, "": "",
        "st": COMPACT.get(state, state[:2]), "user": job.user, "exc_nodes": "", "nice": "0", "s:c:t": "*:*:*",
        "exec_host": nodes.partition("[")[0] or "n/a", "cpus": str(job.ntasks * job.cpus_per_task),
        "nodes": str(job.nodes),
        "dependency": f"{job.dependency}({_blocked(job)})" if _blocked(job) else "(null)",
        "array_job_id": str(job.job_id), "sockets_per_node": "*", "cores_per_socket": "*",
        "threads_per_core": "*", "array_task_id": "N/A",
        "time_left": limit(max(job.time_limit - spent, 0), short=True), "time": short_elapsed(spent),
        "nodelist": nodes, "contiguous": "0", "partition": job.partition,
        "nodelist(reason)": f"({reason})" if pending else nodes,
        "start_time": moment(begin, options.zone, "N/A"), "state": state, "uid": str(job.uid),
        "submit_time": moment(job.submit, options.zone, "N/A"), "core_spec": "N/A", "work_dir": job.work_dir,
    }  # fmt: skip
    return row


def _blocked(job: Job) -> str:
    """squeue's text for a dependency that keeps a job from starting; nothing when there is none."""
    if not job.dependency or job.state != PENDING or not job.reason.startswith("Dependency"):
        return ""
    return "unfulfilled" if job.reason == "Dependency" else "failed"
