"""When `find_missed_scans` runs: once for each day of the beamline, the morning after."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction, Timetable
from airflow.timetables.interval import CronDataIntervalTimetable
from pendulum import DateTime

_HOUR = 3600.0


class BeamlineDays(CronDataIntervalTimetable):
    """A run for each calendar day, `hours_after` the end of the day in UTC.

    The data interval names the day: midnight to midnight in UTC of 2023-02-16 is the folder 230216, so that
    dates without a time, on the command line or in the backfill dialogue, mean what they say in every time
    zone. (The dialogue sends the beginning of the first day and the end of the last in the reader's zone.)
    The day at the beamline (UTC-8 or -7) ends hours after that, which the run waits for.

    When Airflow was down, the days since the last run are made up for, also with `catchup=False`: they are
    those on which scans go missing. But not when that run is of more than two weeks ago. It may be a backfill
    of an old month, which does not ask for everything since. Then, as on a new installation, the next day is
    the one that goes on now, and what was before is for a backfill.

    :param hours_after: hours after midnight in UTC.
    """

    MADE_UP_FOR = timedelta(days=14)

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
        return {"hours_after": self.wait.total_seconds() / _HOUR}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Timetable:
        """The timetable as it was serialised."""
        return cls(data["hours_after"])

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """The next day's run; see the class for what is made up for."""
        if not restriction.catchup:
            newest = self._newest_day_that_is_due()
            last = last_automated_data_interval
            is_recent = last is not None and newest - last.start <= self.MADE_UP_FOR
            floor = newest - self.MADE_UP_FOR if is_recent else self._get_next(newest)
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

    def _newest_day_that_is_due(self) -> DateTime:
        return self._get_prev(self._align_to_prev(self._now() - self.wait))

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
