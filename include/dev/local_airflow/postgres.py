"""Runs a temporary PostgreSQL server where one is installed: loopback, a password, a folder of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dev.local_airflow.stack import free_port

DEBIAN = Path("/usr/lib/postgresql")  # VERSION/bin, not on the PATH
NEEDED = ("initdb", "pg_ctl", "psql", "pg_dump")
USER = "airflow"


def programs() -> Path | None:
    """The folder of a server's programs, of Debian's newest or else on the PATH; None: not installed."""
    debian = sorted(DEBIAN.glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    on_path = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    return next((f for f in (*debian, *on_path) if all((f / name).exists() for name in NEEDED)), None)


class Postgres:
    """One server with one database, `airflow`.

    :param folder: its data; belongs to the user that the server runs as.
    :param owner: name of that user; None: the one who runs this program.
    """

    def __init__(self, bin_folder: Path, folder: Path, owner: str | None) -> None:
        self._bin = bin_folder
        self._folder = folder
        self._data = folder / "data"
        self._owner = owner
        self._password = secrets.token_urlsafe(16)
        self.port = free_port()
        self.address = f"postgresql+psycopg2://{USER}:{self._password}@127.0.0.1:{self.port}/airflow"

    def start(self) -> None:
        """Make the cluster, start the server and make the database."""
        password = self._folder / "password"
        password.write_text(self._password)
        if self._owner is not None:
            shutil.chown(password, self._owner)
        initdb = ["initdb", "-D", str(self._data), "-U", USER, "-A", "scram-sha-256", "-N"]
        self._run(*initdb, "--pwfile", str(password), "-E", "UTF8", "--locale", "C.UTF-8")
        # Safety against a power cut costs most of a migration's time, and nothing here outlives the server.
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", log, "-o", options, "start")
        self.query("CREATE DATABASE airflow", database="postgres")

    def stop(self) -> None:
        """Stop the server."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    @property
    def pid(self) -> int:
        """Process id of the server, whose children serve the connections."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def query(self, statement: str, *, database: str = "airflow") -> list[str]:
        """The rows of a statement's result, a line each, columns parted by `|`.

        :raises RuntimeError: it failed, with the server's output.
        """
        return self._client("psql", "-Atq", "-d", database, "-c", statement).splitlines()

    def schema(self) -> str:
        """The database's definition, without the random key that pg_dump puts into its output."""
        lines = self._client("pg_dump", "--schema-only", "-d", "airflow").splitlines()
        return "\n".join(line for line in lines if not line.startswith(("\\restrict", "\\unrestrict")))

    def _client(self, program: str, *arguments: str) -> str:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-w"]
        return self._run(program, *where, *arguments, PGPASSWORD=self._password)

    def _run(self, program: str, *arguments: str, **environment: str) -> str:
        log = self._folder / "output"  # a pipe would stay open as long as the server that pg_ctl starts
        with log.open("wb") as output:
            done = subprocess.run(  # noqa: S603 - the server's own programs, no shell
                [str(self._bin / program), *arguments],
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **environment},
                user=self._owner,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        text = log.read_text()
        if done.returncode:
            raise RuntimeError(f"{program} ended with {done.returncode}: {text}")
        return text


@contextlib.contextmanager
def running_postgres(bin_folder: Path) -> Iterator[Postgres]:
    """A server for the length of a `with` block; for root it runs as the user whom Debian's package makes."""
    owner = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="cosmic-postgres-"))
    try:
        if owner is not None:
            shutil.chown(folder, owner)
        server = Postgres(bin_folder, folder, owner)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
