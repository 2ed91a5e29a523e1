"""Batch schedulers behind one interface: a built-in runner, and Slurm where it is installed."""
