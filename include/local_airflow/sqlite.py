"""What a local Airflow asks of SQLite."""

from __future__ import annotations

# Seconds that a writer waits for another. SQLite has one writer at a time, and Airflow has five processes
# that write: with Python's 5 s a busy machine answers posts with "500 Database error".
CONNECT_ARGS = {"timeout": 60}
