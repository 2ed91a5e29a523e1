"""Which days a run looks at, with which parameters; when runs are; what the table looks like."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.serialization.decoders import decode_timetable
from airflow.serialization.encoders import encode_timetable
from airflow.timetables.base import DataInterval, TimeRestriction
from hypothesis import given, settings
from hypothesis import strategies as st
from pendulum import DateTime, timezone

from cosmic import missed_scans
from cosmic.beamline import DEFAULT_FILE, Beamline, beamline
from cosmic.missed_scans import DayRow, days_to_compare, table
from cosmic.parameters import MISSED_SCANS, chosen_engines, read_parameters
from cosmic.timetable import BeamlineDays
from facilities.errors import UserError


@pytest.fixture
def site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "beamline.yaml"
    path.write_text(DEFAULT_FILE.read_text())
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(path))
    return path


def params(**changes: Any) -> dict[str, Any]:
    return read_parameters(MISSED_SCANS, changes)


def interval(start: datetime, end: datetime) -> Any:
    return {"data_interval_start": start, "data_interval_end": end}


def utc(year: int, month: int, day: int, hour: int = 0) -> DateTime:
    return DateTime(year, month, day, hour, tzinfo=timezone("UTC"))


# Days


def test_the_days_are_those_of_the_data_interval() -> None:
    day = interval(utc(2023, 2, 16), utc(2023, 2, 17))
    assert days_to_compare(day, params()) == [date(2023, 2, 16)]
    week = interval(utc(2023, 2, 27), utc(2023, 3, 2))
    assert days_to_compare(week, params()) == [date(2023, 2, 27), date(2023, 2, 28), date(2023, 3, 1)]
    instant = interval(utc(2023, 2, 16), utc(2023, 2, 16))
    assert days_to_compare(instant, params()) == [date(2023, 2, 16)]


def test_days_that_are_asked_for_come_first() -> None:
    context = interval(utc(2023, 2, 16), utc(2023, 2, 17))
    asked = params(first_day="2024-02-28", last_day="2024-03-01")
    assert days_to_compare(context, asked) == [date(2024, 2, 28), date(2024, 2, 29), date(2024, 3, 1)]
    assert days_to_compare(context, params(first_day="2024-02-28")) == [date(2024, 2, 28)]
    assert days_to_compare(context, params(last_day="2024-02-28")) == [date(2024, 2, 28)]


def test_by_hand_without_days_it_is_yesterday_and_today_at_the_beamline(
    site_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2023, 2, 17, 5, tzinfo=UTC).astimezone(tz)  # the evening of the 16th there

    monkeypatch.setattr(missed_scans, "datetime", Clock)
    assert days_to_compare({}, params()) == [date(2023, 2, 15), date(2023, 2, 16)]


@pytest.mark.parametrize(("first", "last"), [("2024-03-02", "2024-03-01"), ("2023-01-01", "2024-06-01")])
def test_a_range_that_is_none_or_too_long_is_refused(first: str, last: str) -> None:
    with pytest.raises(UserError, match=r"not a range of 1 to 366 days.*\n?.*What to do: trigger again"):
        days_to_compare({}, params(first_day=first, last_day=last))


@pytest.mark.parametrize(
    "wrong",
    [
        {"which": "all"},
        {"first_day": "16.2.2023"},
        {"at_once": 0},
        {"min_age_minutes": -1},
        {"dry_run": "no"},
    ],
)
def test_wrong_parameters_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(wrong))} must be"):
        params(**wrong)


# Parameters of a day


def with_processing(processing: dict[str, Any]) -> Beamline:
    site = yaml.safe_load(DEFAULT_FILE.read_text())
    return Beamline.model_validate({**site, "processing": processing})


def test_day_settings_override_proposal_settings_which_override_the_defaults() -> None:
    site = with_processing(
        {
            "parameters": {"do_ptychocam": True, "n_iter": 100},
            "proposals": {
                "ALS-1": {
                    "first_day": "2023-02-14",
                    "last_day": "2023-02-16",
                    "parameters": {"n_iter": 200, "n_gpu": 2},
                }
            },
            "days": {date(2023, 2, 16): {"n_gpu": 4, "do_cdtools": True}},
        }
    )
    assert site.parameters_for(date(2023, 2, 13)) == {"do_ptychocam": True, "n_iter": 100}
    assert site.parameters_for(date(2023, 2, 14)) == {"do_ptychocam": True, "n_iter": 200, "n_gpu": 2}
    last = site.parameters_for(date(2023, 2, 16))
    assert last == {"do_ptychocam": True, "n_iter": 200, "n_gpu": 4, "do_cdtools": True}
    assert chosen_engines(last) == ["cdtools", "ptychocam"]
    assert chosen_engines({}) == []


@pytest.mark.parametrize(
    ("processing", "said"),
    [
        ({"parameters": {"n_itr": 3}}, "processing.parameters.n_itr"),
        ({"parameters": {"n_gpu": 400}}, "processing.parameters.n_gpu"),
        ({"parameters": {"file_path": "x.cxi"}}, "processing.parameters.file_path"),
        ({"days": {date(2023, 2, 16): {"n_gpu": "8"}}}, "processing.days.2023-02-16.n_gpu"),
    ],
)
def test_a_wrong_parameter_is_named_by_its_key(processing: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        with_processing(processing).parameters_for(date(2023, 2, 16))
    assert said in str(refused.value)
    assert "beamline.yaml" in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("America/Los_Angeles", "Berkeley", "time_zone: "),
        ("days: {}", "days: {16-02-2023: {}}", "processing.days"),
        (
            "proposals: {}",
            "proposals: {a: {first_day: 2023-02-03, last_day: 2023-02-01, parameters: {}}}",
            "last_day is before first_day",
        ),
    ],
)
def test_a_wrong_setting_is_named_by_its_key(site_file: Path, old: str, new: str, said: str) -> None:
    text = site_file.read_text()
    assert old in text
    site_file.write_text(text.replace(old, new))
    with pytest.raises(UserError) as refused:
        beamline()
    assert said in str(refused.value)


def test_settings_from_before_these_keys_still_do(site_file: Path) -> None:
    site = yaml.safe_load(site_file.read_text())
    for key in ("processing", "time_zone"):
        del site[key]
    site_file.write_text(yaml.safe_dump(site))
    assert beamline().parameters_for(date(2023, 2, 16)) == {}


# The timetable

FEBRUARY = DataInterval(utc(2023, 2, 16), utc(2023, 2, 17))


def next_run(
    now: DateTime, last: DataInterval | None, *, catchup: bool = False, latest: DateTime | None = None
) -> tuple[DateTime, DateTime] | None:
    class Frozen(BeamlineDays):
        @staticmethod
        def _now() -> DateTime:
            return now

    info = Frozen(15).next_dagrun_info(
        last_automated_data_interval=last,
        restriction=TimeRestriction(earliest=utc(2023, 1, 1), latest=latest, catchup=catchup),
    )
    if info is None:
        return None
    assert info.data_interval is not None
    assert info.data_interval.end - info.data_interval.start == timedelta(days=1)
    return info.data_interval.start, info.run_after


def test_a_day_is_compared_the_morning_after() -> None:
    assert next_run(utc(2023, 2, 17, 20), FEBRUARY) == (utc(2023, 2, 17), utc(2023, 2, 18, 15))


def test_a_new_installation_starts_with_today() -> None:
    assert next_run(utc(2023, 2, 17, 20), None) == (utc(2023, 2, 17), utc(2023, 2, 18, 15))
    assert next_run(utc(2023, 2, 17, 10), None) == (utc(2023, 2, 16), utc(2023, 2, 17, 15))


def test_the_days_of_an_outage_are_made_up_for() -> None:
    assert next_run(utc(2023, 2, 25, 20), FEBRUARY) == (utc(2023, 2, 17), utc(2023, 2, 18, 15))
    assert next_run(utc(2023, 3, 3, 20), FEBRUARY) == (utc(2023, 2, 17), utc(2023, 2, 18, 15))


def test_a_backfill_of_old_days_does_not_ask_for_everything_since() -> None:
    """Airflow takes its newest run for the last of the schedule, on a new installation at least."""
    assert next_run(utc(2023, 6, 1, 20), FEBRUARY) == (utc(2023, 6, 1), utc(2023, 6, 2, 15))


@settings(max_examples=40)
@given(st.integers(0, 60 * 24 * 14), st.booleans())
def test_no_day_is_left_out_and_none_comes_twice(minutes: int, catchup: bool) -> None:
    now = utc(2023, 2, 18).add(minutes=minutes)
    last, seen = FEBRUARY, []
    while (found := next_run(now, last, catchup=catchup)) and found[1] <= now:
        seen.append(found[0])
        last = DataInterval(found[0], found[0].add(days=1))
    assert [b - a for a, b in itertools.pairwise(seen)] == [timedelta(days=1)] * (len(seen) - 1)
    due = now.subtract(hours=15).start_of("day").subtract(days=1)
    if due > FEBRUARY.start:
        assert seen[-1] == due  # up to the newest day that is over at the beamline
        assert len(seen) == (due - FEBRUARY.start).days


ZONES = ["UTC", "America/Los_Angeles", "Europe/Berlin", "Asia/Kolkata", "Asia/Tokyo"]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("to_its_end", [False, True])
def test_a_range_of_dates_means_these_days_both_included(zone: str, to_its_end: bool) -> None:
    """As a backfill asks: the command line in UTC, the dialogue in the reader's zone, to the day's end."""
    first, latest = (DateTime(2023, 2, day, tzinfo=timezone(zone)) for day in (1, 28))
    latest = latest.end_of("day") if to_its_end else latest
    last, days = None, []
    timetable = BeamlineDays(15)
    restriction = TimeRestriction(earliest=first, latest=latest, catchup=True)
    while info := timetable.next_dagrun_info(last_automated_data_interval=last, restriction=restriction):
        last = info.data_interval
        assert last is not None
        days.append(last.start)
    assert (days[0], days[-1], len(days)) == (utc(2023, 2, 1), utc(2023, 2, 28), 28)


@pytest.mark.filterwarnings(
    "ignore:GitWildMatchPattern", "ignore:Using `httpx`"
)  # Airflow's, loading plugins
def test_airflow_can_store_it(airflow_database: None) -> None:
    again = decode_timetable(encode_timetable(BeamlineDays(14.5)))
    assert isinstance(again, BeamlineDays)
    assert again.wait == timedelta(hours=14.5)
    assert "14.5 h" in again.description


# The table


def row(day: str, **numbers: int) -> DayRow:
    names = [name for name in DayRow.__annotations__ if name != "day"]
    return DayRow(**{"day": day, **dict.fromkeys(names, 0), **numbers})  # type: ignore[typeddict-item]


def test_the_table_lines_up_and_sums_up() -> None:
    text = table([row("2023-02-16", on_disk=1000, started=7), row("2023-02-17", on_disk=2, failed=2)])
    head, *lines = text.splitlines()
    assert head.split("  ")[0] == "day"
    assert [line.split()[:2] for line in lines] == [
        ["2023-02-16", "1000"],
        ["2023-02-17", "2"],
        ["total", "1002"],
    ]
    assert len({len(line) for line in [head, *lines]}) == 1
    assert "total" not in table([row("2023-02-16")])
    assert table([]).split()[0] == "day"
