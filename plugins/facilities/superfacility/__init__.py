"""NERSC's Superfacility API: submits Slurm jobs exactly once, waits for them, reports their ends."""
