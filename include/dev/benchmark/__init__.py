"""Measures what the orchestration itself costs: time, requests, imports. `make bench`."""
