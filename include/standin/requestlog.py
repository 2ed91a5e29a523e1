"""The log of requests that the facility's services received: the newest ones, and counts of all."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Entry:
    """One request; `status` is None until a reply is sent, `fault` names the faults that hit it."""

    time: float
    service: str
    method: str
    path: str
    query: str
    status: int | None = None
    fault: str | None = None


class RequestLog:
    """Keeps the newest `limit` requests. Neither headers nor bodies are kept: they hold secrets."""

    def __init__(self, limit: int = 20_000) -> None:
        self._entries: deque[Entry] = deque(maxlen=limit)
        self._counts: Counter[str] = Counter()

    def add(self, entry: Entry) -> None:
        """Note a request as it arrives."""
        self._entries.append(entry)
        self._counts[entry.service] += 1

    def clear(self) -> None:
        """Forget all requests."""
        self._entries.clear()
        self._counts.clear()

    def to_json(self, service: str | None = None) -> dict[str, Any]:
        """The newest requests, oldest first, of one service or of all, and how many there were in all."""
        entries = [asdict(entry) for entry in self._entries if service in (None, entry.service)]
        return {"requests": entries, "counts": dict(self._counts)}
