"""Names of scans as a person gives them: checked, with a reason when they are wrong."""

from __future__ import annotations

import re
from typing import Optional

from beamline_client.errors import InputError
from beamline_client.parameters import FILE_PATH
from beamline_client.scan_names import USUAL_NAMES, is_named, parse_file

EXAMPLE = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
_RUN_ID = re.compile(r"[A-Za-z0-9_.~:+-]+")


def normalize_path(path: str) -> str:
    """The scan's path below the collection's root, without the leading `/`: the DAG's own rule.

    :raises InputError: not a relative path of safe characters that ends in `.cxi`.
    """
    if len(path) > FILE_PATH.max_length:
        raise InputError(f"The path {path[:60]!r}... is longer than {FILE_PATH.max_length} characters.")
    if not re.search(FILE_PATH.pattern, path):
        raise InputError(
            f"The path {path!r} cannot be a scan: it must end in .cxi, have only letters, digits, '.', '_', "
            f"'-' between single slashes, no part that starts with '.', '_' or '-', and no result's name "
            f"(..._ptychocam.cxi), as in {EXAMPLE}."
        )
    return path.lstrip("/")


def unusual_name(path: str) -> Optional[str]:
    """Why a normalized path is not named as the beamline names its scans, or None when it is."""
    if is_named(path, USUAL_NAMES):
        return None
    folder, _, name = path.rpartition("/")
    file = parse_file(name[: -len(".cxi")])
    if file and file.scan.folder != folder:
        return f"the folder of its day is {file.scan.folder}, and not {folder or 'the root'}"
    return f"it is not named like {EXAMPLE}"


def is_run_id(text: str) -> bool:
    """Whether Airflow could have a run with this id."""
    return _RUN_ID.fullmatch(text) is not None and ".." not in text and text != "."
