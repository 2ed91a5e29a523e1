"""One call for another program, such as the beamline's processing program, that has written a scan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, List, Optional

from beamline_client.client import Client
from beamline_client.config import load_settings
from beamline_client.errors import ClientError
from beamline_client.output import Outcome, describe, to_stderr


def submit(*files: str, config: Optional[str] = None, limit: float = 5.0, **parameters: Any) -> List[Outcome]:
    """Submit scans whose files are closed; what cannot be sent now is kept in the spool, to be sent later.

        submit("2023/02/230216/NS_230216033_ccdframes_0_0.cxi", do_ptychocam=True)

    It raises none of the client's errors, so that a program that takes data goes on: what went wrong is in
    the outcome (`exit_code` is not 0) and on stderr.

    :param files: paths below the collection's root, or below `data_root` on this computer.
    :param config: the settings' file, by default `~/.config/cosmic/client.ini`.
    :param limit: seconds until requests are left in the spool, for the next submit, flush, watch or listen.
    :param parameters: of the runs, by name, where they differ from [parameters] in the settings.
    """
    try:
        settings = load_settings(config)
        client = Client(replace(settings, timeout=min(settings.timeout, limit)), log=to_stderr)
        outcomes = client.submit(files, parameters, limit=limit)
    except ClientError as error:
        outcomes = [Outcome(file, "", "not submitted", error.exit_code, message=str(error)) for file in files]
    for outcome in outcomes:
        if outcome.exit_code:
            to_stderr(f"submit_scan: {describe(outcome)}")
    return outcomes
