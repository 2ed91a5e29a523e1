"""The result of a reconstruction: that it exists, how good it is, what it cost."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import math
import struct
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, TypedDict

from airflow.sdk import Asset, get_current_context, task

from cosmic import kept_results
from cosmic.beamline import beamline
from cosmic.dag_constants import SUPERFACILITY_CONN_ID, WARNINGS_KEY
from cosmic.parameters import Engine
from cosmic.scan_names import parse_path
from cosmic.scans import parse_scan_path
from cosmic.stack_start import start_when_done
from facilities.errors import FacilityError, NotFoundError, UserError
from facilities.superfacility.hook import SuperfacilityHook

log = logging.getLogger(__name__)

RESULT_SUFFIXES = (".cxi", ".h5", ".png", ".json")
RECONSTRUCTIONS = Asset("cosmic_reconstructions")
_PNG_START = b"\x89PNG\r\n\x1a\n"


class Quality(TypedDict):
    """Figures of a reconstruction, as its program wrote them (SI units)."""

    frames: int | None
    iterations: int | None
    final_error: float | None
    pixel_size_m: list[float] | None  # y, x
    object_shape: list[int] | None  # y, x
    resolution_m: float | None


class Facts(TypedDict):
    """What lists show of a result: the `extra` of its event of the asset `cosmic_reconstructions`."""

    scan: str  # as people call it, with all its energies and regions: NS_230216033
    file: str  # relative to the beamline's collection
    engine: str
    proposal: str | None
    sample: str | None
    energy_ev: float | None
    error: float | None
    resolution_m: float | None
    warnings: int


class Reconstruction(TypedDict):
    """The checked result of one engine."""

    engine: str
    result: str  # absolute path at NERSC, CXI
    preview: str  # absolute path at NERSC, PNG
    preview_size: list[int]  # width, height in pixels
    bytes: int  # of the result
    quality: Quality
    warnings: list[str]
    job_id: str
    queue_seconds: float | None
    run_seconds: float | None
    node_hours: float | None


@task(pool="nersc", multiple_outputs=False)
def collect(
    engine: Engine,
    machine: str,
    plan: Mapping[str, Any],
    job: Mapping[str, Any] | None,
    *,
    dag_run: Any = None,
    outlet_events: Any = None,
) -> Reconstruction:
    """Check that a finished job left what it should have, read its figures, and keep what pages show.

    :param plan: of the engine, as `check_scan` made it.
    :param job: the sensor's result; None when somebody has marked the sensor as success.
    :param dag_run: Airflow's, as `outlet_events`.
    :raises UserError: there is no finished job, or a file is missing, empty or of another type than its name.
    """
    if job is None:
        raise UserError(
            f"{engine}.wait was marked as success before its job had ended, which cancelled the job",
            next_step=f"clear {engine}.submit: the job is submitted again.",
        )
    output = plan["output"]
    with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID)) as hook:
        sizes = {suffix: _size(hook, machine, output + suffix, job) for suffix in (".cxi", ".h5")}
        figures = _figures(hook, machine, output + ".json", job)
        preview = _content(hook, machine, output + ".png", job)
        preview_size = check_png(preview, output + ".png")
        kept = {kept_results.FIGURES: json.dumps(figures).encode(), kept_results.PREVIEW: preview}
        kept |= _thumbnail(figures) | _pictures(hook, machine, output, figures)
    result = Reconstruction(
        engine=engine,
        result=output + ".cxi",
        preview=output + ".png",
        preview_size=preview_size,
        bytes=sizes[".cxi"],
        quality=Quality(
            frames=_number(figures, "frames"),
            iterations=_number(figures, "iterations"),
            final_error=_number(figures, "final_error"),
            pixel_size_m=figures.get("pixel_size_m"),
            object_shape=figures.get("object_shape"),
            resolution_m=_number(figures, "resolution_m"),
        ),
        warnings=[str(text)[:500] for text in figures.get("warnings") or []][:20],
        job_id=str(job["job_id"]),
        queue_seconds=job.get("queue_seconds"),
        run_seconds=job.get("run_seconds"),
        node_hours=job.get("node_hours"),
    )
    if dag_run is not None:
        kept_results.keep(dag_run, engine, kept)
        outlet_events[RECONSTRUCTIONS].extra = dict(_facts(dag_run.conf["file_path"], result, figures))
    for warning in result["warnings"]:
        log.warning("%s warns: %s", engine, warning)
    log.info("%s: %s", engine, describe(result))
    return result


@task(multiple_outputs=False, trigger_rule="none_failed_min_one_success")
def report(
    scan: str,
    engines: Sequence[Engine],
    transfer: Mapping[str, Any] | None,
    results: Sequence[Reconstruction | None],
) -> dict[str, Any]:
    """The result of a whole run, for people (`message`) and for programs.

    XCom `warnings`: how many warnings the results have; none when they have none.

    :raises UserError: something that was asked for is missing: somebody has marked its task.
    """
    done = [result for result in results if result is not None]
    missing = ["transfer"] if transfer is None else []
    missing += [engine for engine in engines if engine not in {result["engine"] for result in done}]
    if transfer is None or missing:
        raise UserError(
            f"{scan} has no result of: {', '.join(missing)}",
            next_step="clear the tasks that were marked as skipped or as success; they run again.",
        )
    message = f"{scan} is at NERSC ({transfer['bytes']} bytes moved by Globus task {transfer['task_id']}). "
    if done:
        message += " ".join(f"{result['engine']}: {describe(result)}." for result in done)
    else:
        message += "Transfer only: no reconstruction was asked for (do_ptychocam, do_cdtools)."
    log.info(message)
    warnings = sum(len(result["warnings"]) for result in done)
    if warnings:
        get_current_context()["ti"].xcom_push(WARNINGS_KEY, warnings)
    start_when_done(scan, [result["engine"] for result in done])
    return {"scan": scan, "message": message, "transfer": dict(transfer), "reconstructions": done}


def describe(result: Reconstruction) -> str:
    """One line about a reconstruction for a person."""
    quality = result["quality"]
    parts = [result["result"], f"{result['bytes'] / 1e6:.1f} MB"]
    if quality["final_error"] is not None:
        parts.append(f"error {quality['final_error']:.3g} after {quality['iterations']} iterations")
    if quality["pixel_size_m"]:
        parts.append(f"pixel {quality['pixel_size_m'][0] * 1e9:.2f} nm")
    if quality["resolution_m"]:
        parts.append(f"resolution {quality['resolution_m'] * 1e9:.1f} nm")
    if result["node_hours"] is not None:
        parts.append(f"{result['node_hours']:.4f} node-hours")
    if result["warnings"]:
        more = len(result["warnings"]) - 1
        parts.append(f"WARNING: {result['warnings'][0].rstrip('.')}{f' (and {more} more)' if more else ''}")
    return ", ".join(parts)


def _thumbnail(figures: Mapping[str, Any]) -> dict[str, bytes]:
    """The thumbnail in the figures; programs of an older release make none."""
    held = figures.get("thumbnail_png")
    if held is None:
        return {}
    try:
        content = base64.b64decode(held, validate=True)
        check_png(content, "thumbnail_png")
    except (TypeError, binascii.Error, ValueError, UserError) as error:
        log.warning("The figures' thumbnail cannot be used: %s", error)
        return {}
    return {kept_results.THUMBNAIL: content}


def _pictures(
    hook: SuperfacilityHook, machine: str, output: str, figures: Mapping[str, Any]
) -> dict[str, bytes]:
    """The viewer's pictures; programs of an older release make none."""
    found: dict[str, bytes] = {}
    for picture, name in kept_results.PICTURES.items() if "view" in figures else ():
        paths = [output + suffix for suffix in kept_results.view_suffixes(picture, figures["view"])]
        try:
            content = b"".join(hook.download(machine, path) for path in paths)
            kept_results.check_picture(content, figures["view"])
        except (FacilityError, ValueError) as error:
            log.warning("The full picture %s cannot be shown: %s", paths[0], error)
        else:
            found[name] = content
    return found


