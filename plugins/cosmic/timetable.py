"""When `find_missed_scans` runs: once for each day of the beamline, the morning after."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction, Timetable
from airflow.timetables.interval import CronDataIntervalTimetable
from pendulum import DateTime


class BeamlineDays(CronDataIntervalTimetable):
    """A run for each calendar day, `hours_after` the end of the day in UTC, when it is over at the beamline.

    The data interval names the day: midnight to midnight in UTC of 2023-02-16 is the folder 230216, so dates
    without a time mean the same in every time zone. (The backfill dialogue sends the beginning of the first
    day and the end of the last in the reader's zone.)

    After downtime, the days since the last run are run too, even with `catchup=False`, unless that run is of
    more than two weeks ago: it may be a backfill of an old month. Then, as on a new installation, the
    schedule begins with the next day, and what was before is for a backfill.

    :param hours_after: hours after midnight in UTC.
    """

    MAX_CATCHUP = timedelta(days=14)

    def __init__(self, hours_after: float = 15.0) -> None:
        super().__init__("0 0 * * *", timezone="UTC")
        self.wait = timedelta(hours=hours_after)
        self.description = f"Each day of the beamline, {hours_after:g} h after its end in UTC"

    @property
    def summary(self) -> str:
        """Shown beside the DAG."""
        return "daily, the morning after"

    def serialize(self) -> dict[str, Any]:
        """What `deserialize` takes."""
        return {"hours_after": self.wait / timedelta(hours=1)}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Timetable:
        """The timetable as it was serialized."""
        return cls(data["hours_after"])

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """The next day's run."""
        if not restriction.catchup:
            newest = self._get_prev(self._align_to_prev(self._now() - self.wait))  # that is over
            last = last_automated_data_interval
            is_recent = last is not None and newest - last.start <= self.MAX_CATCHUP
            floor = newest - self.MAX_CATCHUP if is_recent else self._get_next(newest)
            earliest = floor if restriction.earliest is None else max(floor, restriction.earliest)
            restriction = TimeRestriction(earliest, restriction.latest, catchup=True)
        else:
            restriction = TimeRestriction(
                _first_day(restriction.earliest), _last_day(restriction.latest), catchup=True
            )
        info = super().next_dagrun_info(
            last_automated_data_interval=last_automated_data_interval, restriction=restriction
        )
        if info is None or info.data_interval is None:
            return info
        return DagRunInfo(run_after=info.run_after + self.wait, data_interval=info.data_interval)

    @staticmethod
    def _now() -> DateTime:
        return DateTime.now("UTC")


def _first_day(bound: DateTime | None) -> DateTime | None:
    """Midnight in UTC of the day that begins here somewhere in the world."""
    return None if bound is None else bound.in_timezone("UTC").add(hours=12).start_of("day")


def _last_day(bound: DateTime | None) -> DateTime | None:
    """The same of the day that begins, or whose last second is, here."""
    if bound is None or bound.second != 59:
        return _first_day(bound)
    next_day = _first_day(bound.add(seconds=1))
    return None if next_day is None else next_day.subtract(days=1)
