"""What a scan that cannot be reconstructed raises."""

from __future__ import annotations


class ScanError(Exception):
    """The file cannot be reconstructed: missing, not HDF5, not CXI, or its contents contradict themselves."""
