"""Runs a complete Airflow on this machine, a process per component: for `make demo`, tests and benchmarks."""
