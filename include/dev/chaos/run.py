"""One chaos run: scans go in, faults happen, everything ends, the books are compared."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cosmic.dag_constants import CANCEL_ABANDONED_WORK
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.chaos.books import Reckoning, reckon
from dev.chaos.faults import KINDS, Fault, Switches
from dev.chaos.kills import Kills
from dev.chaos.memory import MemorySample, longest_life
from dev.chaos.people import OUTAGES, People
from dev.chaos.processes import resident_memory
from dev.chaos.rules import Rules
from dev.chaos.system import Scan, System, best_database, make_scans, post, system

AT_ONCE = 16  # scans that are under way at once
LAST = 0.02  # of the scans, which end in peace
SPARED = 2 / 3  # of the faults, after which the triggerer is left alive: does its memory grow?


@dataclass
class Result:
    """What a run was and what came of it."""

    seed: int
    scans: list[Scan]
    database: str = ""
    faults: list[Fault] = field(default_factory=list)
    reckoning: Reckoning = field(default_factory=Reckoning)
    seconds: float = 0.0
    memory: list[MemorySample] = field(default_factory=list)
    died_by_themselves: list[str] = field(default_factory=list)
    killed_in_submit: int = 0

    @property
    def happened(self) -> list[Fault]:
        """The faults that really happened: rules that no request met are not among them."""
        return [fault for fault in self.faults if fault.happened]

    @property
    def passed(self) -> bool:
        """Whether everything that was promised holds."""
        life = longest_life(self.memory)
        return self.reckoning.clean and not (life and life.grows)


class Chaos:
    """Runs `scans` scans with about `faults` faults.

    :param folder: for everything; empty or not there.
    :param seed: decides which scans, which faults and in which order.
    :param database: see `dev.chaos.system.system`; the best that there is when empty.
    :param limit: seconds that it may take.
    :param say: gets a line now and then.
    """

    def __init__(
        self,
        folder: Path,
        *,
        scans: int,
        faults: int,
        seed: int,
        database: str = "",
        limit: float = 5400.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder = folder
        self.faults = faults
        self.database = database or best_database()
        self.limit = limit
        self.say = say
        # One for the scans and one for the faults, so that neither depends on how the other went.
        drawn = make_scans(scans, random.Random(f"scans {seed}"))  # noqa: S311 - repeatable on purpose
        self.result = Result(seed, drawn, self.database.partition(":")[0].partition("+")[0])
        self._draw = random.Random(f"faults {seed}")  # noqa: S311 - repeatable on purpose
        self._under_way: set[str] = set()
        self._waiting = list(self.result.scans)
        self._began = time.monotonic()
        self._next_fault = self._next_look = 0.0
        self._noted = (-1, 0.0)

    def run(self) -> Result:
        """Run it all.

        :raises TimeoutError: scans were still under way after `limit` seconds.
        """
        scans, result = self.result.scans, self.result
        with system(self.folder, scans, at_once=AT_ONCE, database=self.database) as parts:
            self._began = time.monotonic()
            rules = Rules(parts.facility)
            kills = Kills(parts.airflow, parts.facility, self._draw)
            people = People(parts.rest, self._draw, scans, self._under_way)
            switches = Switches(parts, self._draw, kills, rules, people)
            while self._waiting or self._under_way:
                self._step(parts, switches)
            switches.tend(all_of_them=True)
            rules.clear()
            self._settle(parts)
            self._learn(switches)
            self._sample(parts)
            result.died_by_themselves = kills.died_by_themselves
            result.killed_in_submit = kills.killed_in_submit
            result.reckoning = reckon(parts, scans, switches.spoiled, people.ended)
        result.seconds = time.monotonic() - self._began
        return result

    def _step(self, parts: System, switches: Switches) -> None:
        """Look who has ended, send what there is room for, do a fault when one is due."""
        if time.monotonic() - self._began > self.limit:
            raise TimeoutError(f"Still under way after {self.limit:.0f} s: {sorted(self._under_way)}")
        switches.kills.tend()
        switches.tend()
        self._learn(switches)
        self._under_way -= self._ended(parts)  # in place: others look at it too
        self._send(parts)
        if not self._waiting and len(self._under_way) <= LAST * len(self.result.scans):
            # The last few make so few requests that each fault would wait for the next try, minutes later.
            switches.rules.clear()
            time.sleep(0.3)
        elif self._fault_is_due():
            self._fault(switches)
        else:
            time.sleep(0.3)
        self._note(parts)

    @property
    def _posted(self) -> int:
        return len(self.result.scans) - len(self._waiting)

    def _send(self, parts: System) -> None:
        """Post scans, but not faster than faults can happen to them."""
        behind = self.faults * (self._posted - AT_ONCE) / len(self.result.scans)
        while self._waiting and len(self._under_way) < AT_ONCE and len(self.result.happened) >= behind:
            try:
                if not post(parts.rest, self._waiting[0]):
                    return
            except OUTAGES:
                return
            self._under_way.add(self._waiting.pop(0).run_id)

    def _ended(self, parts: System) -> set[str]:
        """Which scans' runs are over; asked every other second, as each answer costs the API server."""
        if time.monotonic() < self._next_look:
            return set()
        self._next_look = time.monotonic() + 2.0
        path = f"/api/v2/dags/{DAG_ID}/dagRuns?limit=100&state=queued&state=running"
        try:
            living = parts.rest.call("GET", path, timeout=20.0)["dag_runs"]
        except OUTAGES:
            return set()
        return self._under_way - {run["dag_run_id"] for run in living}

    def _fault_is_due(self) -> bool:
        """As many faults as scans have come far, spread over the run."""
        come_far = self._posted - len(self._under_way) / 2
        due = self.faults * come_far / len(self.result.scans)
        to_come = len(self.result.faults) - len(self.result.happened)  # laid, and not met by a request yet
        return len(self.result.happened) + to_come / 2 < due and time.monotonic() >= self._next_fault

    def _fault(self, switches: Switches) -> None:
        switches.kills.spare_triggerer = len(self.result.happened) > SPARED * self.faults
        (kind,) = self._draw.choices(KINDS, weights=[kind.weight for kind in KINDS])
        laid = len(switches.rules.all)
        said = kind.act(switches)
        if said is None:
            return  # nothing to act on; the next may have
        fault = Fault(kind.name, said, frozenset(self._under_way))
        if len(switches.rules.all) > laid:
            fault.rule, fault.happened = switches.rules.all[-1].number, False
        self.result.faults.append(fault)
        self._next_fault = time.monotonic() + self._draw.uniform(0.1, 1.5)
        self.say(f"{time.monotonic() - self._began:6.0f} s  {kind.name}: {said}")

    def _learn(self, switches: Switches) -> None:
        """Which of the laid faults have been met, and by which scans at the latest."""
        switches.rules.look()
        for fault in self.result.faults:
            if not fault.happened and fault.rule is not None and switches.rules.all[fault.rule].hits:
                fault.happened = True
                fault.under_way |= self._under_way

    def _settle(self, parts: System) -> None:
        """All is well again: let Airflow look for what was left behind, as it does every two minutes."""
        parts.airflow.wait_ready()
        for scan in self.result.scans:  # a task may have been cleared in the moment in which its run ended
            parts.rest.wait_for_run(DAG_ID, scan.run_id, 300.0)
        run_id = parts.rest.trigger(CANCEL_ABANDONED_WORK, run_id="after_the_chaos")
        state = parts.rest.wait_for_run(CANCEL_ABANDONED_WORK, run_id, 180.0)["state"]
        self.say(
            f"{time.monotonic() - self._began:6.0f} s  all runs have ended; {CANCEL_ABANDONED_WORK}: {state}"
        )

    def _note(self, parts: System) -> None:
        ended = self._posted - len(self._under_way)
        step, at = len(self.result.happened) // 20, time.monotonic()
        if step != self._noted[0] or at - self._noted[1] > 15.0:
            self._noted = (step, at)
            self._sample(parts)
            count = f"{ended} of {len(self.result.scans)} scans ended, {len(self.result.happened)} faults"
            memory = self.result.memory[-1].size
            self.say(f"{at - self._began:6.0f} s  {count}; triggerer {memory:.0f} MiB")

    def _sample(self, parts: System) -> None:
        pid = parts.airflow.processes["triggerer"].pid
        at = time.monotonic() - self._began
        self.result.memory.append(MemorySample(at, pid, resident_memory(pid)))
