"""The transfer and delete operators: what is moved, refused, checked and removed."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from facilities.errors import (
    CredentialsError,
    FacilityError,
    InfrastructureError,
    NotFoundError,
    UserError,
)
from facilities.globus.operators import GlobusDeleteOperator
from standin.testing import Facility
from support.globus import (
    CONN_ID,
    Place,
    Run,
    deferred,
    making,
    use_connection,
)

# What is moved


def test_a_file_is_copied_once_and_described(run: Run, place: Place) -> None:
    result = run.finish(making(place))
    assert place.at_destination.read_bytes() == place.at_source.read_bytes()
    assert result == {
        "task_id": run.ti.xcoms["globus_task_id"],
        "bytes": 600,
        "files": 1,
        "files_skipped": 0,
        "faults": 0,
        "seconds": result["seconds"],
        "rate": result["rate"],
        "source_path": place.path,
        "destination_path": place.path,
    }
    assert result["seconds"] >= 0
    assert json.loads(json.dumps(result)) == result
    assert len(place.books()) == 1
    assert len(run.deferrals) == 1
    assert place.at_destination.stat().st_mtime == pytest.approx(place.at_source.stat().st_mtime, abs=1)


def test_a_folder_is_found_to_be_one(run: Run, place: Place) -> None:
    folder = place.at_source.parent
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "x").write_bytes(b"x" * 10)
    path = place.path.rsplit("/", 1)[0]
    place.path = path
    result = run.finish(making(place))
    assert (result["files"], result["bytes"]) == (2, 610)
    assert (place.facility.collection("nersc7012") / path[1:] / "deep" / "er" / "x").read_bytes() == b"x" * 10


def test_a_file_that_is_there_already_is_not_moved(run: Run, place: Place) -> None:
    run.finish(making(place))
    result = Run().finish(making(place))
    assert (result["bytes"], result["files"], result["files_skipped"]) == (0, 0, 1)


@pytest.mark.parametrize(
    "name", ["with blank.cxi", "it's.cxi", 'say "x".cxi', "$(touch x).cxi", "a;b&c|d.cxi", "ä%2F#?.cxi"]
)
def test_odd_names_arrive_as_they_are(run: Run, standin: Facility, name: str) -> None:
    place = Place(standin, f"/odd/{uuid.uuid4().hex}/{name}").write()
    run.finish(making(place))
    assert place.at_destination.read_bytes() == place.at_source.read_bytes()


# What is refused before anything is sent


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source_path": "/a/../b"}, "source_path '/a/../b' climbs out with '..'"),
        ({"destination_path": "/a\nb"}, "destination_path '/a\\nb' has control characters"),
        ({"source_path": ""}, "source_path is empty"),
        ({"source_collection": "data7012"}, "source_collection 'data7012' is not a Globus collection's id"),
        ({"destination_collection": None}, "destination_collection None is not a Globus collection's id"),
        ({"sync_level": "md5"}, "sync_level 'md5' is unknown"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(
    run: Run, place: Place, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        run.start(making(place, **changes))
    assert place.facility.requests("globus") == []


def test_a_missing_source_is_told_at_once(run: Run, place: Place) -> None:
    place.at_source.unlink()
    with pytest.raises(NotFoundError) as raised:
        run.start(making(place))
    assert str(raised.value).startswith(
        f"There is no {place.path} on the source collection; id {place.source}."
    )
    assert "Nothing was submitted." in str(raised.value)
    assert place.books() == []


def test_an_unreadable_source_is_told_at_once(run: Run, place: Place) -> None:
    place.facility.control("globus", "deny", collection="data7012", path=place.path)
    with pytest.raises(UserError, match="permission denied"):
        run.start(making(place))
    assert place.books() == []


def test_the_destination_of_a_file_is_no_folder(run: Run, place: Place) -> None:
    with pytest.raises(UserError, match="is a folder, but the source is a file"):
        run.start(making(place, destination_path="/folder/"))
    assert place.books() == []


def test_wrong_credentials_fail_at_once(run: Run, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    use_connection(place.facility, monkeypatch, password="wrong")
    with pytest.raises(CredentialsError, match="put a valid client id and secret"):
        run.start(making(place))
    assert place.books() == []


# Results that are not there


def test_a_result_of_another_size_is_an_error(run: Run, place: Place) -> None:
    waiting = deferred(run.start(making(place)))
    event = run.fire(waiting)
    place.at_destination.write_bytes(b"half")
    with pytest.raises(InfrastructureError, match="has 4 bytes, its source has 600"):
        run.resume(making(place), waiting, event)
    run.retry()
    run.finish(making(place))
    assert place.at_destination.read_bytes() == place.at_source.read_bytes()


def test_a_missing_result_is_an_error(run: Run, place: Place) -> None:
    waiting = deferred(run.start(making(place)))
    event = run.fire(waiting)
    place.at_destination.unlink()
    with pytest.raises(InfrastructureError, match="reports success, but there is no"):
        run.resume(making(place), waiting, event)


def test_a_source_that_was_tidied_away_is_no_error(run: Run, place: Place) -> None:
    waiting = deferred(run.start(making(place)))
    event = run.fire(waiting)
    place.at_source.unlink()
    assert run.resume(making(place), waiting, event)["files"] == 1


# Removing


def test_a_file_is_removed(run: Run, place: Place) -> None:
    run.finish(making(place))

    def make() -> GlobusDeleteOperator:
        return GlobusDeleteOperator(
            task_id="remove",
            globus_conn_id=CONN_ID,
            collection=place.destination,
            path=place.path,
            min_poll_interval=0.05,
        )

    result = Run().finish(make)
    assert result["path"] == place.path
    assert not place.at_destination.exists()
    assert Run().finish(make)["task_id"] != result["task_id"]


@pytest.mark.parametrize("path", ["/", "", "~/..", "/.", "/~/"])
def test_the_root_is_never_removed(run: Run, place: Place, path: str) -> None:
    operator = GlobusDeleteOperator(
        task_id="remove", globus_conn_id=CONN_ID, collection=place.destination, path=path, recursive=True
    )
    with pytest.raises(UserError):
        operator.execute(run.context())
    assert place.facility.requests("globus") == []


def test_a_folder_is_removed_only_when_asked(run: Run, place: Place) -> None:
    folder = place.path.rsplit("/", 1)[0]
    run.finish(making(place))

    def making_delete(**changes: Any) -> Callable[[], GlobusDeleteOperator]:
        return lambda: GlobusDeleteOperator(
            task_id="remove",
            globus_conn_id=CONN_ID,
            collection=place.destination,
            path=folder,
            min_poll_interval=0.05,
            **changes,
        )

    with pytest.raises(FacilityError):
        Run().finish(making_delete(timeout=timedelta(seconds=1)))
    assert place.at_destination.exists()
    Run().finish(making_delete(recursive=True))
    assert not place.at_destination.parent.exists()
