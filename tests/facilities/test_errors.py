"""Failures: their message, their class, and that they survive pickling."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilities.errors import (
    BY_CLASS,
    CredentialsError,
    FacilityError,
    InfrastructureError,
    LostReplyError,
    NotFoundError,
    ResourcesError,
    TimeLimitError,
    TransientError,
    UserError,
)
from facilities.globus.errors import SubmissionConflictError

ALL = [
    CredentialsError,
    InfrastructureError,
    LostReplyError,
    NotFoundError,
    ResourcesError,
    TimeLimitError,
    TransientError,
    UserError,
]


def test_message_has_what_id_state_and_next_step() -> None:
    error = UserError(
        "The job failed", remote_id="42", state="FAILED", next_step="read its log.", details="exit 1"
    )
    assert str(error) == "The job failed; id 42; last state FAILED.\nWhat to do: read its log.\nexit 1"


def test_message_leaves_out_what_is_not_known() -> None:
    assert str(UserError("The job failed")) == "The job failed."


@pytest.mark.parametrize("kind", ALL)
def test_survives_pickling(kind: type[FacilityError]) -> None:
    error = kind("It failed", remote_id="42", state="S", next_step="wait.", details="more")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", ALL)
def test_comes_through_a_triggers_event(kind: type[FacilityError]) -> None:
    error = kind("It failed", remote_id="42", state="S", next_step="wait.")
    error.add_details("more", "", "and more")
    again = FacilityError.from_fields(json.loads(json.dumps(error.to_fields())))
    assert type(again) is kind
    assert str(again) == str(error)
    assert str(again).endswith("more\nand more")


def test_an_error_of_a_class_of_one_service_comes_through_as_its_kind() -> None:
    fields = SubmissionConflictError("In conflict", remote_id="42").to_fields()
    assert type(FacilityError.from_fields(fields)) is TransientError
    assert type(FacilityError.from_fields({"what": "Odd"})) is InfrastructureError


def test_retry_after_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(LostReplyError("No answer", retry_after=7.5)))
    assert again.retry_after == 7.5


def test_every_class_leads_to_an_error_of_that_class() -> None:
    for name, kind in BY_CLASS.items():
        assert kind.failure_class == name
        assert kind("It failed").what == "It failed"


def test_specialised_errors_keep_their_class() -> None:
    assert LostReplyError.failure_class == "transient"
    assert NotFoundError.failure_class == "user"
    assert TimeLimitError.failure_class == "resources"


@given(st.text(), st.none() | st.text(), st.none() | st.text(), st.text(), st.text())
def test_nothing_that_was_given_is_missing_from_the_message(
    what: str, remote_id: str | None, state: str | None, next_step: str, details: str
) -> None:
    message = str(UserError(what, remote_id=remote_id, state=state, next_step=next_step, details=details))
    for part in (what, remote_id, state, next_step, details):
        assert (part or "") in message
