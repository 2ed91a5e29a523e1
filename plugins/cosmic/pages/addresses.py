"""Addresses of the pages; `airflow` is the path under which Airflow is reached (`rendering.address`)."""

from __future__ import annotations

from urllib.parse import quote

from cosmic.dag_constants import TRANSFER_AUTO_RECON
from cosmic.pages.rendering import URL_PREFIX


def scans_page(airflow: str) -> str:
    """The list."""
    return f"{airflow}{URL_PREFIX}/scans"


def scan_page(airflow: str, scan: str) -> str:
    """A scan; its buttons' addresses begin with it."""
    return f"{scans_page(airflow)}/{quote(scan, safe='')}"


def run_page(airflow: str, run_id: str, dag_id: str = TRANSFER_AUTO_RECON) -> str:
    """A run alone, the Result tab; its pictures' addresses begin with it."""
    return f"{airflow}{URL_PREFIX}/dags/{dag_id}/runs/{quote(run_id, safe='')}"


def page_before(airflow: str, scan: str, run_id: str) -> str:
    """Where a button was pressed: on the page of a run when there is one, else on that of the scan."""
    return run_page(airflow, run_id) if run_id else scan_page(airflow, scan)
