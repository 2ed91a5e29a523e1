"""All scans as they were at one moment: pages, filters, and counts of days.

A snapshot never changes, so that any number of readers use one while the next is made (`cosmic.scan_index`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import cached_property
from typing import Any

from cosmic.scan_records import Scan, number

PER_PAGE = 50
_MANY = 1000  # changes after which all scans are sorted anew

Age = tuple[float, str]
"""Sorts scans, the newest first: seconds since 1970 with a minus, and its name."""


@dataclass(frozen=True)
class Filters:
    """What is asked for; empty means all. `text` is looked for in names, proposal, sample and errors."""

    day: date | None = None
    proposal: str = ""
    state: str = ""
    text: str = ""

    def match(self, scan: Scan) -> bool:
        """Whether a scan is asked for."""
        return (
            (self.day is None or scan.day == self.day)
            and (not self.proposal or scan.proposal == self.proposal)
            and (not self.state or self.state in scan.outcomes)
            and all(word in scan.searched for word in self.text.casefold().split())
        )


@dataclass(frozen=True)
class Page:
    """A page of scans; `number` is from 1 to `pages`, and `total` counts the scans of all pages."""

    scans: Sequence[Scan]
    number: int
    pages: int
    total: int


@dataclass(frozen=True)
class DayCount:
    """A day's scan files: by their runs now, and as `find_missed_scans` has last compared the day.

    :param compared: when it did; None: never, then `on_disk` and `missing` are None as well.
    """

    day: date
    done: int
    active: int
    failed: int
    stopped: int
    on_disk: int | None = None
    missing: int | None = None
    compared: datetime | None = None


@dataclass(frozen=True)
class Comparison:
    """A day's row of the table of `find_missed_scans`."""

    when: datetime
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """The scans.

    :param version: another one whenever anything has changed.
    :param comparisons: the newest of each day.
    """

    version: int = 0
    comparisons: Mapping[date, Comparison] = field(default_factory=dict)
    _scans: Mapping[str, Scan] = field(default_factory=dict)
    _order: Sequence[Age] = ()
    _of_day: Mapping[date, frozenset[str]] = field(default_factory=dict)

    def page(self, filters: Filters, number: int) -> Page:
        """A page of the scans that are asked for, the newest first."""
        order = self._order
        if filters.day is not None:
            order = sorted(_age(self._scans[name]) for name in self._of_day.get(filters.day, ()))
        if filters != Filters():
            order = [age for age in order if filters.match(self._scans[age[1]])]
        pages = max(-(-len(order) // PER_PAGE), 1)
        number = min(max(number, 1), pages)
        shown = order[(number - 1) * PER_PAGE : number * PER_PAGE]
        return Page([self._scans[name] for _, name in shown], number, pages, len(order))

    def scan(self, name: str) -> Scan | None:
        """A scan by its name."""
        return self._scans.get(name)

    def day_counts(self, days: Iterable[date]) -> list[DayCount]:
        """The files of some days."""
        return [self._count(day) for day in days]

    @cached_property
    def proposals(self) -> Sequence[str]:
        """All proposals, the newest first."""
        found = dict.fromkeys(self._scans[name].proposal for _, name in self._order)
        return [proposal for proposal in found if proposal]

    def changed(
        self, scans: Mapping[str, Scan | None], comparisons: Mapping[date, Comparison] | None = None
    ) -> Snapshot:
        """The next snapshot; the same one when nothing is new.

        :param scans: those that have changed; None where one is gone.
        """
        if not scans and not comparisons:
            return self
        all_scans, of_day = dict(self._scans), dict(self._of_day)
        gone = [before for name in scans if (before := all_scans.pop(name, None))]
        new = [scan for scan in scans.values() if scan]
        all_scans.update((scan.name, scan) for scan in new)
        for day, names in _by_day(gone).items():
            of_day[day] -= names
        for day, names in _by_day(new).items():
            of_day[day] = of_day.get(day, frozenset()) | names
        return Snapshot(
            self.version + 1,
            {**self.comparisons, **(comparisons or {})},
            all_scans,
            _reorder(self._order, gone, new, all_scans),
            of_day,
        )

    def _count(self, day: date) -> DayCount:
        files = [file for name in self._of_day.get(day, ()) for file in self._scans[name].files]
        count = Counter(file.run.outcome for file in files)
        counted = DayCount(day, count["done"], count["active"], count["failed"], count["stopped"])
        compared = self.comparisons.get(day)
        if compared is None:
            return counted
        # What was started since is not missing any more.
        missing = max(_number(compared.row, "missing") - _number(compared.row, "started"), 0)
        return replace(
            counted, on_disk=_number(compared.row, "on_disk"), missing=missing, compared=compared.when
        )


def _age(scan: Scan) -> Age:
    return -scan.posted.timestamp(), scan.name


def _by_day(scans: Iterable[Scan]) -> dict[date, set[str]]:
    found: dict[date, set[str]] = {}
    for scan in scans:
        found.setdefault(scan.day, set()).add(scan.name)
    return found


def _reorder(
    before: Sequence[Age], gone: Sequence[Scan], new: Sequence[Scan], scans: Mapping[str, Scan]
) -> Sequence[Age]:
    if len(gone) + len(new) > _MANY:
        return sorted(map(_age, scans.values()))
    order = list(before)
    for age in map(_age, gone):
        del order[bisect_left(order, age)]
    for age in map(_age, new):
        insort(order, age)
    return order


def _number(row: Mapping[str, Any], key: str) -> int:
    return int(number(row.get(key)) or 0)
