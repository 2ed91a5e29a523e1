"""Runs the command line: `submit_scan.py`."""

from beamline_client.cli import run

run()
