"""Prints, from one run, ratios that can be compared between machines.

`throughput` and `old` (the flow that this replaces) run only when they are asked for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

from cosmic.dag_constants import TRANSFER_AUTO_RECON
from dev.benchmark import throughput
from dev.benchmark.against import AT_ONCE, BYTES, measure_against
from dev.benchmark.against import Cost as AgainstCost
from dev.benchmark.cost import SCANS, measure_cost
from dev.benchmark.imports import measure_imports
from dev.benchmark.latency import REPEATS, Scan, measure_run, measure_scan, middle
from dev.benchmark.load import Load
from dev.benchmark.old_flow import FLOW
from dev.benchmark.ours import running_ours
from dev.benchmark.posts import THREADS, Burst, measure_posts
from dev.benchmark.reconstructions import FRAME_BYTES, ITERATIONS, measure_reconstructions
from dev.benchmark.throughput import CONFIGURATIONS, measure_throughput
from dev.local_airflow.rest import Rest

BASELINES = ("baseline_empty", "baseline_deferring")


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing that it started goes on
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="cosmic-bench-"))
    try:
        for name in options.sections:
            place = folder / name
            place.mkdir()
            if name == "old":
                _print_against(place, options.old)
            else:
                SECTIONS[name](place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join((*SECTIONS, "old")))
    parser.add_argument("--old", type=Path, help="a checkout of als-computing/splash_flows")
    options = parser.parse_args()
    options.sections = options.sections or (["old"] if options.old else list(DEFAULT))
    if unknown := sorted(set(options.sections) - {*SECTIONS, "old"}):
        parser.error(f"There is no section {', '.join(unknown)}; there are {', '.join((*SECTIONS, 'old'))}.")
    if "old" in options.sections and not (options.old and (options.old / FLOW).exists()):
        where = f"{options.old} has no {FLOW}" if options.old else "OLD is missing"
        parser.error(f"{where}. Give OLD=path/to/a/checkout of als-computing/splash_flows.")
    if options.old:
        options.old = options.old.resolve()
    return options


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
    with running_ours(folder) as (airflow, facility):
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
    print(f"  its job, until sacct has it   {middle([scan.job for scan in scans])}")
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


def _print_cost(folder: Path) -> None:
    print(f"{SCANS} scans at once (CPU seconds of one: median and range)")

    def show(number: int, scans: Load, empty: Load) -> None:
        cpu = f"{scans.cpu_of_one:.2f} s in {scans.seconds:.0f} s"
        print(f"  round {number}                       {cpu}; empty {empty.cpu_of_one:.2f} s", flush=True)

    cost = measure_cost(folder, show)
    ours = [load.cpu_of_one for load in cost.scans]
    empty = [load.cpu_of_one * cost.steps / cost.empty_steps for load in cost.empty]
    print(f"  a scan                        {middle(ours)}, {cost.steps} steps; {_shares(cost.scans)}")
    ratio = median(ours) / median(empty)
    print(f"  as many steps of the empty    {middle(empty)}: we cost {ratio:.2f} times that")
    print("    DAG that defers")
    print(f"  seconds until all are done    {middle([load.seconds for load in cost.scans])}")
    print(f"  state mismatches              {cost.mismatches}; {cost.second_tries} second tries")
    print(f"Cores in use when no scan comes, with what is scheduled ({len(cost.idle)} windows)")
    for part in cost.idle[0]:
        print(f"  {part:<28}  {middle([window[part] for window in cost.idle], 4)}")
    print(f"  in all                        {middle([sum(window.values()) for window in cost.idle], 4)}")


def _print_throughput(folder: Path) -> None:
    print(f"Scans an hour on {os.cpu_count()} cores ({throughput.SCANS} at once, a job of 3 s)")
    two_workers = 0.0
    for number, configuration in enumerate(CONFIGURATIONS):
        if missing := configuration.missing():
            print(f"  {configuration.name:<28}  NOT MEASURED: {missing}")
            continue
        load = measure_throughput(configuration, folder / str(number))
        rate = load.runs / load.seconds * 3600
        more = f"; {rate / two_workers:.2f} times two workers" if two_workers else ""
        two_workers = rate if configuration.workers == 2 else 0.0
        print(f"  {configuration.name:<28}  {rate:.0f}{more}")
        print(f"    CPU of one                  {load.cpu_of_one:.2f} s: {_shares([load])}")


def _shares(loads: list[Load]) -> str:
    """How the CPU seconds are divided, the largest part first."""
    seconds: Counter[str] = Counter()
    for load in loads:
        for part, used in load.cpu.items():
            seconds[part] += round(1000 * used)
    return ", ".join(f"{part} {100 * used / seconds.total():.0f} %" for part, used in seconds.most_common())


_AGAINST = {
    "alone": "one scan alone, seconds",
    "at_once": f"{AT_ONCE} at once, seconds",
    "cpu": "CPU seconds of each of those",
}


def _print_against(folder: Path, checkout: Path) -> None:
    print(f"Copying {BYTES / 1e6:.0f} MB, ours and the old flow's (medians and ranges)")

    def show(name: str, cost: AgainstCost) -> None:
        print(f"  {name}")
        for field, what in _AGAINST.items():
            print(f"    {what:<28}  {middle(getattr(cost, field))}")
        sent = AT_ONCE * len(cost.at_once)
        print(f"    runs that did not end         {cost.unended} of {sent}", flush=True)

    measured = measure_against(checkout, folder, show)
    print(f"    503 from its server           {measured.refused}")
    print("  cores when nothing happens")
    idle: list[float] = []
    for name, windows in (
        ("ours", measured.ours_idle),
        ("Airflow as it comes", measured.bare_idle),
        ("the old flow", measured.old_idle),
    ):
        parts = ", ".join(f"{part} {median([window[part] for window in windows]):.4f}" for part in windows[0])
        in_all = [sum(window.values()) for window in windows]
        print(f"    {name:<28}  {middle(in_all, 4)}: {parts}")
        idle.append(median(in_all))
    print("  over the old flow               ours, the empty DAG")
    for field, what in _AGAINST.items():
        ours, empty, old = (median(getattr(cost, field)) for cost in measured[:3])
        print(f"    {what:<28}  {ours / old:.2f} times, {empty / old:.2f} times")
    ours, bare, old = idle
    as_it_comes = f"Airflow as it comes {bare / old:.2f} times"
    print(f"    cores when nothing happens    {ours / old:.2f} times, {as_it_comes}")


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


SECTIONS = {
    "imports": _print_imports,
    "latency": _print_latency,
    "cost": _print_cost,
    "throughput": _print_throughput,
    "reconstructions": _print_reconstructions,
}
DEFAULT = tuple(name for name in SECTIONS if name != "throughput")

if __name__ == "__main__":
    main()
