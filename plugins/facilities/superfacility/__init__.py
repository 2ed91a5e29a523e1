"""NERSC's Superfacility API: submit Slurm jobs exactly once, wait for them, judge them."""
