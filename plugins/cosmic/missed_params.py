"""The parameters of `find_missed_scans`. All have defaults, as a backfill needs."""

from __future__ import annotations

from airflow.sdk import Param

_WHAT = "What to start"
_DAYS = "Days"
_LIMITS = "Limits"


def _day(title: str, description: str) -> Param:
    return Param(
        None, type=["null", "string"], format="date", title=title, description=description, section=_DAYS
    )


def _number(
    default: float, title: str, description: str, *, least: float, most: float, kind: str = "integer"
) -> Param:
    return Param(
        default,
        type=kind,
        minimum=least,
        maximum=most,
        title=title,
        description=description,
        section=_LIMITS,
    )


def missed_scans_params() -> dict[str, Param]:
    """What to start, of which days, and how many at once."""
    return {
        "which": Param(
            "missing",
            type="string",
            enum=["missing", "failed", "everything"],
            values_display={
                "missing": "missing: not processed at all",
                "failed": "failed: also those whose last run failed",
                "everything": "everything: reprocess also what is processed",
            },
            title="Which scans",
            description=(
                "Scans that are running are never started again. Failed and processed ones get a new "
                "identity (__r2, __r3 ...), and their results lie beside the earlier ones."
            ),
            section=_WHAT,
        ),
        "dry_run": Param(
            False, type="boolean", title="Dry run", description="List only, start nothing.", section=_WHAT
        ),
        "first_day": _day(
            "First day", "Of the folders to look at. Empty: the run's data interval, or yesterday and today."
        ),
        "last_day": _day("Last day", "Included. Empty: the first day."),
        "min_age_minutes": _number(
            30,
            "Least age (minutes)",
            "A file that has changed more recently is left alone.",
            least=0,
            most=100_000,
            kind="number",
        ),
        "at_once": _number(
            50,
            "Runs at once",
            "Start no more while so many runs of transfer_auto_recon are going on; live scans count too, and "
            "wait for nobody.",
            least=1,
            most=400,
        ),
        "copies_at_once": _number(
            2,
            "Transfers at once",
            "Start no more while so many of them have their transfer before them. Globus moves three at a "
            "time for one user: 2 leaves room for live scans.",
            least=1,
            most=400,
        ),
    }
