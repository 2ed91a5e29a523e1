"""Tests are skipped through the list of needs alone, which says what to do."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import needs

TESTS = Path(__file__).resolve().parents[1]
SKIPPING = {"skip", "skipif", "importorskip", "skipTest", "SkipTest"}
README_TEST = "tests/live/test_rest_contract.py::test_the_lines_of_the_document_work_as_they_are"


def test_every_skip_goes_through_the_list() -> None:
    named = set()
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in SKIPPING:
                assert path == TESTS / "conftest.py", f"{path}:{node.lineno}: use @pytest.mark.needs"
            if isinstance(node, ast.Attribute) and node.attr == "which":
                assert path.parent == TESTS / "support", f"{path}:{node.lineno}: use @pytest.mark.needs"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.needs":
                named |= {ast.literal_eval(argument) for argument in node.args}
    assert named <= set(needs.NEEDS)
    assert {"postgresql", "jq", "cdtools", "real scan"} <= named


def test_ci_skips_nothing_for_want_of_what_can_be_had() -> None:
    """With --all-needs a missing package of Debian's fails; what is had in another way is a step of CI's."""
    elsewhere = {"python3.8", "real scan", "docker", "control groups", "uv", "root"}
    assert elsewhere < set(needs.NEEDS)
    steps = (TESTS.parent / ".ci" / "run").read_text()
    for name, need in needs.NEEDS.items():
        if not need.packages and name not in elsewhere:
            assert need.remedy in steps, name


@pytest.mark.parametrize(("options", "outcome"), [([], "1 skipped"), (["--all-needs"], "1 error")])
def test_what_is_missing_is_named_with_its_remedy(options: list[str], outcome: str, tmp_path: Path) -> None:
    """A PATH without curl; the test would otherwise start an Airflow."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "long", README_TEST, *options]
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": str(tmp_path)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "curl is missing here (tests/support/needs.py): apt-get install curl" in done.stdout, done.stderr
    assert outcome in done.stdout.splitlines()[-1]


def needs_program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it as on a machine where nothing is installed: isolated, this interpreter's library alone."""
    command = [sys.executable, "-I", "-S", needs.__file__, *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_the_program_lists_what_is_here_and_what_is_missing(tmp_path: Path) -> None:
    done = needs_program(PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [line.partition("  ")[0].strip() for line in done.stdout.splitlines()] == list(needs.NEEDS)
    assert "jq              is missing: apt-get install jq (for the README's REST examples)\n" in done.stdout


def test_what_cannot_be_installed_is_said(tmp_path: Path) -> None:
    without_apt = needs_program("install", "curl", "jq", PATH=str(tmp_path))
    everything = needs_program("install", PATH=str(tmp_path))
    assert "curl jq" in everything.stderr
    assert "slurm" not in everything.stderr
    assert (without_apt.returncode, without_apt.stdout) == (needs.CANNOT_INSTALL, "")
    assert without_apt.stderr == "Only root can install curl jq, and with apt-get.\n"
    unknown = needs_program("install", "curl", "telepathy")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("usage: needs.py [install [NEED ...]], of curl, jq, ")
    assert needs_program("install", "root").returncode == 0  # no package has it


@pytest.mark.needs("root")
def test_apts_own_words_are_shown_and_services_stay_off_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy-rc.d"
    apt = tmp_path / "apt-get"
    apt.write_text(
        f'#!/bin/sh\n/bin/cat {policy} >>{tmp_path}/policy\necho "$@" >>{tmp_path}/said\n'
        'case $1 in install) echo "E: Unable to locate package jq"; exit 100 ;; esac\n'
    )
    apt.chmod(0o755)
    monkeypatch.setattr(needs, "POLICY", policy)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert needs.install(["jq"]) == needs.CANNOT_INSTALL
    assert (tmp_path / "said").read_text() == "update -q\ninstall -y -q --no-install-recommends jq\n"
    assert (tmp_path / "policy").read_text() == "#!/bin/sh\nexit 101\n" * 2
    assert "E: Unable to locate package jq" in capfd.readouterr().err
    assert not policy.exists()
