"""Settings of the client, from its configuration file, the environment and options; and its credentials."""

from __future__ import annotations

import configparser
import math
import os
import re
import stat
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from beamline_client.errors import InputError, RefusedError
from beamline_client.parameters import FLAGS, NUMBER, Conf, parse_parameter

_KEYS = {
    "airflow": ("url", "user", "password_file", "token_file", "ca_file", "allow_http"),
    "client": ("spool", "data_root", "timeout", "any_name"),
}
_ENVIRONMENT = {
    "COSMIC_AIRFLOW_URL": "url",
    "COSMIC_AIRFLOW_USER": "user",
    "COSMIC_AIRFLOW_PASSWORD_FILE": "password_file",
    "COSMIC_AIRFLOW_TOKEN_FILE": "token_file",
    "COSMIC_SPOOL": "spool",
}
DEFAULT_CONFIG = "~/.config/cosmic/client.ini"


@dataclass(frozen=True)
class Settings:
    """Where Airflow is, who we are there, and how this computer is set up. `timeout` is in seconds."""

    url: str
    user: str = ""
    password_file: Optional[Path] = None
    token_file: Optional[Path] = None
    ca_file: Optional[Path] = None
    spool: Path = field(default_factory=lambda: Path("~/.local/share/cosmic/spool").expanduser())
    data_root: Optional[Path] = None
    timeout: float = 30.0
    any_name: bool = False
    allow_http: bool = False
    parameters: Conf = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_url(self.url, self.allow_http)


def check_url(url: str, allow_http: bool) -> None:
    """:raises InputError: not an http(s) address, or one that would show the credentials to others."""
    wrong = InputError(f"url must be the address of Airflow, as in https://airflow.example.org, not {url!r}.")
    try:
        parts = urllib.parse.urlsplit(url)
        bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError as error:
        raise wrong from error
    if bad or not re.fullmatch(r"[!-~]+", url):
        raise wrong
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError("url must have no user, password, query or fragment in it: use user, password_file.")
    local = re.fullmatch(r"localhost|127\.[\d.]+|::1", parts.hostname or "")
    if parts.scheme == "http" and not local and not allow_http:
        raise InputError(
            f"url is http://{parts.hostname}: the password would cross the network in the clear. Use https, "
            "or set allow_http = yes in [airflow] if that network is trusted."
        )


def read_config(path: Path) -> Tuple[Dict[str, str], Conf]:
    """Settings and parameters of an INI file, by name.

    :raises InputError: unreadable, or an unknown section or key.
    """
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",))
    try:
        parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise InputError(f"The settings in {path} cannot be read: {error}.") from error
    values: Dict[str, str] = {}
    parameters: Conf = {}
    for section in parser.sections():
        for key, text in parser.items(section):
            if section == "parameters":
                parameters[key] = parse_parameter(key, text)
            elif key in _KEYS.get(section, ()):
                values[key] = text
            else:
                hint = " Put the password in a file of its own: password_file." if key == "password" else ""
                raise InputError(f"{path}: there is no setting {key!r} in section [{section}].{hint}")
    return values, parameters


def load_settings(
    config: Optional[str] = None,
    overrides: Optional[Mapping[str, str]] = None,
    environ: Optional[Mapping[str, str]] = None,
) -> Settings:
    """Settings from the configuration file, the environment and `overrides`; the later ones win.

    :param config: path of the file; without it `~/.config/cosmic/client.ini`, if there is one.
    :raises InputError: a setting is missing or wrong.
    """
    environ = os.environ if environ is None else environ
    path = Path(config or DEFAULT_CONFIG).expanduser()
    values, parameters = read_config(path) if config or path.exists() else ({}, {})
    values.update({key: environ[name] for name, key in _ENVIRONMENT.items() if environ.get(name)})
    values.update(overrides or {})
    if "url" not in values:
        raise InputError(f"Where is Airflow? Set url in [airflow] of {path}, or COSMIC_AIRFLOW_URL.")
    typed: Dict[str, Any] = {"url": values["url"].rstrip("/"), "parameters": parameters}
    typed.update({key: values[key] for key in ("user",) if key in values})
    for key in ("password_file", "token_file", "ca_file", "spool", "data_root"):
        if values.get(key):
            typed[key] = Path(values[key]).expanduser()
    for key in ("any_name", "allow_http"):
        if key in values:
            typed[key] = FLAGS.get(values[key].lower())
            if typed[key] is None:
                raise InputError(f"{key} must be yes or no, not {values[key]!r}.")
    if "timeout" in values:
        typed["timeout"] = seconds(values["timeout"])
    return Settings(**typed)


def seconds(text: str) -> float:
    """:raises InputError: not a positive number of seconds."""
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not 0 < value < 1e9:
        raise InputError(f"{text!r} is not a positive number of seconds.")
    return value


def read_secret(path: Path) -> str:
    """The one line of a password or token file.

    :raises RefusedError: missing, or readable by others, or not one printable line.
    """
    try:
        descriptor = os.open(str(path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise RefusedError(f"{path} can be read by others. Close it: chmod 600 {path}")
            secret = file.read(100_000).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"The credentials in {path} cannot be read: {error}.") from error
    if not secret or not secret.isprintable():
        raise RefusedError(f"{path} must hold one line, the password or the token, and nothing else.")
    return secret
