"""Settings that the stand-in is started with, and the paths of its folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SCHEDULERS = ("auto", "slurm", "builtin")


@dataclass(frozen=True)
class Settings:
    """Settings of one stand-in facility.

    Everything that it keeps is under `root`; starting again on the same root carries on where it was.
    """

    root: Path
    host: str = "127.0.0.1"
    port: int = 0  # 0: a free one
    public_url: str | None = None  # base URL as clients see it, when it is not http://host:port
    control: bool = False  # serve /control: faults, accounting, switches
    scheduler: str = "auto"
    slots: int = 4  # jobs at once of the built-in runner
    bandwidth: float | None = None  # bytes per second of all transfers together; None: as fast as it goes
    active_transfers: int = 3  # transfers (and, apart, deletes) at once; the rest wait as "Queued"
    pending_limit: int = 100  # unfinished Globus tasks of one user

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.root.expanduser().resolve())
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler is {self.scheduler!r}; it must be one of {', '.join(SCHEDULERS)}.")
        for name in ("slots", "active_transfers", "pending_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise ValueError(f"bandwidth is {self.bandwidth}; it must be more than 0 bytes per second.")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; it must be from 0 (any free one) to 65535.")

    @property
    def credentials(self) -> Path:
        """Client ids, secrets and keys; only the owner may look inside."""
        return self.root / "credentials"

    @property
    def state(self) -> Path:
        """Databases and the lock."""
        return self.root / "state"

    @property
    def request_log(self) -> Path:
        """All requests, a line of JSON each, when `control` is on."""
        return self.state / "requests.jsonl"

    @property
    def beamline_collection(self) -> Path:
        """Root of the collection data7012."""
        return self.root / "collections" / "data7012"

    @property
    def nersc(self) -> Path:
        """NERSC's file system."""
        return self.root / "nersc"

    @property
    def nersc_collection(self) -> Path:
        """Root of the collection nersc7012."""
        return self.nersc / "gsharing" / "7012"

    @property
    def software(self) -> Path:
        """Where reconstruction scripts are installed at NERSC."""
        return self.nersc / "software"

    @property
    def description(self) -> Path:
        """The file from which clients read where everything is, written at start."""
        return self.root / "standin.json"

    def make_folders(self) -> None:
        """Make the folders of the layout that do not exist yet."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.credentials.mkdir(mode=0o700, exist_ok=True)
        self.credentials.chmod(0o700)
        self.state.mkdir(mode=0o700, exist_ok=True)
        self.state.chmod(0o700)
        for folder in (self.beamline_collection, self.nersc_collection, self.software):
            folder.mkdir(parents=True, exist_ok=True)
