"""Prints the table at the end of the demonstration."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One line of the table."""

    name: str
    value: str


def rows_of_run(run: dict[str, Any], report: dict[str, Any] | None) -> list[Row]:
    """Rows about the run, its transfer and its reconstructions.

    :param run: the DAG run as the REST API gives it.
    :param report: the result of its last task; None when the run did not get there.
    """
    rows = [Row("Run", f"{run['dag_run_id']}: {run['state']}{_took(run)}")]
    if report is None:
        return rows
    transfer = report["transfer"]
    rows.append(Row("Transfer", _transfer(transfer)))
    for result in report["reconstructions"]:
        engine, quality = result["engine"], result["quality"]
        rows += [
            Row(f"{engine}: job", _job(result)),
            Row(f"{engine}: result", result["result"]),
            Row(f"{engine}: preview", result["preview"]),
            Row(f"{engine}: quality", _quality(quality)),
            *(Row(f"{engine}: warning", warning) for warning in result["warnings"]),
        ]
    return rows


def print_table(rows: list[Row]) -> None:
    """Print rows in two columns."""
    width = max(len(row.name) for row in rows)
    print()
    for row in rows:
        print(f"  {row.name:<{width}}  {row.value}")
    print(flush=True)


def _transfer(transfer: dict[str, Any]) -> str:
    text = f"Globus task {transfer['task_id']}: {transfer['bytes'] / 1e6:.2f} MB, {transfer['files']} file(s)"
    if transfer.get("rate"):
        text += f", {transfer['rate'] / 1e6:.2f} MB/s"
    return text


def _job(result: dict[str, Any]) -> str:
    text = f"Slurm job {result['job_id']}: COMPLETED"
    if result["queue_seconds"] is not None:
        text += f", queued {result['queue_seconds']:.0f} s"
    if result["run_seconds"] is not None:
        text += f", ran {result['run_seconds']:.0f} s"
    return text


def _quality(quality: dict[str, Any]) -> str:
    parts = []
    if quality["final_error"] is not None:
        parts.append(f"error {quality['final_error']:.4g} after {quality['iterations']} iterations")
    if quality["frames"] is not None:
        parts.append(f"{quality['frames']} frames")
    if quality["pixel_size_m"]:
        parts.append(f"pixel {quality['pixel_size_m'][0] * 1e9:.2f} nm")
    if quality["resolution_m"]:
        parts.append(f"resolution {quality['resolution_m'] * 1e9:.1f} nm")
    return ", ".join(parts)


def _took(run: dict[str, Any]) -> str:
    if not (run.get("start_date") and run.get("end_date")):
        return ""
    seconds = datetime.fromisoformat(run["end_date"]) - datetime.fromisoformat(run["start_date"])
    return f" in {seconds.total_seconds():.1f} s"
