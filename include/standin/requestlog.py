"""Logs the requests that the stand-in's services receive: the newest ones, and counts of all.

With a file it keeps them all, a line of JSON each, also over restarts.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass
class Entry:
    """One request.

    :param time: when it arrived; `ended`: when it was answered, or would have been.
    :param status: None until a reply is sent.
    :param fault: the faults that hit it.
    :param about: what it submits: job name or label, and the service's id of it.
    """

    time: float
    service: str
    method: str
    path: str
    query: str
    status: int | None = None
    fault: str | None = None
    about: str | None = None
    ended: float | None = None


class RequestLog:
    """Keeps the newest `limit` requests. Neither headers nor bodies are kept: they hold secrets."""

    def __init__(self, limit: int = 20_000, file: Path | None = None) -> None:
        self._file = file
        self._entries: deque[Entry] = deque(maxlen=limit)
        self._counts: Counter[str] = Counter()

    def add(self, entry: Entry) -> None:
        """Note a request as it arrives."""
        self._entries.append(entry)
        self._counts[entry.service] += 1

    def end(self, entry: Entry) -> None:
        """Note that a request has been dealt with."""
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(entry)) + "\n")

    def clear(self) -> None:
        """Forget all requests."""
        self._entries.clear()
        self._counts.clear()

    def to_json(self, service: str | None = None) -> dict[str, Any]:
        """The newest requests, oldest first, of one service or of all, and how many there were in all."""
        entries = [asdict(entry) for entry in self._entries if service in (None, entry.service)]
        return {"requests": entries, "counts": dict(self._counts)}
