"""The client is one file that runs on Python 3.8 with nothing installed."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from beamline_client.scan_names import scan_run_id
from dev.build_client import SOURCE, build
from support.airflow_api import AirflowApi
from support.client import PROGRAM
from support.needs import python_3_8

SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
OTHER = "2023/02/230216/NS_230216034_ccdframes_0_0.cxi"
RUN = scan_run_id(SCAN)
MODULES = {path.name: path for path in SOURCE.glob("*.py")}

FORBIDDEN_BEFORE_3_9 = {
    "removeprefix", "removesuffix", "pairwise", "zip_longest_strict", "cache", "is_relative_to", "with_stem",
    "readlink", "randbytes", "lcm", "nextafter", "to_thread", "aclosing", "batched", "walk", "UTC",
}  # fmt: skip
NOT_STANDARD = {"listen.py": {"zmq"}}  # imported in the function that needs it
GENERIC_SINCE_3_9 = {"list", "dict", "set", "frozenset", "tuple", "type"}


def test_the_file_is_the_package_the_dags_parameters_and_nothing_else() -> None:
    with zipfile.ZipFile(PROGRAM) as file:
        assert set(file.namelist()) == {
            "__main__.py",
            "beamline_client/dag.json",
            *(f"beamline_client/{name}" for name in MODULES),
        }
        for name, path in MODULES.items():
            assert file.read(f"beamline_client/{name}") == path.read_bytes()
    assert PROGRAM.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert os.access(PROGRAM, os.X_OK)


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "elsewhere" / "beamline_client"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    monkeypatch.setattr("dev.build_client.SOURCE", copy)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    assert build(tmp_path / "submit_scan.py").read_bytes() == PROGRAM.read_bytes()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_python_3_8_and_standard_library_only(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(), feature_version=(3, 8))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {
        str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert imported <= set(sys.stdlib_module_names) | {"beamline_client"} | NOT_STANDARD.get(name, set())
    at_once = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert not at_once & set().union(*NOT_STANDARD.values())
    assert not imported & {"tomllib", "zoneinfo", "graphlib"}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert attributes & FORBIDDEN_BEFORE_3_9 <= {"walk"}  # os.walk; Path.walk is 3.12
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.withitem) and _parenthesized(node)]
    assert not [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in ("strict", "slots", "kw_only")
    ]
    _no_new_typing_at_run_time(tree)


def _parenthesized(node: ast.withitem) -> bool:
    return isinstance(node.context_expr, ast.Tuple)


def _no_new_typing_at_run_time(tree: ast.Module) -> None:
    """Outside annotations, no `list[int]` and no `X | Y` of types: both fail on 3.8 when they run."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for inner in ast.walk(node.value):
                if isinstance(inner, ast.Subscript) and isinstance(inner.value, ast.Name):
                    assert inner.value.id not in GENERIC_SINCE_3_9, ast.unparse(inner)
                assert not (isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.BitOr)), ast.unparse(
                    inner
                )


OLDEST = pytest.param("3.8", marks=pytest.mark.needs("python3.8"))


def test_the_version_is_the_bundles() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{version('cosmic-airflow-bundle')}\n"


def test_the_source_is_not_run_unbuilt() -> None:
    command = [sys.executable, "-m", "beamline_client", "status"]
    done = subprocess.run(command, cwd=SOURCE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "The client runs as one file, which `make client` writes." in done.stderr


@pytest.mark.parametrize("python", [sys.executable, OLDEST])
def test_the_file_alone_runs_anywhere(api: AirflowApi, config: Path, tmp_path: Path, python: str) -> None:
    interpreter = python_3_8() if python == "3.8" else python
    assert interpreter is not None
    copy = tmp_path / "submit_scan.py"
    shutil.copy(PROGRAM, copy)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COSMIC_AIRFLOW_URL": api.url}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [interpreter, "-I", "-W", "error", str(copy), *arguments, "--config", str(config)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    first = run(SCAN, "--engine", "ptychocam", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["results"][0]["run_id"] == RUN
    api.runs[RUN]["state"] = "failed"
    again = run("reprocess", SCAN, "--param", "n_iter=2")
    assert (again.returncode, again.stderr) == (0, "")
    assert run("status", SCAN).returncode == 0
    assert run("status", "NS_230216033").returncode == 8
    assert run("cancel", SCAN).returncode == 0
    assert run("reprocess", "NS_230216033").returncode == 0
    assert run("cancel", "NS_230216033").returncode == 0
    assert len(api.created) == 3


IN_ANOTHER_PROGRAM = """
import sys
sys.path.insert(0, {program!r})
from beamline_client import submit
for outcome in submit({path!r}, config={config!r}, {options}):
    print(outcome.outcome, outcome.exit_code, outcome.run_id)
print("the program goes on")
"""


@pytest.mark.parametrize("python", [sys.executable, OLDEST])
def test_another_program_submits_with_one_line(
    api: AirflowApi, config: Path, tmp_path: Path, python: str
) -> None:
    interpreter = python_3_8() if python == "3.8" else python
    assert interpreter is not None
    copy = tmp_path / "submit_scan.py"
    shutil.copy(PROGRAM, copy)

    def run(path: str = SCAN, options: str = "do_ptychocam=True") -> tuple[list[str], str]:
        source = IN_ANOTHER_PROGRAM.format(program=str(copy), path=path, config=str(config), options=options)
        command = [interpreter, "-W", "error", "-c", source]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        *lines, last = done.stdout.splitlines()
        assert last == "the program goes on"
        return lines, done.stderr

    assert run() == ([f"accepted 0 {RUN}"], "")
    assert api.runs[RUN]["conf"] == {"file_path": SCAN, "do_ptychocam": True}
    assert run() == ([f"already accepted 0 {RUN}"], "")
    lines, said = run("odd.cxi")
    assert lines == ["not submitted 2 "]
    assert "submit_scan: odd.cxi: not submitted. Is odd.cxi a scan?" in said
    assert "n_gpu must be from 1 to 4, not 9" in run(options="n_gpu=9")[1]
    config.write_text(config.read_text().replace(f"url = {api.url}", "url = http://127.0.0.1:1"))
    lines, said = run(OTHER, "limit=0.2")
    assert lines == [f"kept 3 {scan_run_id(OTHER)}"]
    assert "gave no usable answer in 0.2 s" in said
    assert "flush" in said
    config.write_text("")
    assert run()[0] == ["not submitted 2 "]


def test_the_line_in_the_document_works_as_it_is(api: AirflowApi, config: Path, tmp_path: Path) -> None:
    document = (SOURCE.parents[1] / "docs" / "how-to" / "send-scans.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    settings = tmp_path / "home" / ".config" / "cosmic" / "client.ini"
    settings.parent.mkdir(parents=True)
    config.rename(settings)
    source = source.replace("/opt/cosmic/submit_scan.py", str(PROGRAM))
    environment = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-W", "error", "-c", source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert api.runs[RUN]["conf"] == {"file_path": SCAN, "do_ptychocam": True, "period_illu_refine": 1}
