"""Which scans count as new, as finished, as dealt with."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cosmic.comparison import ScanFile
from cosmic.noticing import Listing, Noticing, fingerprint
from cosmic.scans import day_folder, parse_scan_path

DAY = date(2023, 2, 16)
NOON = datetime(2023, 2, 16, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def scan(
    number: int, *, size: int = 100, modified: datetime = NOON - 10 * MINUTE, day: date = DAY
) -> ScanFile:
    path = parse_scan_path(f"{day_folder(day)}/NS_{day:%y%m%d}{number:03}_ccdframes_0_0.cxi")
    return ScanFile(path, size, modified)


def look(noticing: Noticing, *scans: ScanFile, at: datetime = NOON, day: date = DAY) -> list[int]:
    listing = Listing(at, MINUTE, {day: list(scans)})
    return [int(path.stem[9:12]) for path in noticing.due(listing)]


def test_a_scan_is_due_when_it_is_old_enough_and_has_not_changed_since_the_last_look() -> None:
    noticing = Noticing()
    assert look(noticing, scan(1), scan(2, size=50)) == []  # seen for the first time
    assert look(noticing, scan(1), scan(2), scan(3)) == [1]
    young = scan(3, modified=NOON)
    assert look(noticing, scan(2), young, scan(4, size=0)) == [2]
    assert look(noticing, young, scan(4, size=0), at=NOON + 30 * timedelta(seconds=1)) == []
    assert look(noticing, young, scan(4, size=0), at=NOON + MINUTE) == [3]


def test_a_scan_that_was_told_is_told_again_ever_less_often_until_it_has_a_run() -> None:
    noticing = Noticing()
    look(noticing, scan(1))
    told = []
    for minute in range(6 * 60):
        now = NOON + minute * MINUTE
        if look(noticing, scan(1), at=now):
            told.append(minute)
            noticing.told([scan(1).path], now)
    assert told == [0, 5, 15, 35, 75, 135, 195, 255, 315]
    assert noticing.settle([scan(1).path], [DAY]) == {DAY}
    assert look(noticing, scan(1), at=NOON + timedelta(hours=30)) == []


def test_what_is_remembered_is_not_told_after_a_restart() -> None:
    noticing = Noticing({DAY: {fingerprint(scan(1).path)}})
    look(noticing, scan(1), scan(2))
    assert look(noticing, scan(1), scan(2)) == [2]


def test_days_that_are_not_looked_at_any_more_are_forgotten() -> None:
    noticing = Noticing()
    assert noticing.settle([scan(1).path], [DAY]) == {DAY}
    tomorrow = DAY + timedelta(days=1)
    assert noticing.settle([scan(1, day=tomorrow).path], [DAY, tomorrow]) == {tomorrow}
    assert noticing.settle([], [tomorrow, tomorrow + timedelta(days=1)]) == {DAY}
    assert set(noticing.done) == {tomorrow}


@given(
    st.lists(
        st.tuples(st.sets(st.integers(1, 6)), st.sets(st.integers(1, 6)), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_whatever_is_lost_every_scan_gets_a_run_in_the_end_and_is_never_told_after_it(
    steps: list[tuple[set[int], set[int], bool]],
) -> None:
    """Scans come; events are acted on or lost; the process is restarted, remembering only what is stored."""
    noticing, there, with_run, now = Noticing(), set[int](), set[int](), NOON
    for arriving, acted_on, restart in [*steps, *([({1}, set(range(1, 7)), False)] * 3)]:
        now += timedelta(hours=2)
        there |= arriving
        due = look(noticing, *(scan(n, modified=NOON) for n in sorted(there)), at=now)
        known = [scan(n).path for n in due if n in with_run]
        noticing.settle(known, [DAY])
        told = [n for n in due if n not in with_run]
        assert not {n for n in told if fingerprint(scan(n).path) in noticing.done.get(DAY, set())}
        noticing.told([scan(n).path for n in told], now)
        with_run |= set(told) & acted_on
        if restart:
            noticing = Noticing({day: set(names) for day, names in noticing.done.items()})
    assert with_run == there
