"""A StatsD server that keeps what it hears, and a stand-in for statsd_exporter, which Debian does not have.

The stand-in knows of a mapping what ours uses: globs, `$1`, histograms with the default buckets.
"""

from __future__ import annotations

import math
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Series = tuple[str, tuple[tuple[str, str], ...]]  # name and labels


class StatsdServer:
    """Keeps every line that is sent to its UDP port."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            self.lines += self._socket.recv(65536).decode().splitlines()

    @property
    def environment(self) -> dict[str, str]:
        """Settings with which Airflow sends its metrics here."""
        settings = {"STATSD_ON": "True", "STATSD_HOST": "127.0.0.1", "STATSD_PORT": str(self.port)}
        return {f"AIRFLOW__METRICS__{name}": value for name, value in settings.items()}


class StatsdExporter:
    """Names metrics for Prometheus as statsd_exporter does.

    :param mapping: the mapping file, read.
    """

    def __init__(self, mapping: Mapping[str, Any]) -> None:
        self.mapping = mapping
        assert mapping["defaults"]["observer_type"] == "histogram"
        self.buckets = [*map(float, mapping["defaults"]["histogram_options"]["buckets"]), math.inf]
        self.rules = [(rule, self._pattern(rule["match"])) for rule in mapping["mappings"]]
        self.used: set[str] = set()

    @staticmethod
    def _pattern(glob: str) -> re.Pattern[str]:
        parts = ("([^.]*)" if part == "*" else re.escape(part) for part in glob.split("."))
        return re.compile(r"\.".join(parts))

    def _series(self, name: str) -> Series:
        for rule, pattern in self.rules:
            if (found := pattern.fullmatch(name)) is not None:
                self.used.add(rule["match"])
                wildcard = (found.groups() or ("",))[0]
                labels = {k: v.replace("$1", wildcard) for k, v in rule.get("labels", {}).items()}
                return str(rule["name"]), tuple(sorted(labels.items()))
        return re.sub(r"[^A-Za-z0-9_]", "_", name), ()

    def exposition(self, lines: list[str]) -> str:
        """What a scrape sees after these lines."""
        values: dict[Series, float] = defaultdict(float)
        kinds: dict[str, str] = {}
        for line in lines:
            name, _, rest = line.rpartition(":")
            value, kind, *_ = rest.split("|")
            series, labels = self._series(name)
            kinds[series] = {"c": "counter", "g": "gauge", "ms": "histogram"}[kind]
            if kind == "c":
                values[series, labels] += float(value)
            elif kind == "g":
                values[series, labels] = float(value) + (values[series, labels] if value[0] in "+-" else 0.0)
            else:
                seconds = float(value) / 1000
                values[f"{series}_sum", labels] += seconds
                values[f"{series}_count", labels] += 1
                for bucket in self.buckets:
                    le = ("le", "+Inf" if bucket == math.inf else f"{bucket:g}")
                    values[f"{series}_bucket", (*labels, le)] += seconds <= bucket
        types = [f"# TYPE {name} {kind}" for name, kind in sorted(kinds.items())]
        return "\n".join([*types, *(f"{_text(series)} {value}" for series, value in values.items()), ""])


def _text(series: Series) -> str:
    name, labels = series
    return name + ("{" + ",".join(f'{k}="{v}"' for k, v in labels) + "}" if labels else "")


@contextmanager
def served(exporter: StatsdExporter, server: StatsdServer) -> Iterator[int]:
    """Serve /metrics; gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exporter.exposition(list(server.lines)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            with suppress(ConnectionError):  # Prometheus has been stopped
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield int(http.server_address[1])
        finally:
            http.shutdown()
