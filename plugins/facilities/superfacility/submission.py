"""Submits exactly one job for one task, in every window in which something can break.

A job's name is the task instance's own: readable part, hash of the task instance, generation. What is
about to be sent is written down before (the intent), the job id after. Whoever comes next (a retry, a
cleared task, another worker) takes up what is written down; on any doubt it looks the name up, squeue
first, then sacct, twice and far enough apart that a job on its way would have been seen, before it
submits again. Without a store the names alone do. A new generation begins only after a failed job whose
failure was reported: one that failed before its id was known is taken up, and whoever waits for it
reports it.

A submit may still arrive after all this. Then two jobs have the name, and the first one that claims the work
does it (`facilities.superfacility.claims`); a job that found it claimed counts as the one that has the claim.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from facilities.deferral import StateStore, read_kept
from facilities.errors import FacilityError, LostReplyError, NotFoundError, TransientError
from facilities.superfacility import claims
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.job_script import SlurmResources, job_script
from facilities.superfacility.own_jobs import CLOCK_SKEW, JobIdentity, OwnJobs
from facilities.superfacility.slurm import FAILED, SlurmJob, SlurmState

log = logging.getLogger(__name__)

JOB_KEY = "slurm_job"
INTENT_KEY = "slurm_intent"
CONFIRM_KEY = "slurm_confirm"
FAILED_KEY = "slurm_failed"

_REPLY_WAIT = 30.0  # seconds in the worker for the API to run sbatch; longer waits are deferred
_SOON = 10.0  # seconds until the next step when a reply was lost
_FORGOTTEN_AFTER = 86_400.0  # seconds after which a job that nothing lists is not looked for any more
_ACCOUNTING_LAG = 120.0  # seconds by which the accounting may come after the queue


@dataclass(frozen=True)
class Intent:
    """A submit that was about to be sent.

    :param attempted_at: seconds since the epoch, by our clock.
    :param task_id: the API's task, once it is known.
    :param missed_at: when the job was first looked for and not found, in the same seconds.
    """

    generation: int
    name: str
    attempted_at: float
    task_id: str | None = None
    missed_at: float | None = None


@dataclass(frozen=True)
class Submitted:
    """The task's job.

    :param new: whether this step has submitted it; otherwise it was there already.
    """

    job_id: str
    name: str
    generation: int
    new: bool = False


@dataclass(frozen=True)
class NotYet:
    """Nothing can be said or done for some seconds."""

    seconds: float
    why: str


class Submission:
    """Finds or submits the job of a task instance, step by step; a step never waits long.

    Example::

        submission = Submission(
            hook, identity, machine="perlmutter", resources=resources, body="echo hello", store=store
        )
        step = submission.step()  # again after `step.seconds` if it is `NotYet`

    :param resources: what the job asks for.
    :param body: its commands.
    :param store: None when there is no task state store.
    :param doubtful_since: when an earlier try may have submitted something that is not written down
        (seconds since the epoch; 0 for long ago); None when there was no earlier try.
    :param cleared: somebody has cleared the task since its last try: a failed job calls for a new one.
    :param settle: seconds between two looks that do not find a job, for it not to be there.
    :param confirm: seconds between two looks that see a node failure or a preemption, to believe it.
    :param before_submit: called with the job's name and script right before the submit; raises when nothing
        must be submitted now.
    """

    def __init__(
        self,
        hook: SuperfacilityHook,
        identity: JobIdentity,
        *,
        machine: str,
        resources: SlurmResources,
        body: str,
        store: StateStore | None,
        doubtful_since: float | None = None,
        cleared: bool = True,
        settle: float = 60.0,
        confirm: float = 30.0,
        before_submit: Callable[[str, str], None] = lambda _name, _script: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.hook = hook
        self.identity = identity
        self.machine = machine
        self.settle = settle
        self.confirm = confirm
        self.doubtful_since = doubtful_since
        self.cleared = cleared
        self._known_since: float | None = None
        self._own = OwnJobs(hook, identity, machine)
        self._resources = resources
        self._body = body
        self._store = store
        self._before_submit = before_submit
        self._clock = clock
        self._failed = {str(job_id) for job_id in self._get(FAILED_KEY) or ()}

    def step(self) -> Submitted | NotYet:
        """Find the job, or submit it.

        :raises TransientError: the service does not answer; this step has submitted nothing.
        :raises UserError: the job is refused.
        """
        generation = 0
        known = read_kept(Submitted, self._store, JOB_KEY)
        if known is not None:
            outcome = self._check_known(known)
            if not isinstance(outcome, int):
                return outcome
            generation = outcome
        return self._search(generation)

    # A job that is written down

    def _check_known(self, known: Submitted) -> Submitted | NotYet | int:
        """The job, if it lives or has succeeded; otherwise the generation to submit next."""
        ids = [known.job_id]
        queued = self.hook.jobs(self.machine, ids, "squeue").get(known.job_id)
        if queued is not None and not queued.final and queued.state is not SlurmState.COMPLETING:
            return known
        accounted = self.hook.jobs(self.machine, ids, "sacct").get(known.job_id)
        if accounted is None:
            return self._check_missing(known)
        if accounted.refused and (owner := self._owner_instead_of(accounted.job_id)):
            return self._take_owner(owner, known)
        if wait := self._unconfirmed(accounted):
            return wait
        successor = read_kept(Intent, self._store, INTENT_KEY)
        was_to_be_sent = successor is not None and successor.generation > known.generation
        if accounted.state not in FAILED or not (self.cleared or was_to_be_sent):
            return known
        return self._successor_of(known, f"Job {known.job_id} ended as {accounted.state_text}")

    # A job that was refused, as another has the claim

    def _owner_instead_of(self, job_id: str) -> str | None:
        return claims.other_owner(self.hook, self.machine, self.identity.digest, job_id)

    def _take_owner(self, owner: str, refused: Submitted) -> Submitted | NotYet | int:
        log.warning("Job %s did nothing, as job %s does this task's work.", refused.job_id, owner)
        known = Submitted(owner, refused.name, refused.generation)
        self._write_down(known)
        return self._check_known(known)

    def _check_missing(self, known: Submitted) -> Submitted | int:
        age = self._clock() - float(self._get(JOB_KEY).get("submitted_at") or 0)
        if age < _FORGOTTEN_AFTER:
            return known  # whoever waits for it gives it time to appear
        return self._successor_of(known, f"Slurm does not know job {known.job_id} any more")

    def _successor_of(self, known: Submitted, why: str) -> int:
        """The generation that follows; it may be there already, since the known one was submitted."""
        log.warning("%s: a new one is needed.", why)
        self._failed.add(known.job_id)
        self._known_since = float(self._get(JOB_KEY).get("submitted_at") or 0)
        return known.generation + 1

    def _unconfirmed(self, job: SlurmJob) -> NotYet | None:
        """Wait until a state that may not stay was seen twice, far enough apart.

        A requeue may undo a lost job. One that has left the queue and still runs in the accounting has
        ended: after a clear it matters how.
        """
        if job.lost:
            patience, pause, why = self.confirm, self.confirm, "Slurm may start it again"
        elif self.cleared and not job.final:
            patience, pause, why = _ACCOUNTING_LAG, _SOON, "it has left the queue, and accounting lags behind"
        else:
            return None
        now = self._clock()
        kept = self._get(CONFIRM_KEY)
        if self._store is None:  # then the end by Slurm's clock has to do
            ended = datetime.fromisoformat(job.ended).timestamp() if job.ended else 0.0
            left = ended + CLOCK_SKEW + patience - now
        elif isinstance(kept, dict) and kept.get("job_id") == job.job_id:
            left = float(kept["since"]) + patience - now
        else:
            left = patience
            self._set(CONFIRM_KEY, {"job_id": job.job_id, "since": now})
        if left <= 0:
            return None
        return NotYet(min(left, pause), f"job {job.job_id} is {job.state_text}: {why}")

    # A job that may be there

    def _search(self, generation: int) -> Submitted | NotYet:
        intent = read_kept(Intent, self._store, INTENT_KEY)
        if intent is not None and intent.generation < generation:
            intent = None
        if intent is not None and intent.task_id and (answer := self._from_task(intent, intent.task_id)):
            return answer
        living = self._own.living()
        if living is not None and living[0] >= generation:
            return self._take_up(*living)
        if intent is None and self.doubtful_since is None and generation == 0:
            return self._submit(0)
        return self._search_ended(intent, generation)

    def _search_ended(self, intent: Intent | None, generation: int) -> Submitted | NotYet:
        since = intent.attempted_at if intent else self.doubtful_since
        ended = self._own.ended(since or self._known_since, self._clock())
        if ended is not None and ended[0] >= generation:
            found, job = ended
            outcome = self._check_ended(job, found, intent)
            if not isinstance(outcome, int):
                return outcome
            generation = outcome
            if intent is None or intent.generation <= found:
                return self._submit(generation)
        if since is not None and (wait := self._unsettled(intent, since)):
            return wait
        return self._submit(max(generation, intent.generation if intent else 0))

    def _check_ended(self, job: SlurmJob, found: int, intent: Intent | None) -> Submitted | NotYet | int:
        """The job that was found; or the generation to submit next."""
        if job.refused and (owner := self._owner_instead_of(job.job_id)):
            return self._take_owner(owner, Submitted(job.job_id, str(job.name), found))
        if wait := self._unconfirmed(job):
            return wait
        unreported = intent.generation == found if intent is not None else not self.cleared
        if job.state not in FAILED or (unreported and not job.rejected):
            return self._take_up(found, job)
        return found + 1

    def _unsettled(self, intent: Intent | None, since: float) -> NotYet | None:
        """Wait while a job that was sent may not be listed yet, or not yet under its name."""
        now = self._clock()
        if intent is not None and intent.missed_at is None:
            intent = replace(intent, missed_at=now)
            self._set(INTENT_KEY, asdict(intent))
        missed_at = intent.missed_at if intent is not None else since
        left = (now if missed_at is None else missed_at) + self.settle - now
        if left > 0:
            return NotYet(min(left, 30.0), "a submit may be on its way, though no job of its name is listed")
        if nameless := self._own.nameless(since, now):
            return NotYet(5.0, f"accounting has no name yet for job {', '.join(nameless)}")
        return None

    def _take_up(self, generation: int, job: SlurmJob) -> Submitted:
        taken = Submitted(job.job_id, job.name or self.identity.name(generation), generation)
        log.info("Job %s (%s) is this task's: %s.", job.job_id, job.name, job.state_text)
        self._write_down(taken)
        return taken

    # Submitting

    def _submit(self, generation: int) -> Submitted | NotYet:
        name = self.identity.name(generation)
        self._failed.update(self._own.failed())
        self._set(FAILED_KEY, sorted(self._failed))
        claim = claims.Claim(self.identity.digest, tuple(sorted(self._failed, key=int)))
        script = job_script(self._resources, name, self._body, owner=self.identity, claim=claim)
        self._before_submit(name, script)
        intent = Intent(generation, name, self._clock())
        if self._store is not None:
            self._store.set(INTENT_KEY, asdict(intent))  # not sent if it cannot be written down
        try:
            task_id = self.hook.submit(script, machine=self.machine)
        except LostReplyError as error:
            self.doubtful_since = self._clock()
            log.warning("It is not known whether job %s was submitted: %s", name, error)
            return NotYet(_SOON, "the reply to the submit was lost")
        except FacilityError:
            self._forget_intent()  # nothing was submitted
            raise
        intent = replace(intent, task_id=task_id)
        self._set(INTENT_KEY, asdict(intent))
        return self._from_task(intent, task_id) or NotYet(_SOON, "the result of the submit is gone")

    def _from_task(self, intent: Intent, task_id: str) -> Submitted | NotYet | None:
        """The job of the API's task that runs sbatch; None when only the job's name leads to it."""
        try:
            job_id = self.hook.submitted_job(task_id, within=_REPLY_WAIT)
            if job_id is not None:
                submitted = Submitted(job_id, intent.name, intent.generation, new=True)
                self._write_down(submitted)
                return submitted
        except (LostReplyError, NotFoundError) as error:
            log.warning("It is not known whether job %s was submitted: %s", intent.name, error)
            self.doubtful_since = self._clock()
            self._set(INTENT_KEY, asdict(replace(intent, task_id=None)))
            return None
        except TransientError as error:
            log.warning("It is not known yet whether job %s was submitted: %s", intent.name, error)
        except FacilityError:
            self._forget_intent()  # sbatch refused it
            raise
        self.doubtful_since = self._clock()
        return NotYet(_SOON, "NERSC has the job script, but no job id yet")

    # Writing down

    def _write_down(self, job: Submitted) -> None:
        kept = {"job_id": job.job_id, "name": job.name, "generation": job.generation}
        self._set(JOB_KEY, {**kept, "submitted_at": self._clock()})
        self._forget_intent()

    def _forget_intent(self) -> None:
        self.doubtful_since = None
        if self._store is not None:
            self._store.delete(INTENT_KEY)

    def _get(self, key: str) -> Any:
        return None if self._store is None else self._store.get(key)

    def _set(self, key: str, value: Any) -> None:
        """Keep a value. When that fails, the job's name at Slurm does as well, so the job goes on."""
        if self._store is None:
            return
        try:
            self._store.set(key, value)
        except Exception:
            log.exception("Could not keep %s in the task state store; the job's name at Slurm stays.", key)
