"""What is installed at NERSC: the two reconstruction scripts and the programs that they start.

Needs NumPy, h5py and Pillow; the CDTools engine also needs torch and cdtools-py. Nothing in here
knows of Airflow or of how a job came to run.
"""

from __future__ import annotations

VERSION = "1.0.0"
