"""Makes an installation's keys and passwords, once: `python -m deployment.keys`.

They are files in a volume of their own, readable by the user and the group that the services run as. They are
never in the image, the compose file, the environment or a log. What is there already is left alone: a Fernet
key that changes makes the connections in the database unreadable.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

KEYS = Path("/keys")
USERS = ("admin", "beamline")


def _password() -> str:
    return secrets.token_urlsafe(24)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


_MAKERS: dict[str, Callable[[], str]] = {
    "fernet_key": _fernet_key,
    "jwt_secret": lambda: secrets.token_urlsafe(48),
    "api_secret_key": lambda: secrets.token_urlsafe(32),
    "postgres_password": _password,
    "redis_password": _password,
    **{f"{user}_password": lambda: secrets.token_urlsafe(12) for user in USERS},
}


def make_keys(folder: Path = KEYS) -> list[str]:
    """Make what is missing in `folder`; returns the names of the files that were made."""
    made = [name for name, make in _MAKERS.items() if _write_once(folder / name, make())]
    postgres, redis = read_key("postgres_password", folder), read_key("redis_password", folder)
    addresses = {
        "sql_alchemy_conn": f"postgresql+psycopg2://airflow:{postgres}@postgres/airflow",
        # The driver is named: left open, SQLAlchemy 2.1 takes another one than Airflow.
        "result_backend": f"db+postgresql+psycopg2://airflow:{postgres}@postgres/airflow",
        "broker_url": f"redis://:{redis}@redis:6379/0",
    }
    return made + [name for name, address in addresses.items() if _write_current(folder / name, address)]


def read_key(name: str, folder: Path = KEYS) -> str:
    """The content of a key's file."""
    return (folder / name).read_text().strip()


def _write_once(path: Path, text: str) -> bool:
    """Write a file that does not exist yet, whole or not at all; False when it does."""
    if path.exists():
        return False
    with _whole(path, text) as new:
        try:
            os.link(new, path)  # fails when another got there first, unlike a rename
        except FileExistsError:
            return False
    return True


def _write_current(path: Path, text: str) -> bool:
    """Write a file that follows from others, whole or not at all; False when it is as it should be."""
    if path.exists() and path.read_text() == text:
        return False
    with _whole(path, text) as new:
        new.replace(path)
    return True


@contextlib.contextmanager
def _whole(path: Path, text: str) -> Iterator[Path]:
    """A complete file beside `path`, for the services' user and group only; what is left of it is removed."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o440)
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        new = make_keys()
    except OSError as error:
        sys.exit(
            f"The keys cannot be made or read: {error}. They belong to group 0 and to the user id "
            "(AIRFLOW_UID) that the services had when they were made."
        )
    print(f"made {', '.join(new)}" if new else "all keys are there already")
