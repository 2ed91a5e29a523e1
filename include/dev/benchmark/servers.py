"""Starts a server in a session of its own, for the length of a `with` block."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dev.local_airflow.stack import tail, wait_until

_STOP, START = 30.0, 600.0  # seconds that either may take


@contextlib.contextmanager
def spawned(
    command: Sequence[str],
    log: Path,
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    text: str = "",
) -> Iterator[subprocess.Popen[bytes]]:
    """A process.

    :param log: the file that gets its output.
    :param text: its standard input.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - a program that the benchmark needs, no shell
            command,
            env=environment,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with process.stdin as standard_input:  # type: ignore[union-attr] # PIPE was asked for
            standard_input.write(text.encode())
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_text(process: subprocess.Popen[bytes], log: Path, text: str) -> None:
    """Wait until a server has written a text to its log.

    :raises RuntimeError: it ended, or has not written it in time.
    """

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{log.stem} ended with code {process.returncode}.\n{tail(log)}")
        return text in log.read_text(errors="replace")

    if not wait_until(ready, START):
        raise RuntimeError(f"{log.stem} was not ready after {START:.0f} s.\n{tail(log)}")
