"""HTTP faults at the stand-in: which have been met by a request, also over the stand-in's own restarts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from standin.testing import SpawnedFacility

_MANY = 40


@dataclass
class Rule:
    """One fault on request.

    :param hits: how often a request has met it.
    """

    number: int
    spec: dict[str, Any]
    hits: int = 0
    _hits_before: int = 0
    _fault_id: int = -1

    @property
    def left(self) -> int:
        """How many requests may still meet it."""
        return int(self.spec["times"]) - self.hits


@dataclass
class Rules:
    """The faults that were laid so far."""

    facility: SpawnedFacility
    all: list[Rule] = field(default_factory=list)
    at_most: int = 16  # that wait for a request at the same time

    @property
    def waiting(self) -> list[Rule]:
        """Those that no request has met."""
        return [rule for rule in self.all if not rule.hits]

    @property
    def newest(self) -> int:
        """Number of the newest."""
        return len(self.all) - 1

    def add(self, **spec: Any) -> str | None:
        """Lay one; None when so many wait already that more would only pile up."""
        if len(self.waiting) >= self.at_most:
            return None
        rule = Rule(len(self.all), spec)
        self._lay(rule)
        self.all.append(rule)
        return f"{spec['kind']} for {spec['times']} of {spec['service']}{spec['path']}"

    def look(self) -> None:
        """Learn which have been met."""
        laid = self.facility.faults()
        self._count(laid)
        if len(laid) > _MANY:  # each costs every request and every look a little
            self._count(self.facility.clear_faults())
            self.lay_again()

    def lay_again(self) -> None:
        """After a restart of the stand-in, which has forgotten them."""
        for rule in self.all:
            rule._fault_id = -1
            if rule.left > 0:
                rule._hits_before = rule.hits
                self._lay(rule)

    def _count(self, faults: list[dict[str, Any]]) -> None:
        hits = {fault["id"]: fault["hits"] for fault in faults}
        for rule in self.all:
            if rule._fault_id in hits:
                rule.hits = rule._hits_before + hits[rule._fault_id]

    def clear(self) -> None:
        """Take all away."""
        self._count(self.facility.clear_faults())
        for rule in self.all:
            rule._fault_id = -1

    def _lay(self, rule: Rule) -> None:
        times = rule.left
        rule._fault_id = self.facility.fault(**{**rule.spec, "times": times})["id"]
