"""Takes one scan from a beamline to a reconstruction, all on this machine: `make demo`.

Starts the stand-in for Globus and NERSC and a whole Airflow, makes a scan (or takes yours), sends it with the
beamline's own client, follows the run and prints the result.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import yaml

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from cosmic.scan_names import scan_name
from deployment.standin_settings import standin_beamline, standin_seed
from dev.build_client import CLIENT
from dev.demo.compare import compare_with_truth
from dev.demo.orientation import find_orientation
from dev.demo.report import Row, print_table, rows_of_run
from dev.local_airflow.rest import Rest, RestError
from dev.local_airflow.settings import REPOSITORY
from dev.local_airflow.stack import LocalAirflow, LocalAirflowError, running
from standin.synthetic_scan import make_scan, scan_path
from standin.testing import SpawnedFacility, spawn

LEAST_FREE_BYTES = 2 * 1024**3
# Enough for the small scan, and what the beamline refines with; a user's own come after and win.
QUICK = {
    "ptychocam": ("n_iter=100", "period_illu_refine=1", "period_bg_refine=1", "use_illu_mask=true"),
    "cdtools": ("oversampling_factor=1",),
}
CDTOOLS_PYTHON = REPOSITORY / ".venv-cdtools" / "bin" / "python"


class DemoError(Exception):
    """The demonstration cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    engines: list[str]
    scan: Path | None
    port: int
    wait: bool
    folder: Path
    params: list[str]


