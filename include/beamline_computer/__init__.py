"""The client that a beamline computer runs: one file, `submit_scan.py`, standard library only."""
