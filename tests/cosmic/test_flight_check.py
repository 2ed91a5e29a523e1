"""The flight check's look at Globus: the client, and both collections."""

from __future__ import annotations

import pytest

from cosmic.flight_check import check_globus
from facilities.errors import CredentialsError
from standin.testing import Facility


def identity(standin: Facility) -> str:
    return f"{standin.description['globus']['client_id']}@clients.auth.globus.org"


def test_both_collections_are_looked_into(standin: Facility) -> None:
    assert check_globus.function() == identity(standin)
    listed = {r["path"] for r in standin.requests("globus") if r["path"].endswith("/ls")}
    assert len(listed) == 2


@pytest.mark.parametrize("collection", ["data7012", "nersc7012"])
def test_a_collection_that_refuses_the_client_is_found(standin: Facility, collection: str) -> None:
    standin.control("globus", "login", collection=collection, refusal="no_account")
    try:
        with pytest.raises(CredentialsError, match="has no account on collection") as raised:
            check_globus.function()
    finally:
        standin.control("globus", "login", collection=collection, refusal=None)
    assert identity(standin) in raised.value.next_step
    assert standin.description["collections"][collection]["id"] in str(raised.value)
