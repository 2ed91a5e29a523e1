"""Prints, from one run, ratios that can be compared between machines.

usage: python -m dev.benchmark [imports|latency|reconstructions ...]     # all of them
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

from cosmic.dag_constants import TRANSFER_AUTO_RECON
from deployment.standin_settings import standin_beamline, standin_seed
from dev.benchmark.bundles import BENCHMARK, DAGS, dag_bundles
from dev.benchmark.imports import measure_imports
from dev.benchmark.latency import REPEATS, Scan, install_engine, measure_run, measure_scan, middle
from dev.benchmark.posts import THREADS, Burst, measure_posts
from dev.benchmark.reconstructions import FRAME_BYTES, ITERATIONS, measure_reconstructions
from dev.local_airflow.rest import Rest
from dev.local_airflow.stack import LocalAirflow, running
from standin.testing import spawn

BASELINES = ("baseline_empty", "baseline_deferring")


def main() -> None:
    """Measure and print."""
    sections = {
        "imports": _print_imports,
        "latency": _print_latency,
        "reconstructions": _print_reconstructions,
    }
    chosen = sys.argv[1:] or list(sections)
    if unknown := sorted(set(chosen) - set(sections)):
        sys.exit(f"There is no section {', '.join(unknown)}; there are {', '.join(sections)}.")
    folder = Path(tempfile.mkdtemp(prefix="cosmic-bench-"))
    try:
        for name in chosen:
            sections[name](folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _print_imports(folder: Path) -> None:
    bare, ours = measure_imports(folder / "airflow")
    print("Import of all DAG files, over a bare `import airflow.sdk` (medians of fresh processes)")
    print(
        f"  time    {ours.seconds / bare.seconds:5.2f} times   ({bare.seconds:.2f} s -> {ours.seconds:.2f} s)"
    )
    print(
        f"  memory  {ours.memory / bare.memory:5.2f} times   ({bare.memory:.0f} MiB -> {ours.memory:.0f} MiB)"
    )


def _print_latency(folder: Path) -> None:
    with spawn(folder / "standin") as facility:
        install_engine(facility)
        beamline = standin_beamline(facility.description, folder / "beamline.yaml", folder / "scripts")
        settings = {
            "AIRFLOW__COSMIC__BEAMLINE_FILE": str(beamline),
            **dag_bundles(bundle=DAGS, baselines=BENCHMARK / "dags"),
        }
        airflow = LocalAirflow(folder / "airflow", extra=settings)
        with running(airflow, standin_seed(facility.description)):
            rest = Rest(airflow.url, "admin", airflow.passwords["admin"])
            for dag_id in (TRANSFER_AUTO_RECON, *BASELINES):
                rest.wait_for_dag(dag_id)
            measure_scan(rest, facility, 0)  # warm up
            scans: list[Scan] = []
            baselines: dict[str, list[float]] = {dag_id: [] for dag_id in BASELINES}
            for number in range(1, REPEATS + 1):  # in turn, so that a slow minute hits all
                scans.append(measure_scan(rest, facility, number))
                for dag_id in BASELINES:
                    baselines[dag_id].append(measure_run(rest, dag_id, f"bench_{number}"))
            burst = measure_posts(rest)
    _print_scans(scans, baselines)
    _print_burst(burst)


def _print_scans(scans: list[Scan], baselines: dict[str, list[float]]) -> None:
    own = [scan.own for scan in scans]
    print(f"One scan, from its post to success ({len(scans)} scans, each alone; seconds: median and range)")
    print(f"  in all                        {middle([scan.total for scan in scans])}")
    print(f"  its transfer                  {middle([scan.transfer for scan in scans])}")
    print(f"  its job, queue and run        {middle([scan.job for scan in scans])}")
    print(f"  the rest: what we cost        {middle(own)}")
    for dag_id, name in zip(BASELINES, ("empty DAG", "empty DAG that defers"), strict=True):
        seconds = baselines[dag_id]
        print(f"  {name:<28}  {middle(seconds)}: we cost {median(own) / median(seconds):.2f} times that")
    counts: Counter[str] = Counter()
    for scan in scans:
        counts += scan.requests
    print("Requests for one scan")
    for service, count in sorted(counts.items()):
        print(f"  {service:<28}  {count / len(scans):.1f}")


def _print_burst(burst: Burst) -> None:
    print(f"A burst of {burst.posts} posts, {THREADS} at a time")
    rate = f"{burst.accepted} in {burst.seconds:.1f} s: {burst.rate:.0f} a second"
    print(f"  accepted                      {rate}")
    print(f"  refused, runs                 {burst.refused}, {burst.runs}")


def _print_reconstructions(folder: Path) -> None:
    scan, measured = measure_reconstructions(folder)
    by_hand = measured["CDTools by hand"]
    print(
        f"Reconstructions of {scan.n_frames} frames, {FRAME_BYTES / 2**20:.0f} MiB, {ITERATIONS} iterations "
        "(medians; memory without that of the imports)"
    )
    for name, one in measured.items():
        ratio = one.seconds / by_hand.seconds
        seconds = f"{one.seconds:.3f} s an iteration, {ratio:.2f} times CDTools by hand"
        memory = f"{one.memory / 2**20:.0f} MiB, {one.memory / FRAME_BYTES:.1f} times the frames"
        picture = f"{one.picture.describe()}, correlation {one.picture.correlation:.3f}"
        print(f"  {name:<22} {seconds}; {memory}; {picture}")


if __name__ == "__main__":
    main()
