"""Where CXI keeps things."""

from __future__ import annotations

DATA = "entry_1/data_1"
SOURCE = "entry_1/instrument_1/source_1"
DETECTOR = "entry_1/instrument_1/detector_1"
GEOMETRY = "entry_1/sample_1/geometry_1"
