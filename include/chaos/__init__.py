"""Scans through a real Airflow while everything is killed, cut off and confused, and then the books.

`make chaos SCANS=200 FAULTS=1000 SEED=1`. Promised: no scan is lost, none is done twice, nothing is left
running, and every failure is told in the right class.
"""
