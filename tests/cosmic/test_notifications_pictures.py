"""Which pictures go with a message: those that are kept, so that none is missing while NERSC is down."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cosmic import kept_results
from cosmic.beamline import DEFAULT_FILE
from cosmic.notifications import tasks
from cosmic.notifications.book import Event, Picture
from facilities.errors import TransientError, UserError
from facilities.superfacility.hook import SuperfacilityHook

MOMENT = datetime(2026, 7, 1, 19, tzinfo=UTC)
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x04\0\0\0\x04"


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of its own for what is kept."""
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(DEFAULT_FILE))
    monkeypatch.setenv("AIRFLOW__COSMIC__KEPT_RESULTS", str(tmp_path / "kept"))


def picture(number: int) -> Picture:
    return Picture(
        name=f"{number}.png",
        run_id=f"run{number}",
        run_after=MOMENT.isoformat(),
        engine="cdtools",
        path=f"/nersc/{number}.png",
    )


def failed(*numbers: int) -> Event:
    """A scan with these pictures."""
    pictures = [picture(number) for number in numbers]
    return Event(
        id="", kind="scan", at=0.0, subject="", what="", advice="", command="", url="", pictures=pictures
    )


def keep(number: int) -> None:
    run = tasks._Run(f"run{number}", MOMENT)
    assert kept_results.keep(run, "cdtools", {kept_results.PREVIEW: PNG + b"kept"})


def answer(monkeypatch: pytest.MonkeyPatch, reply: bytes | Exception) -> list[str]:
    """What NERSC answers; the paths that it is asked for."""
    asked: list[str] = []

    def download(_hook: Any, _machine: str, path: str) -> bytes:
        asked.append(path)
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(SuperfacilityHook, "download", download)
    return asked


def test_what_is_kept_goes_out_while_nersc_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, TransientError("NERSC does not answer"))
    keep(1)
    assert tasks._pictures([failed(1)]) == {"1.png": PNG + b"kept"}
    assert asked == []
    assert tasks._pictures([failed(2), failed(1, 3)]) == {"1.png": PNG + b"kept"}
    assert asked == ["/nersc/2.png"], "it is not waited for once more"


def test_of_an_older_run_nersc_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, PNG)
    keep(2)
    sent = tasks._pictures([failed(1, 2), failed(3, 4)])
    assert sent == {"1.png": PNG, "2.png": PNG + b"kept", "3.png": PNG}
    assert asked == ["/nersc/1.png", "/nersc/3.png"]


@pytest.mark.parametrize("reply", [b"<html>", UserError("It is not there any more")])
def test_what_is_no_picture_is_left_out_and_the_others_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, reply: bytes | Exception
) -> None:
    asked = answer(monkeypatch, reply)
    assert tasks._pictures([failed(1, 2)]) == {}
    assert asked == ["/nersc/1.png", "/nersc/2.png"]
