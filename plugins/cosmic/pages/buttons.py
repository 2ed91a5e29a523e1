"""What pages about scans offer of buttons. Each is a module: stop, run_again, missing, notes, downloads.

A press is confirmed on a plain page with a form, so that it works without script, in Airflow's frame (where
no dialogs of the browser are allowed) and on a telephone. Nothing is done twice: a form carries the number of
the newest run that its reader could know, and later runs are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.utils.session import create_session
from fastapi import Request

from cosmic.pages.addresses import scan_page
from cosmic.pages.notes import MAX_NOTE, Note, fingerprint, note_of
from cosmic.pages.rendering import address, template_function
from cosmic.pages.scan_runs import runs_of_scan
from cosmic.pages.security import may


@dataclass(frozen=True)
class Buttons:
    """What a page about a scan, or about one run of it, offers its reader.

    :param base: address of the scan's page; the buttons' addresses begin with it.
    :param query: what limits them to one run.
    :param active: runs that may be stopped.
    :param was: of the note, to notice that somebody else has changed it meanwhile.
    """

    scan: str
    base: str
    query: str
    run_id: str
    may_start: bool
    may_change: bool
    active: int
    note: Note
    was: str
    max_note: int = MAX_NOTE


@template_function
def scan_buttons(request: Request, user: BaseUser, scan: str, run_id: str = "") -> Buttons | None:
    """The buttons for `scan_actions.html`; None when the scan has no run (any more).

    :param scan: its name.
    :param run_id: for a page about one run, its id.
    """
    with create_session(scoped=False) as session:
        runs = runs_of_scan(session, scan)
        if runs is None:
            return None
        note = note_of(session, runs)
    return Buttons(
        scan=scan,
        base=scan_page(address(request), scan),
        query=f"?run_id={quote(run_id, safe='')}" if run_id else "",
        run_id=run_id,
        may_start=may(user, "POST"),
        may_change=may(user, "PUT"),
        active=len(runs.active_of(run_id)),
        note=note,
        was=fingerprint(note.text),
    )
