"""Scans through a real Airflow while everything is killed, cut off and confused, and then the books.

`make chaos SCANS=200 FAULTS=1000 SEED=1`. Promised: no scan is lost, none is done twice, nothing is left
running, and every failure is told in the right class. The seed decides which scans there are, which faults
come and in which order; what a fault hits depends on the moment, as processes do not run in step.
"""
