"""The files of a run's scan, `NS_<yymmdd><nnn>`: all its energies and regions, for the "Result" tab."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from cosmic.beamline import beamline
from cosmic.dag_constants import REPORT_TASK, TRANSFER_AUTO_RECON, WARNINGS_KEY
from cosmic.scan_names import FileOfScan, Scan, parse_path
from cosmic.scans import parse_whole_scan
from facilities.errors import UserError

MAX_RUNS = 4000  # 200 energies in 4 regions, each run five times
MAX_LINKS = 20

_STATES = {"success": "done"}


@dataclass(frozen=True)
class ScanFiles:
    """A scan with more files than one.

    :param name: such as `NS_230216033`.
    :param states: by each file's newest run.
    :param warned: the runs among them that are done with warnings.
    :param runs_url: the list of its runs.
    """

    name: str
    states: Mapping[str, str]
    warned: Sequence[str]
    runs_url: str
    prefix: str

    @property
    def counts(self) -> str:
        """For people: `7 of 80 files done, 1 of them with warnings, 2 failed, 71 running`."""
        counts = Counter(_STATES.get(state, state) for state in self.states.values())
        words = [f"{counts.pop('done', 0)} of {len(self.states)} files done"]
        words += [f"{len(self.warned)} of them with warnings"] if self.warned else []
        return ", ".join(words + [f"{count} {state}" for state, count in sorted(counts.items())])

    @property
    def links(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """The first runs that failed, and that have warnings, each with the address of its page."""
        runs = {
            "Failed": [run_id for run_id, state in self.states.items() if state == "failed"],
            "With warnings": self.warned,
        }
        return {
            word: [(run_id, f"{self.prefix}/runs/{quote(run_id, safe='')}") for run_id in ids[:MAX_LINKS]]
            for word, ids in runs.items()
            if ids
        }


def scan_files(session: Session, run: DagRun, prefix: str) -> ScanFiles | None:
    """The files of the scan to which a run's file belongs, or whose stack it makes; None for a lone file.

    Files are found by runs that are named after them.

    :param prefix: of Airflow's address, for links.
    """
    try:
        forms = beamline().collections.source.scan_names
    except UserError:  # its settings are wrong, which the failed task says
        forms = ()
    own = _file_of(run.conf, forms)
    scan = own.scan if own else _stacked(run.conf)
    if scan is None:
        return None
    found = session.execute(
        select(DagRun.run_id, DagRun.state, DagRun.conf)
        .where(DagRun.dag_id == TRANSFER_AUTO_RECON, DagRun.run_id.startswith(scan.name, autoescape=True))
        .order_by(DagRun.id.desc())
        .limit(MAX_RUNS)
    )
    newest: dict[FileOfScan, tuple[str, str]] = {}
    for run_id, state, conf in found:
        file = _file_of(conf, forms)
        if file is not None and file.scan == scan:
            newest.setdefault(file, (run_id, str(state)))
    if len(newest) < 2:
        return None
    states = dict(newest[file] for file in sorted(newest, key=_energy_and_region))
    runs = f"{prefix}/dags/{TRANSFER_AUTO_RECON}"
    pattern = f"{scan.name}_" if next(iter(newest)).is_general else scan.name
    warned = runs_with_warnings(session, scan.name)
    done = [run_id for run_id, state in states.items() if state == "success" and run_id in warned]
    return ScanFiles(scan.name, states, done, f"{runs}/runs?run_id_pattern={pattern}", runs)


def runs_with_warnings(session: Session, beginning: str = "") -> set[str]:
    """Ids, with this beginning, of the runs whose results have warnings."""
    return set(
        session.scalars(
            select(XComModel.run_id).where(
                XComModel.dag_id == TRANSFER_AUTO_RECON,
                XComModel.task_id == REPORT_TASK,
                XComModel.key == WARNINGS_KEY,
                XComModel.run_id.startswith(beginning, autoescape=True),
            )
        )
    )


def _energy_and_region(file: FileOfScan) -> tuple[int, int, str]:
    return file.energy, file.region or 0, file.suffix


def _stacked(conf: Any) -> Scan | None:
    text = conf.get("scan") if isinstance(conf, dict) else None
    try:
        return parse_whole_scan(text) if isinstance(text, str) else None
    except UserError:
        return None


def _file_of(conf: Any, forms: Sequence[str]) -> FileOfScan | None:
    path = conf.get("file_path") if isinstance(conf, dict) else None
    return parse_path(path.strip("/"), forms) if isinstance(path, str) else None
