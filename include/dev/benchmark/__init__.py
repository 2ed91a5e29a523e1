"""Measures what the orchestration costs (time, requests, imports), and the reconstructions. `make bench`."""
