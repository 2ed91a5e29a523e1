"""The client is one file that runs on Python 3.8 with nothing installed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from beamline_computer import submit_scan
from beamline_computer.submit_scan import scan_run_id
from support.airflow_api import AirflowApi
from support.needs import python_3_8

SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
OTHER = "2023/02/230216/NS_230216034_ccdframes_0_0.cxi"
RUN = scan_run_id(SCAN)
SOURCE = Path(submit_scan.__file__)


FORBIDDEN_BEFORE_3_9 = {
    "removeprefix", "removesuffix", "pairwise", "zip_longest_strict", "cache", "is_relative_to", "with_stem",
    "readlink", "randbytes", "lcm", "nextafter", "to_thread", "aclosing", "batched", "walk", "UTC",
}  # fmt: skip


def test_the_source_is_python_3_8_and_standard_library_only() -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 8))
    imported = {
        name.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    imported |= {
        str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert imported <= set(sys.stdlib_module_names)
    assert not imported & {"tomllib", "zoneinfo", "graphlib"}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert attributes & FORBIDDEN_BEFORE_3_9 <= {"walk"}  # os.walk; Path.walk is 3.12
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.withitem) and _parenthesised(node)]
    assert not [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in ("strict", "slots", "kw_only")
    ]
    _no_new_typing_at_run_time(tree)


def _parenthesised(node: ast.withitem) -> bool:
    return isinstance(node.context_expr, ast.Tuple)


def _no_new_typing_at_run_time(tree: ast.Module) -> None:
    """Outside annotations, no `list[int]` and no `X | Y` of types: both fail on 3.8 when they run."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for inner in ast.walk(node.value):
                if isinstance(inner, ast.Subscript) and isinstance(inner.value, ast.Name):
                    assert inner.value.id[0].isupper(), ast.unparse(inner)
                assert not (isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.BitOr)), ast.unparse(
                    inner
                )


OLDEST = pytest.param("3.8", marks=pytest.mark.needs("python3.8"))


@pytest.mark.parametrize("python", [sys.executable, OLDEST])
def test_the_file_alone_runs_anywhere(api: AirflowApi, config: Path, tmp_path: Path, python: str) -> None:
    interpreter = python_3_8() if python == "3.8" else python
    assert interpreter is not None
    copy = tmp_path / "submit_scan.py"
    shutil.copy(SOURCE, copy)
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
    assert run("cancel", SCAN).returncode == 0
    assert len(api.created) == 2
