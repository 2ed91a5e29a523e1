"""Makes a virtual environment and installs into it, with uv or, where uv does not do it, with pip.

    python3.11 include/dev/install.py .venv -r requirements-dev.txt -c constraints.txt

The arguments are those of `pip install`. It runs on a Python without anything. uv chooses the same versions
as pip, in a tenth of the time. pip's settings, which uv does not read, become its own: both reach the same
registries.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

UV = "uv==0.13.8"
PIP = "pip==26.3"  # instead of the one that Python 3.11 brings, which takes three times as long

# Settings of pip, and what uv calls them.
NAMES = {
    "cert": ("SSL_CERT_FILE",),
    "client-cert": ("SSL_CLIENT_CERT",),
    "constraint": ("UV_CONSTRAINT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
    "extra-index-url": ("UV_INDEX",),
    "find-links": ("UV_FIND_LINKS",),
    "index-url": ("UV_DEFAULT_INDEX",),
    "proxy": ("HTTP_PROXY", "HTTPS_PROXY"),
    "retries": ("UV_HTTP_RETRIES",),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "trusted-host": ("UV_INSECURE_HOST",),
}
SEPARATORS = {"find-links": ","}  # pip separates by white space, and so does uv for the rest
# Settings of pip that change nothing of what is installed, by themselves.
WITHOUT_EFFECT = {
    "break-system-packages",
    "cache-dir",
    "compile",
    "config-file",
    "disable-pip-version-check",
    "no-cache-dir",
    "no-color",
    "no-compile",
    "no-input",
    "no-python-version-warning",
    "no-warn-script-location",
    "progress-bar",
    "quiet",
    "require-virtualenv",
    "root-user-action",
    "verbose",
}


def main() -> int:
    """Install; returns the exit code of what did it."""
    folder, *arguments = sys.argv[1:]
    bin_ = Path(folder) / "bin"
    if not all((bin_ / name).exists() for name in ("python", "pip")):  # pip is what comes last
        make_environment(folder)
    settings = pip_settings(bin_)
    if unknown := sorted(settings.keys() - NAMES.keys() - WITHOUT_EFFECT - {"no-index"}):
        why = f"uv is not used, since pip has settings that uv has not ({', '.join(unknown)})"
    elif not (bin_ / "uv").exists() and pip_install(bin_, "--only-binary", ":all:", UV):
        why = f"{UV} could not be installed"
    elif install_with_uv(bin_, arguments, settings) == 0:
        return 0
    else:
        why = f"{UV} failed"
        make_environment(folder)  # uv may have left half of a package
    print(f"{why}: pip installs instead, which takes some minutes longer.", flush=True)
    if pip_install(bin_, PIP):
        print(f"{PIP} could not be installed: the pip of Python goes on, and takes longer still.", flush=True)
    # Compiling takes half as long again. Python compiles what it imports, once.
    return pip_install(bin_, "--no-compile", *arguments)


def make_environment(folder: str) -> None:
    """A new, empty environment."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)  # noqa: S603 - ours


def pip_install(bin_: Path, *arguments: str) -> int:
    """Install with pip; its own program does not start where the checkout was moved."""
    return run(bin_ / "python", "-m", "pip", "install", "-q", *arguments)


def install_with_uv(bin_: Path, arguments: list[str], settings: dict[str, str]) -> int:
    """Install as pip would: the best version of all registries, the machine's certificates."""
    options = ["--index-strategy", "unsafe-best-match", "--system-certs", "--no-config"]
    if settings.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        options.append("--no-index")
    options += ["-q", "--python", str(bin_ / "python"), *arguments]
    return run(bin_ / "uv", "pip", "install", *options, **uv_settings(settings))


def pip_settings(bin_: Path) -> dict[str, str]:
    """What pip's files and environment variables set for an installation."""
    command = [str(bin_ / "python"), "-m", "pip", "config", "list"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - ours
    settings: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # later ones win
    for line in printed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        if section in settings:
            settings[section][name] = ast.literal_eval(value)
    return {name: value for part in settings.values() for name, value in part.items() if value}


def uv_settings(settings: dict[str, str]) -> dict[str, str]:
    """The environment variables that give pip's settings to uv."""
    return {
        variable: SEPARATORS.get(name, " ").join(value.split())
        for name, value in settings.items()
        for variable in NAMES.get(name, ())
    }


def run(program: Path, *arguments: str, **environment: str) -> int:
    """Run a program; returns its exit code, 127 when this machine cannot start it."""
    command = [str(program), *arguments]
    try:
        return subprocess.run(command, check=False, env={**os.environ, **environment}).returncode  # noqa: S603 - ours
    except OSError as error:
        print(error, file=sys.stderr)
        return 127


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:  # it has printed why
        sys.exit(error.returncode)
