"""What runs an image in tests: podman-hpc itself over a stand-in for podman, and a stand-in for shifter.

As a program, the stand-in for podman: `containers.py BACKEND LOG run OPTION... IMAGE COMMAND...`. The backend
is `docker`, or a folder that an installation is in: the command runs on this machine, in the environment and
the working folder that the options give it. It knows no more options than are used, and refuses others.
"""

from __future__ import annotations

import csv
import getopt
import io
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CLI = REPOSITORY / ".venv-cli"
IN_IMAGE = "/opt/cosmic/"  # where the image has its scripts
PODMAN_HPC = ["root=", "runroot=", "storage-opt=", "cgroup-manager=", "hooks-dir=", "annotation="]
PODMAN_HPC += ["security-opt=", "log-level="]  # what podman-hpc itself adds
OURS = ["rm", "pull=", "group-add=", "network=", "ipc=", "workdir=", "mount=", "env="]
SHIFTER = """
echo "$*" >"$LOG"
[[ $1 == --image=* ]] || { echo "FAILED to find requested image." >&2; exit 1; }
shift
[[ $1 != --module=gpu ]] || shift
[[ $1 == /opt/cosmic/* ]] || exit 127
exec "$BACKEND/${1#/opt/cosmic/}" "${@:2}" # the environment and the working folder are the caller's
"""
PODMAN = f"""
[[ $1 != --help ]] || exit 0 # podman-hpc asks for it at every start
exec {sys.executable} {__file__} "$BACKEND" "$LOG" "$@"
"""


@dataclass
class Call:
    """What podman was asked for."""

    image: str
    command: list[str]
    folders: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    options: list[str] = field(default_factory=list)


def parse(arguments: list[str]) -> Call:
    """Read the arguments of `podman run` as podman does: options end at the image."""
    options, (image, *command) = getopt.getopt(arguments, "e:", PODMAN_HPC + OURS)
    call = Call(image, command)
    for option, value in options:
        if option == "--mount":
            parts = dict(part.split("=", 1) for part in next(csv.reader(io.StringIO(value, newline=""))))
            assert parts == {"type": "bind", "source": parts["source"], "target": parts["source"]}, parts
            call.folders.append(parts["source"])
        elif option in ("-e", "--env"):
            name, given, text = value.strip().partition("=")
            if given or name in os.environ:
                call.environment[name] = text if given else os.environ[name]
        elif option == "--workdir":
            call.workdir = value
        else:
            call.options.append(f"{option}={value}" if value else option)
    return call


def docker(call: Call) -> list[str]:
    """The same for Docker, whose user is not the one who starts it."""
    command = ["docker", "run", "--rm", "--pull=never", f"--user={os.getuid()}:{os.getgid()}"]
    command += ["--network=host", "--ipc=host", f"--workdir={call.workdir}"]
    for folder in call.folders:
        quoted = folder.replace('"', '""')
        command.append(f'--mount=type=bind,"source={quoted}","target={quoted}"')
    return [*command, *(f"--env={k}={v}" for k, v in call.environment.items()), call.image, *call.command]


def main() -> None:
    """The stand-in for podman."""
    backend, log, verb, *arguments = sys.argv[1:]
    assert verb == "run", verb
    call = parse(arguments)
    Path(log).write_text(json.dumps(asdict(call)))
    if backend == "docker":
        os.execvp("docker", docker(call))
    assert call.command[0].startswith(IN_IMAGE), call.command
    for folder in call.folders:
        if not Path(folder).is_dir():
            sys.exit(f"Error: statfs {folder}: no such file or directory")
    script = f"{backend}/{call.command[0].removeprefix(IN_IMAGE)}"
    os.chdir(call.workdir)
    os.execve(script, [script, *call.command[1:]], {"PATH": os.defpath, "HOME": "/tmp", **call.environment})


@dataclass(frozen=True)
class Runtimes:
    """podman-hpc and shifter in a folder for the PATH.

    :param folder: where they are made.
    :param backend: the folder of the installation that they take for the image, or `docker`.
    """

    folder: Path
    backend: str

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        looked_for = {"crun": "exit 1", "mksquashfs.static": "exit 1"}  # by podman-hpc
        for name, text in {"podman": PODMAN, "shifter": SHIFTER, **looked_for}.items():
            path = self.folder / name
            path.write_text(f"#!/bin/bash\nBACKEND={self.backend!r} LOG={str(self.log)!r}\n{text}\n")
            path.chmod(0o755)
        for name in ("podman-hpc", "fuse-overlayfs-wrap"):
            program = CLI / "bin" / name
            assert program.exists(), (
                f"{program} is missing; `make test` installs it from requirements-cli.txt."
            )
            (self.folder / name).symlink_to(program)

    @property
    def log(self) -> Path:
        """What the last start was asked for."""
        return self.folder / "log"

    @property
    def environment(self) -> dict[str, str]:
        """What a job needs in its environment."""
        return {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "USER": "beamline",
            "SQUASH_DIR": str(self.folder / "squashed"),
            "PODMANHPC_MODULES_DIR": str(CLI / "etc" / "podman_hpc" / "modules.d"),
        }

    def call(self) -> Call:
        """The last start by podman."""
        return Call(**json.loads(self.log.read_text()))


if __name__ == "__main__":
    main()
