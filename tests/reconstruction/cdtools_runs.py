"""Run by CDTools' own interpreter, which takes long to start: several runs of the program in one process.

usage: python cdtools_runs.py '[[{"COSMIC_OUTPUT": "...", ...}, ["SCAN.cxi", ...]], ...]'
"""

from __future__ import annotations

import json
import os
import sys

from reconstruction.cdtools_engine import parse, reconstruct

for environment, arguments in json.loads(sys.argv[1]):
    os.environ |= environment
    reconstruct(*parse(arguments))