def _facts(file: str, result: Reconstruction, figures: Mapping[str, Any]) -> Facts:
    scan = parse_scan_path(file)
    part = parse_path(str(scan.relative), beamline().collections.source.scan_names)
    return Facts(
        scan=part.scan.name if part else scan.name,
        file=str(scan.relative),
        engine=result["engine"],
        proposal=_from_metadata(figures, "proposal", "proposal_id"),
        sample=_from_metadata(figures, "sample", "sample_name", "sample_description"),
        energy_ev=_number(figures, "energy_ev"),
        error=result["quality"]["final_error"],
        resolution_m=result["quality"]["resolution_m"],
        warnings=len(result["warnings"]),
    )


def _from_metadata(figures: Mapping[str, Any], *names: str) -> str | None:
    """The first of these that the scan's file says, at most 200 characters."""
    metadata = figures.get("metadata")
    values = [metadata.get(name) for name in names] if isinstance(metadata, Mapping) else []
    return next((str(value)[:200] for value in values if isinstance(value, (str, int)) and value), None)


def _size(hook: SuperfacilityHook, machine: str, path: str, job: Mapping[str, Any]) -> int:
    try:
        size = hook.stat(machine, path).size
    except NotFoundError as error:
        raise incomplete(path, "is missing", job) from error
    if size == 0:
        raise incomplete(path, "is empty", job)
    return size


def _content(hook: SuperfacilityHook, machine: str, path: str, job: Mapping[str, Any]) -> bytes:
    try:
        content = hook.download(machine, path)
    except NotFoundError as error:
        raise incomplete(path, "is missing", job) from error
    if not content:
        raise incomplete(path, "is empty", job)
    return content


def _figures(hook: SuperfacilityHook, machine: str, path: str, job: Mapping[str, Any]) -> dict[str, Any]:
    content = _content(hook, machine, path, job)
    try:
        figures = json.loads(content)
    except ValueError as error:
        raise incomplete(path, f"is not JSON ({error})", job) from error
    if not isinstance(figures, dict):
        raise incomplete(path, "is not a JSON object", job)
    return figures


def incomplete(path: str, how: str, job: Mapping[str, Any]) -> UserError:
    """The error for a result that a job which succeeded did not leave as it should.

    :param how: what is wrong with it, such as "is missing".
    :param job: as the sensor returned it.
    """
    return UserError(
        f"The job succeeded according to Slurm, but its result {path} {how}",
        remote_id=f"Slurm job {job['job_id']}",
        state=str(job.get("state", "COMPLETED")),
        next_step=(
            f"read the job's output ({job.get('stdout') or 'beside the result'}) and see that the programs "
            "at NERSC are this version's; when the cause is gone, start a new run, or clear the task that "
            "submits this job."
        ),
    )


def _number(figures: Mapping[str, Any], key: str) -> Any:
    value = figures.get(key)
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def check_png(content: bytes, path: str) -> list[int]:
    """Width and height in pixels, from a PNG image's header.

    :raises UserError: it is no PNG image.
    """
    if not content.startswith(_PNG_START) or content[12:16] != b"IHDR" or len(content) < 24:
        raise UserError(
            f"The preview {path} is not a PNG image",
            next_step="open the result file itself, and report this to the program's maintainers.",
        )
    return list(struct.unpack(">II", content[16:24]))
