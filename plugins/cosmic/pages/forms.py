"""The forms of buttons: their fields, and the page that says what has become of a press."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastapi import HTTPException
from fastapi.responses import Response
from starlette.datastructures import FormData

from cosmic.pages.airflow_api import Answer
from cosmic.pages.rendering import render

MAX_SHOWN = 20  # runs on a page about many


def text_of(form: FormData, name: str) -> str:
    """A field; empty when it was not sent."""
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def number_of(form: FormData, name: str) -> int:
    """A field that the page has filled in.

    :raises HTTPException: it is no number.
    """
    text = text_of(form, name)
    if not text.isascii() or not text.isdigit():
        raise HTTPException(400, "The form is not complete.")
    return int(text[:18])


def count(things: Sequence[object], name: str) -> str:
    """Such as `2 runs`."""
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


def refusals(asked: Iterable[tuple[str, Answer]]) -> list[tuple[str, str]]:
    """The runs of which Airflow has not done what it was asked, with its reasons; the first of them.

    :param asked: the runs, with its answers.
    """
    return [(run_id, answer.reason) for run_id, answer in asked if not answer.accepted][:MAX_SHOWN]


def refused(airflow: str, headline: str, answer: Answer, back: str) -> Response:
    """The page that says why nothing was done."""
    return render(
        "action_done.html",
        status=answer.status if answer.status < 500 else 502,
        airflow=airflow,
        headline=headline,
        lines=[answer.reason],
        runs=[],
        back=back,
        back_to="Back",
    )
