"""Keeps what pages show of a result, pictures and figures, so that they stand when NERSC does not answer.

Where is the setting `[cosmic] kept_results`: a folder, or whatever else Airflow's ObjectStoragePath takes,
such as `s3://aws_default@bucket/cosmic`; all workers and API servers must reach it. By default it is
`kept_results` in AIRFLOW_HOME. After `[cosmic] kept_results_days` they are removed. Below are a folder a day,
one a run and one an engine: `2023-02-16/NS_230216033_0_0.1a2b3c4d/ptychocam/preview.png`.

That something cannot be kept or read is a warning in the log and fails nothing: the result is at NERSC.
"""

from __future__ import annotations

import hashlib
import logging
import re
import uuid
import zlib
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.configuration import AIRFLOW_HOME, conf
from airflow.sdk import ObjectStoragePath

from cosmic.parameters import ENGINES
from cosmic.plan import Run

log = logging.getLogger(__name__)

FIGURES, PREVIEW, THUMBNAIL = "figures.json", "preview.png", "thumbnail.png"
PICTURES = {"amplitude": "amplitude.gz", "phase": "phase.gz"}
"""The viewer's files, by what they show: `view_suffixes` says how they are called at NERSC."""

NAMES = frozenset({FIGURES, PREVIEW, THUMBNAIL, *PICTURES.values()})
DAYS = 90
_MAX_PIXELS, _MAX_PIECES = 100_000_000, 4
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_+~-]")


def root() -> ObjectStoragePath:
    """The folder of all that is kept."""
    given = conf.get("cosmic", "kept_results", fallback="")
    return ObjectStoragePath(given or str(Path(AIRFLOW_HOME) / "kept_results"))


def folder(run: Run, engine: str) -> ObjectStoragePath:
    """The folder of one reconstruction; no other run has the same.

    :raises ValueError: there is no such engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"there is no engine {engine!r}")
    readable = _NOT_IN_A_NAME.sub("_", run.run_id)[:150]
    identity = hashlib.sha256(run.run_id.encode()).hexdigest()[:8]
    return root() / f"{run.run_after.astimezone(UTC):%Y-%m-%d}" / f"{readable}.{identity}" / engine


def keep(run: Run, engine: str, files: Mapping[str, bytes]) -> bool:
    """Keep files of a reconstruction; False, and a warning in the log, when that was not possible.

    :param files: content by name, one of `NAMES`; the figures come last, so that they stand for the others.
    """
    try:
        place = folder(run, engine)
        place.mkdir(parents=True, exist_ok=True)
        for name in sorted(files, key=lambda name: name == FIGURES):
            _write(place / name, files[name])
    except Exception as error:  # noqa: BLE001 - whatever the storage's client raises
        log.warning("The pictures of %s of %s are not kept for the pages: %r", engine, run.run_id, error)
        return False
    return True


def read(run: Run, engine: str, name: str) -> bytes | None:
    """A file of a reconstruction; None when it is not kept, or not to be had.

    :param name: one of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"nothing is kept as {name!r}")
    try:
        content: bytes = (folder(run, engine) / name).read_bytes()
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever the storage's client raises
        log.warning("%s of %s of %s, which may be kept, cannot be read: %r", name, engine, run.run_id, error)
        return None
    return content


def remove_old(now: datetime | None = None) -> list[str]:
    """Remove what was kept longer ago than `[cosmic] kept_results_days`; the days that were removed."""
    days = conf.getint("cosmic", "kept_results_days", fallback=DAYS)
    last = (now or datetime.now(UTC)) - timedelta(days=days)
    try:
        base = root()
        old = [path for path in base.iterdir() if _is_old(path, last)] if base.exists() else []
        for path in old:
            path.rmdir(recursive=True)
    except Exception as error:  # noqa: BLE001 - whatever the storage's client raises
        log.warning("Kept pictures that are older than %d days could not be removed: %r", days, error)
        return []
    names = sorted(path.name for path in old)
    if names:
        log.info("Removed the kept pictures of %s.", ", ".join(names))
    return names


def view_suffixes(picture: str, view: Any) -> list[str]:
    """What a picture's files end in at NERSC, after the prefix of the run's results: all of its pieces.

    :param view: `view` of the figures.
    """
    about = view.get(picture) if isinstance(view, Mapping) else None
    pieces = about.get("pieces") if isinstance(about, Mapping) else None
    number = pieces if isinstance(pieces, int) and 1 <= pieces <= _MAX_PIECES else 1
    return [f"_view_{picture}{f'_{n}' if n > 1 else ''}.gz" for n in range(1, number + 1)]


def check_picture(content: bytes, view: Any) -> None:
    """Check that a viewer's file has a pixel's two bytes for each that its figures name, and no more.

    :param view: `view` of the figures.
    :raises ValueError: it has not.
    """
    shape = view.get("shape") if isinstance(view, Mapping) else None
    if not (
        isinstance(shape, list)
        and len(shape) == 2
        and all(isinstance(n, int) and n > 0 for n in shape)
        and shape[0] * shape[1] <= _MAX_PIXELS
    ):
        raise ValueError("its figures give it no size")
    expected = 2 * shape[0] * shape[1]
    try:
        unpacker = zlib.decompressobj(wbits=31)
        length = len(unpacker.decompress(content, expected + 1))
    except zlib.error as error:
        raise ValueError(f"it is not gzip ({error})") from error
    if length != expected or not unpacker.eof:
        raise ValueError(f"it does not have the {shape[0]} x {shape[1]} pixels that its figures name")


def _write(path: ObjectStoragePath, content: bytes) -> None:
    """Whole or not at all, as object stores do by themselves."""
    if path.protocol not in ("", "file"):
        path.write_bytes(content)
        return
    temporary = Path(path.path).with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path.path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_old(path: ObjectStoragePath, last: datetime) -> bool:
    """Whether this is a day's folder in which nothing was written lately; other names are left alone.

    A run may have a date that is long past, or be repeated: the folder's name alone does not say.
    """
    try:
        if date.fromisoformat(path.name) >= last.date():
            return False
    except ValueError:
        return False
    return all(file.stat().st_mtime < last.timestamp() for file in path.rglob("*") if file.is_file())