def main() -> int:
    """Run the demonstration; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options = _options()
        _check_machine(options)
        _demonstrate(options)
    except (DemoError, LocalAirflowError) as error:
        print(f"\nThe demonstration stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    return 0


def _demonstrate(options: Options) -> None:
    with _facility(options) as facility:
        _say("The stand-in for Globus and NERSC runs", facility.base_url)
        file_path = _place_scan(options, facility)
        _say("The scan is at the beamline", str(facility.collection("data7012") / file_path))
        airflow = _airflow(options, facility)
        _say("Airflow starts (about 20 s)", airflow.url)
        with running(airflow, standin_seed(facility.description)):
            rest = Rest(airflow.url, "admin", airflow.passwords["admin"])
            rest.wait_for_dag(DAG_ID)
            run_id = _send(options, airflow, file_path)
            print_table(_results(rest, facility, airflow, run_id, file_path))
            if options.wait:
                print(
                    "Airflow and the stand-in stay up for you to look around. Ctrl-C ends both.", flush=True
                )
                _wait_for_interrupt(airflow)


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--engine", default="ptychocam", help="ptychocam, cdtools, ptychocam,cdtools or none")
    parser.add_argument("--scan", type=Path, help="a CXI file to use instead of a synthetic scan")
    parser.add_argument("--port", type=int, default=8080, help="port of Airflow's UI")
    parser.add_argument("--no-wait", action="store_true", help="end after the run")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / ".run" / "demo")
    parser.add_argument("--param", action="append", default=[], help="name=value, a parameter of the DAG")
    given = parser.parse_args()
    engines = [] if given.engine == "none" else given.engine.split(",")
    for engine in engines:
        if engine not in ("ptychocam", "cdtools"):
            raise DemoError(
                f"ENGINE is {engine!r}; it must be ptychocam, cdtools, ptychocam,cdtools or none."
            )
    return Options(engines, given.scan, given.port, not given.no_wait, given.folder, given.param)


def _check_machine(options: Options) -> None:
    if options.scan is not None and not options.scan.is_file():
        raise DemoError(f"SCAN={options.scan} is not a file.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", options.port))
        except OSError as error:
            raise DemoError(
                f"port {options.port} cannot be used ({error.strerror}). Choose another: make demo PORT=8090"
            ) from error
    options.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.folder).free
    if free < LEAST_FREE_BYTES:
        raise DemoError(
            f"only {free / 1e9:.1f} GB are free in {options.folder}; "
            f"{LEAST_FREE_BYTES / 1e9:.1f} GB are needed."
        )
    if "cdtools" in options.engines and not CDTOOLS_PYTHON.exists():
        raise DemoError("CDTools is not installed. Install it with: make cdtools")
    if shutil.which("bash") is None:
        raise DemoError("bash is needed to run batch scripts, and is not on the PATH.")


@contextlib.contextmanager
def _facility(options: Options) -> Iterator[SpawnedFacility]:
    with spawn(options.folder / "standin", control=False, slots=2) as facility:
        command = [
            str(REPOSITORY / "include" / "reconstruction" / "install"),
            str(facility.nersc / "software"),
            sys.executable,
        ]
        if CDTOOLS_PYTHON.exists():
            command += ["--cdtools-python", str(CDTOOLS_PYTHON)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own script
        if done.returncode:
            raise DemoError(f"the reconstruction programs could not be installed.\n{done.stderr}")
        yield facility


def _place_scan(options: Options, facility: SpawnedFacility) -> str:
    """Put a scan into the beamline's collection under today's next free number; returns its `file_path`."""
    collection = facility.collection("data7012")
    site = yaml.safe_load((REPOSITORY / "include" / "beamline.yaml").read_text())
    today = datetime.now(ZoneInfo(site["time_zone"])).date()
    number = next(n for n in range(1, 1000) if not (collection / scan_path(today, n)).exists())
    file_path = scan_path(today, number)
    target = collection / file_path
    target.parent.mkdir(parents=True, exist_ok=True)
    if options.scan is not None:
        shutil.copyfile(options.scan, target)
    else:
        make_scan(target, seed=number)
    return file_path


def _airflow(options: Options, facility: SpawnedFacility) -> LocalAirflow:
    home = options.folder / "airflow"
    beamline = standin_beamline(
        facility.description, options.folder / "beamline.yaml", options.folder / "tmp_job_scripts"
    )
    return LocalAirflow(home, port=options.port, extra={"AIRFLOW__COSMIC__BEAMLINE_FILE": str(beamline)})


def _send(options: Options, airflow: LocalAirflow, file_path: str) -> str:
    """Send the scan with the beamline's client and follow it to its end; returns the run's id."""
    settings = airflow.home / "client.ini"
    password = airflow.home / "beamline-password"
    password.touch(mode=0o600)
    password.write_text(airflow.passwords["beamline"])
    settings.write_text(
        f"[airflow]\nurl = {airflow.url}\nuser = beamline\npassword_file = {password}\n"
        f"[client]\nspool = {airflow.home / 'spool'}\n"
    )
    command = [sys.executable, str(CLIENT), "submit", file_path, "--config", str(settings), "--wait"]
    for engine in options.engines:
        command += ["--engine", engine]
        command += [word for param in QUICK[engine] for word in ("--param", param)]
    for param in options.params:
        command += ["--param", param]
    print(f"\n$ submit_scan.py submit {' '.join(command[3:4] + command[6:])}", flush=True)
    subprocess.run(command, check=False)  # noqa: S603 - our own client; the table shows how the run ended
    runs = Rest(airflow.url, "admin", airflow.passwords["admin"]).call(
        "GET", f"/api/v2/dags/{DAG_ID}/dagRuns?order_by=-run_after&limit=20"
    )["dag_runs"]
    mine = [run["dag_run_id"] for run in runs if run["conf"].get("file_path") == file_path]
    if not mine:
        raise DemoError("the client could not start the run; its message is above.")
    return str(mine[0])


def _results(
    rest: Rest, facility: SpawnedFacility, airflow: LocalAirflow, run_id: str, file_path: str
) -> list[Row]:
    run = rest.run(DAG_ID, run_id)
    try:
        report: dict[str, Any] | None = rest.xcom(DAG_ID, run_id, "report")
    except RestError:
        report = None
    rows = rows_of_run(run, report)
    truth = (facility.collection("data7012") / file_path).with_suffix("")
    truth = truth.with_name(truth.name + "_truth.h5")
    for reconstruction in (report or {}).get("reconstructions", []):
        if truth.exists():
            rows.append(
                Row(f"{reconstruction['engine']}: against the truth", _likeness(reconstruction, truth))
            )
    rows += [
        Row("The scan's page", f"{airflow.url}/cosmic/scans/{scan_name(Path(file_path).stem)}"),
        Row("The run in Airflow", f"{airflow.url}/dags/{DAG_ID}/runs/{run_id}"),
        Row("Login", f"admin / {airflow.passwords['admin']}   (beamline / {airflow.passwords['beamline']})"),
    ]
    if run["state"] != "success":
        print_table(rows)
        failed = [t for t, i in rest.task_instances(DAG_ID, run_id).items() if i["state"] == "failed"]
        logs = "\n".join(rest.log(DAG_ID, run_id, task).rsplit("\n", 15)[-1] for task in failed)
        raise DemoError(f"run {run_id} ended as {run['state']}; failed tasks: {', '.join(failed)}.\n{logs}")
    return rows


def _likeness(reconstruction: dict[str, Any], truth: Path) -> str:
    """How like the true object the result is, upright; and which way round it is, when that is another."""
    result = Path(reconstruction["result"])
    found = find_orientation(result, truth)
    if not found.upright:
        return f"the picture is {found.describe()} (correlation {found.correlation:.3f})"
    return f"upright, {compare_with_truth(result, truth).describe()}"


def _wait_for_interrupt(airflow: LocalAirflow) -> None:
    while True:
        airflow.check_alive()
        time.sleep(1)


def _say(what: str, where: str) -> None:
    print(f"{what}: {where}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
