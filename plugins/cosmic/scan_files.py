"""The files of a run's scan, `NS_<yymmdd><nnn>`: all its energies and regions, for the "Result" tab."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from airflow.models.dagrun import DagRun
from sqlalchemy import select
from sqlalchemy.orm import Session

from cosmic.scans import parse_scan_path
from facilities.errors import UserError

MAX_RUNS = 4000  # 200 energies in 4 regions, each run five times
MAX_LINKS = 20

_FILE = re.compile(r"(?P<scan>NS_[0-9]{9,})_[0-9]+_[0-9]+(_[A-Za-z0-9-]+)*")
_STATES = {"success": "done"}


@dataclass(frozen=True)
class ScanFiles:
    """A scan with more files than one.

    :param name: such as `NS_230216033`.
    :param states: by each file's newest run.
    :param runs_url: the list of its runs.
    """

    name: str
    states: Mapping[str, str]
    runs_url: str
    prefix: str

    @property
    def counts(self) -> str:
        """For people: `7 of 80 files done, 2 failed, 71 running`."""
        counts = Counter(_STATES.get(state, state) for state in self.states.values())
        words = [f"{counts.pop('done', 0)} of {len(self.states)} files done"]
        return ", ".join(words + [f"{count} {state}" for state, count in sorted(counts.items())])

    @property
    def failed(self) -> Sequence[tuple[str, str]]:
        """The first failed runs, each with the address of its page."""
        runs = [run_id for run_id, state in self.states.items() if state == "failed"]
        return [(run_id, f"{self.prefix}/runs/{quote(run_id, safe='')}") for run_id in runs[:MAX_LINKS]]


def scan_files(session: Session, run: DagRun, prefix: str) -> ScanFiles | None:
    """The files of the scan to which a run's file belongs, by the ids of their runs; None for a lone file.

    :param prefix: of Airflow's address, for links.
    """
    try:
        name = parse_scan_path((run.conf or {}).get("file_path")).name
    except UserError:
        return None
    match = _FILE.fullmatch(name)
    if match is None:
        return None
    scan = match["scan"]
    found = session.execute(
        select(DagRun.run_id, DagRun.state)
        .where(DagRun.dag_id == run.dag_id, DagRun.run_id.startswith(f"{scan}_", autoescape=True))
        .order_by(DagRun.id)
        .limit(MAX_RUNS)
    )
    newest = {run_id.partition("__")[0]: (run_id, str(state)) for run_id, state in found}
    states = dict(newest[file] for file in sorted(newest, key=_energy_and_region) if _FILE.fullmatch(file))
    runs = f"{prefix}/dags/{run.dag_id}"
    return ScanFiles(scan, states, f"{runs}/runs?run_id_pattern={scan}_", runs) if len(states) > 1 else None


def scan_of_file(name: str) -> str:
    """Name of the scan to which a file belongs, by the file's short name; a lone file is its own scan.

    Example: `scan_of_file("NS_230216033_7_1") == "NS_230216033"`
    """
    match = _FILE.fullmatch(name)
    return match["scan"] if match else name


def _energy_and_region(name: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", name)]
