"""The marks that lead from a remote job or transfer back to its run and task."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilities.globus.submission import make_label
from facilities.ownership import Owner, owner_digest, this_airflow
from facilities.superfacility.job_script import SlurmResources, job_script
from standin.nersc.schedulers.script import directives

OWNER = Owner("transfer_auto_recon", "scan__2023__02__230216__NS_230216033.0a1b2c3d", "ptychocam.submit")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
OWNERS = st.builds(Owner, TEXT, TEXT, TEXT, st.integers(-1, 1023))


@given(OWNERS)
def test_a_mark_leads_back_to_any_owner_and_is_one_word_in_a_script(owner: Owner) -> None:
    assert Owner.read(owner.mark) == owner
    assert shlex.split(owner.mark) == [owner.mark]
    assert owner.mark.isascii()


@pytest.mark.parametrize("run_id", ["manual__2026-11-23T01:00:00.5+00:00", "scan__a", "50%_off", "a/b"])
def test_slurm_gets_the_mark_as_the_jobs_comment(run_id: str) -> None:
    owner = Owner("transfer_auto_recon", run_id, "ptychocam.submit", 3)
    resources = SlurmResources(account="als", qos="regular", constraint="gpu", time_limit="01:00:00")
    script = job_script(resources, "name", "echo a\n", owner=owner)
    assert Owner.read(directives(script)["comment"]) == owner


@pytest.mark.parametrize(
    "comment", [None, "", "96:00:00", "airflow", "airflow/00000000/d/r/t/-1", "airflow/a/b/c/d/e/f/g"]
)
def test_what_others_write_into_a_comment_is_no_mark(comment: str | None) -> None:
    assert Owner.read(comment) is None


def test_another_airflows_work_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    mark, digest = OWNER.mark, OWNER.digest
    with monkeypatch.context() as other:
        other.setenv("AIRFLOW__API__BASE_URL", "https://test-airflow.example")
        this_airflow.cache_clear()
        assert Owner.read(mark) is None
        assert OWNER.digest != digest
    this_airflow.cache_clear()
    assert Owner.read(mark) == OWNER


@given(OWNERS, TEXT)
def test_a_label_tells_the_owners_digest(owner: Owner, base: str) -> None:
    label = make_label(base, owner, "0123456789abcdef")
    assert owner_digest(label) == owner.digest


@pytest.mark.parametrize(
    "label", ["", "by hand", "scan__a-0a1b2c3d4e5f6a7b", "scan__a-0a1b2c3d4e5f6a7b-0a1b2c3d4"]
)
def test_labels_of_others_tell_none(label: str) -> None:
    assert owner_digest(label) is None


def test_digests_of_task_instances_differ() -> None:
    others = [
        Owner("d", "r", "t"),
        Owner("d", "r", "t", 0),
        Owner("dr", "", "t"),
        Owner("d", "r", "u"),
        Owner("e", "r", "t"),
    ]
    assert len({owner.digest for owner in others}) == len(others)
