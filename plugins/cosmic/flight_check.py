"""The tasks of the flight check: both services accept our clients, and a file really gets across."""

from __future__ import annotations

import hashlib
import logging
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any

from airflow.sdk import get_current_context, task

from cosmic.beamline import beamline
from cosmic.dag_constants import FLIGHT_CHECK, GLOBUS_CONN_ID, SUPERFACILITY_CONN_ID
from cosmic.parameters import FLIGHT_CHECK as PARAMETERS
from cosmic.parameters import read_parameters
from cosmic.scans import parse_safe_path
from facilities.errors import CredentialsError, NotFoundError, UserError
from facilities.globus.hook import GlobusHook
from facilities.superfacility.hook import SuperfacilityHook

log = logging.getLogger(__name__)

_CONTENT = f"COSMIC flight check: this file is copied and compared by the DAG {FLIGHT_CHECK}.\n".encode()


@task(pool="globus")
def check_globus() -> str:
    """Make sure that Globus and both collections accept the client; returns its identity."""
    collections = beamline().collections
    with closing(GlobusHook(GLOBUS_CONN_ID)) as hook:
        hook.forget_token()
        hook.ping()
        log.info("Globus accepts %s.", hook.settings.identity)
        for collection in (collections.source, collections.destination):
            hook.look_into(str(collection.id), collection.path)
            log.info("It may look into %s on %s.", collection.path, collection.name)
        return hook.settings.identity


@task(pool="nersc")
def check_nersc(params: Any = None) -> float | None:
    """Make sure that NERSC accepts the client; returns the days until it expires, if known.

    :raises CredentialsError: it is refused, or expires in less than `min_days_left` days.
    """
    min_days_left = read_parameters(PARAMETERS, params)["min_days_left"]
    with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID)) as hook:
        hook.session.forget_token()
        user, left, client_id = hook.user, hook.days_left(), hook.session.client_id
    if left is None:
        log.warning(
            "NERSC accepts client %s (user %s); the date of its expiry is not known.", client_id, user
        )
        return None
    log.info("NERSC accepts client %s (user %s); it expires in %.1f days.", client_id, user, left)
    if left < min_days_left:
        raise CredentialsError(
            f"The Superfacility client expires in {left:.1f} days",
            remote_id=client_id,
            next_step=(
                "make a new one now: in Iris, under Profile, Superfacility API Clients, level Red; then put "
                "its id and key in place of the old ones, in the two files that connection "
                f"{SUPERFACILITY_CONN_ID} names. The old one works until it expires."
            ),
        )
    return left


@task(pool="nersc", multiple_outputs=True)
def prepare_file() -> dict[str, str]:
    """Make sure that the file to copy is there; returns what is copied where (one XCom per key)."""
    site = beamline()
    destination = site.collections.destination
    source = parse_safe_path(site.flight_check_file)
    run = get_current_context()["run_id"]
    # The same name again when the run's tasks are tried again, another one for every run.
    unique = hashlib.sha256(str(run).encode()).hexdigest()[:16]
    copy = source.relative.with_name(f"test_{unique}{source.relative.suffix}")
    with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID)) as hook:
        file = source.under(destination.file_system_path)
        try:
            hook.stat(site.job.machine, file)
        except NotFoundError:
            log.info("%s is not there yet: writing it.", file)
            with closing(GlobusHook(GLOBUS_CONN_ID)) as globus:
                folder = PurePosixPath(source.under(destination.path)).parent
                globus.make_folder(str(destination.id), str(folder))
            hook.upload(site.job.machine, file, _CONTENT)
    return {
        "collection": str(destination.id),
        "source_path": source.under(destination.path),
        "copy_path": str(PurePosixPath(destination.path) / copy),
        "source_file": source.under(destination.file_system_path),
        "copy_file": str(PurePosixPath(destination.file_system_path) / copy),
    }


@task(pool="nersc")
def compare(source_file: str, copy_file: str) -> int:
    """Read both files back through NERSC; returns their size in bytes.

    :raises UserError: they are not the same.
    """
    site = beamline()
    with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID)) as hook:
        source, copy = (hook.download(site.job.machine, path) for path in (source_file, copy_file))
    if source != copy:
        raise UserError(
            f"The copy differs from its source: {len(copy)} bytes instead of {len(source)}",
            remote_id=copy_file,
            next_step="run the check again; if it fails again, report the Globus task's id to Globus.",
        )
    log.info("%s arrived whole: %d bytes.", copy_file, len(copy))
    return len(copy)
