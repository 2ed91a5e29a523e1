"""Developers' tools: a local Airflow, the demonstration, chaos runs, the benchmark."""
