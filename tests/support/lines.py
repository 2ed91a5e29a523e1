"""A task's log that keeps what is written to it."""

from __future__ import annotations

import logging


class Lines:
    """Keeps lines with their levels until they are drained."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def log(self, level: int, text: str, *args: object) -> None:
        self.lines.append((level, text % args if args else text))

    def info(self, text: str, *args: object) -> None:
        self.log(logging.INFO, text, *args)

    def warning(self, text: str, *args: object) -> None:
        self.log(logging.WARNING, text, *args)

    def drain(self) -> list[tuple[int, str]]:
        lines, self.lines = self.lines, []
        return lines
