"""The last line of exactly-once: a job claims its task's work on NERSC's file system before it does anything.

A submit that is held up on its way may arrive after everybody has given it up; no waiting time distinguishes
it from one that was lost, so there may be two jobs for one task. Each begins with `Claim.preamble`: it makes
a symbolic link whose target is its own job id, which the file system lets only one of them do. The other one
ends at once, with `EXIT_CODE` and a line that names the owner; what waits for it waits for the owner instead.

The links of a task are `~/.job_claims/<hash of the task>/0`, `1`, ...; the highest names the owner. A job
makes the next link only when its script names the present owner as failed: the orchestrator has seen its end.
Links that are older than 90 days are removed by later jobs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from facilities.errors import TransientError, UserError

if TYPE_CHECKING:
    from facilities.superfacility.hook import SuperfacilityHook

EXIT_CODE = 93
"""Exit code of a job that finds its task's work claimed. A program's own 93 differs from it in the claim."""

_PREAMBLE = """\
# One job does this task's work: the one that owns the newest link. See facilities/superfacility/claims.py.
claims="$HOME/.job_claims/{task}"
failed=' {failed} '
mkdir -p -- "$claims" || {{ echo "No claim can be made in $claims, so nothing was done." >&2; exit 1; }}
while :; do
    number=0 owner=
    while link=$(readlink -- "$claims/$number"); do owner=$link number=$((number + 1)); done
    if [ "$owner" = "$SLURM_JOB_ID" ]; then break; fi
    case "$failed" in
    *" $owner "*) ;;
    *) if [ -n "$owner" ]; then
           echo "Job $SLURM_JOB_ID did nothing: job $owner does this task's work ($claims)." >&2
           exit {exit_code}
       fi ;;
    esac
    if ln -sT -- "$SLURM_JOB_ID" "$claims/$number" 2>/dev/null; then break; fi
    if [ ! -L "$claims/$number" ]; then
        echo "No claim can be made in $claims, so nothing was done." >&2
        exit 1
    fi
done
find "$HOME/.job_claims" -mindepth 1 -maxdepth 1 -type d -mtime +90 -exec rm -rf -- {{}} + 2>/dev/null || true
unset claims failed number owner link
"""


@dataclass(frozen=True)
class Claim:
    """Whose work a job script does.

    :param task: hash of the task instance, lower-case hexadecimal.
    :param failed: ids of the task's jobs that have ended without success, whose claim this job may take over.
    """

    task: str
    failed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{8,64}", self.task):
            raise ValueError(f"Not the hash of a task: {self.task!r}")
        if wrong := [job_id for job_id in self.failed if not job_id.isdecimal()]:
            raise ValueError(f"Not Slurm job ids: {wrong!r}")

    @property
    def preamble(self) -> str:
        """Commands for sh that come before the job's own."""
        return _PREAMBLE.format(task=self.task, failed=" ".join(self.failed), exit_code=EXIT_CODE)


def owner(hook: SuperfacilityHook, machine: str, task: str) -> str | None:
    """Id of the job that owns a task's work; None when no job has claimed it.

    :raises TransientError: it cannot be found out now.
    """
    Claim(task)
    listing = ["bash", "-c", f'cd -- "$HOME/.job_claims/{task}" && find . -type l -printf "%f %l\\n"']
    result = hook.command(machine, listing)
    if result.exit_code and "No such file" not in result.error:
        raise TransientError(
            "It could not be found out which job does the task's work",
            remote_id=f"~/.job_claims/{task}",
            next_step="look at https://www.nersc.gov/live-status/motd if it stays so.",
            details=result.error,
        )
    links = dict(re.findall(r"(?m)^(\d+) (\d+)$", result.output))
    return links[max(links, key=int)] if links else None


def other_owner(hook: SuperfacilityHook, machine: str, task: str, job_id: str) -> str | None:
    """Id of the job that does the work which `job_id` found claimed; None when that one has the claim."""
    found = owner(hook, machine, task)
    return found if found != job_id else None


def require_sh(shebang: str) -> None:
    """Check that the preamble can run.

    :raises UserError: the script's first line names another program than sh or bash.
    """
    if not re.match(r"#!\s*(/\S+/)?(env\s+(-S\s+)?)?(/\S+/)?(ba|da|k|z)?sh(\s|$)", shebang):
        raise UserError(
            f"The job script is for {shebang[2:].strip()}, not for sh or bash",
            next_step="call the program from a script for bash.",
        )
