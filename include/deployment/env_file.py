"""Reads files of `NAME=value` lines, such as `.env` and `airflow.env`."""

from __future__ import annotations

from pathlib import Path

from dotenv.parser import parse_stream


class EnvFileError(Exception):
    """A line is not `NAME=value`; the message gives its number."""


def read_env_file(path: Path) -> dict[str, str]:
    """Read a file of settings.

    Quotes, escapes and comments are those of `.env` files: a value may be in single or double quotes, and
    outside them ` #` begins a comment. Nothing is substituted: `$` stands for itself.

    :raises EnvFileError: the number of a line that cannot be read, without its content, which may be secret.
    :raises OSError: the file cannot be read.
    """
    values = {}
    with path.open(encoding="utf-8") as file:
        for binding in parse_stream(file):
            # python-dotenv itself only logs such a line, and a setting would silently have its default.
            if binding.error or (binding.key is not None and binding.value is None):
                line = binding.original.line
                raise EnvFileError(
                    f"line {line} cannot be read; it must be NAME=value, with quotes in pairs."
                )
            if binding.key is not None:
                values[binding.key] = binding.value or ""
    return values
