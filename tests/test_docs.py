"""The documents: every link leads somewhere, and what is generated is up to date."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dev import reference

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    inside = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    missing = [target for target in inside if not (document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if document.name != "CHANGELOG.md"],  # it names what was before
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_files_and_make_targets_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:dags|plugins|include|tests|docs)/[A-Za-z0-9_./-]+)`", text)
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    used = set(re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert {target for target in used if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_the_parameters_are_those_of_the_dags() -> None:
    assert reference.FILE.read_text(encoding="utf-8") == reference.parameters(), "run: make reference"


def test_the_readme_starts_with_what_it_does_and_the_two_commands_on_one_screen() -> None:
    screen = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    assert any(line.strip().startswith("make demo") for line in screen)
    assert any(line.strip().startswith("make test") for line in screen)
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_no_document_is_left_out() -> None:
    """Each is reached from the README by links."""
    reached: set[Path] = set()
    ways = [REPOSITORY / "README.md"]
    while ways:
        page = ways.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
        ways += [(page.parent / link).resolve() for link in links if ":" not in link]
    assert set(DOCUMENTS) - reached == set()


def test_no_document_names_this_machine() -> None:
    listed = subprocess.run(
        ["git", "grep", "-lE", "/(work|root)/", "--", "*.md"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    assert listed == ""
