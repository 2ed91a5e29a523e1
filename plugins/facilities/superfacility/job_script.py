"""Builds Slurm job scripts: typed resources to #SBATCH lines, a template to the body, every value quoted.

A body template is Jinja in which everything that `{{ ... }}` prints is quoted for bash, so that an
argument arrives at the program unchanged whatever is in it; `| quote` says so explicitly and changes
nothing. A name without a value is an error, and so is None.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import jinja2

from facilities.errors import UserError
from facilities.ownership import Owner
from facilities.superfacility.claims import Claim, require_sh
from facilities.superfacility.slurm import SlurmState, seconds

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CONSTRAINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.&|,()\[\]*-]{0,127}")
_PATH = re.compile(r"[A-Za-z0-9_./%@+=:,-]{1,1000}")
_TIME = re.compile(r"(\d{1,3}-)?\d{1,3}:[0-5]\d:[0-5]\d")
_MEMORY = re.compile(r"\d{1,6}[KMGT]?")
JOB_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
"""Names that Slurm's own look-up finds again; others break `sacct -P` or `--name`."""

# Perlmutter's limits of a job's time by qos, in seconds; two days for the others.
_MAX_SECONDS = {"debug": 1800, "interactive": 4 * 3600}
_MAX_SECONDS_OTHERWISE = 2 * 86_400
_OPTIONS = {"time_limit": "time", "memory": "mem"}  # the others are called as here
_MAX_GPUS = 4  # of a node; with them comes its memory


@dataclass(frozen=True, kw_only=True)
class SlurmResources:
    """What a job asks Slurm for; each field is one #SBATCH directive.

    Example::

        SlurmResources(
            account="als_g", qos="regular", constraint="gpu", time_limit="01:00:00", gpus=1, requeue=True
        )

    :param account: project that is charged, such as als_g.
    :param constraint: gpu or cpu; Perlmutter refuses jobs without one.
    :param time_limit: [days-]hours:minutes:seconds.
    :param gpus: GPUs of the whole job.
    :param output: absolute path of the log; %j is the job id, %x the job name. Its folder must exist.
    :param error: the same for stderr; left out, stderr goes to `output`.
    :param chdir: working directory of the job.
    :param requeue: whether Slurm may start the job again after a node failure or preemption; None leaves it
        to the site.
    :raises UserError: a value that cannot be right; its text never reaches a script.
    """

    account: str
    qos: str
    constraint: str
    time_limit: str
    nodes: int = 1
    gpus: int | None = None
    cpus_per_task: int | None = None
    memory: str | None = None
    output: str | None = None
    error: str | None = None
    chdir: str | None = None
    reservation: str | None = None
    licenses: str | None = None
    requeue: bool | None = None

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if value is not None:
                _check(name, value)

    @classmethod
    def of(cls, values: object) -> SlurmResources:
        """Resources as they are, or of a mapping whose values may be text, as templates render them.

        :raises UserError: no mapping, an unknown or missing name, or a value that cannot be right.
        """
        if isinstance(values, SlurmResources):
            return values
        if not isinstance(values, Mapping):
            _refuse(
                f"The resources of the job are not a mapping: {str(values)[:200]!r}",
                "give SlurmResources or a mapping with its fields.",
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            _refuse(
                f"Unknown Slurm resources: {', '.join(unknown)}", f"known are {', '.join(sorted(known))}."
            )
        given = {name: _typed(name, value) for name, value in values.items() if value not in (None, "")}
        if missing := [name for name in ("account", "qos", "constraint", "time_limit") if name not in given]:
            _refuse(f"Missing Slurm resources: {', '.join(missing)}", "set them in resources.")
        return cls(**given)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values that `of` reads."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def with_more(self, state: SlurmState) -> SlurmResources | None:
        """Twice the time (after TIMEOUT) or memory, up to the queue's limit; None when that is reached.

        Where memory comes with GPUs, the CPUs that were asked for grow with them.
        """
        if state is SlurmState.TIMEOUT:
            now = seconds(self.time_limit) or 0
            more = min(2 * now, _MAX_SECONDS.get(self.qos, _MAX_SECONDS_OTHERWISE))
            limit = f"{more // 3600:02}:{more % 3600 // 60:02}:{more % 60:02}"
            return replace(self, time_limit=limit) if more > now else None
        if self.memory is not None:
            twice = re.sub(r"\d+", lambda size: str(2 * int(size[0])), self.memory)
            return replace(self, memory=twice) if _MEMORY.fullmatch(twice) else None
        if self.gpus is None or self.gpus >= _MAX_GPUS:
            return None
        more_gpus = min(2 * self.gpus, _MAX_GPUS)
        cpus = self.cpus_per_task and self.cpus_per_task * more_gpus // self.gpus
        return replace(self, gpus=more_gpus, cpus_per_task=cpus)

    def directives(self, job_name: str) -> list[str]:
        """The #SBATCH lines.

        :raises UserError: the name holds characters that Slurm's look-up by name does not survive.
        """
        if not JOB_NAME.fullmatch(job_name):
            _refuse(f"Not a safe job name: {job_name!r}", "use letters, digits, dot, dash and underscore.")
        lines = [f"#SBATCH --job-name={job_name}"]
        for name, value in self.to_mapping().items():
            option = _OPTIONS.get(name, name.replace("_", "-"))
            if name == "requeue":
                lines.append(f"#SBATCH --{'requeue' if value else 'no-requeue'}")
            else:
                lines.append(f"#SBATCH --{option}={value}")
        return lines


_INTEGERS = {"nodes": 4096, "gpus": 16384, "cpus_per_task": 1024}
_PATTERNS = {
    "constraint": _CONSTRAINT,
    "time_limit": _TIME,
    "memory": _MEMORY,
    "output": _PATH,
    "error": _PATH,
    "chdir": _PATH,
}


def _check(name: str, value: Any) -> None:
    if name in _INTEGERS:
        right = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _INTEGERS[name]
        rule = f"a whole number from 1 to {_INTEGERS[name]}"
    elif name == "requeue":
        right, rule = isinstance(value, bool), "true or false"
    else:
        pattern = _PATTERNS.get(name, _WORD)
        right, rule = (
            isinstance(value, str) and bool(pattern.fullmatch(value)),
            f"text like {pattern.pattern}",
        )
    if right and name in ("output", "error", "chdir"):
        right, rule = value.startswith("/") and ".." not in value.split("/"), "an absolute path without .."
    if not right:
        _refuse(f"Slurm resource {name} is {value!r}", f"give {rule}.")


def _typed(name: str, value: Any) -> Any:
    text = value.strip() if isinstance(value, str) else None
    if name in _INTEGERS and text is not None and text.isdecimal():
        return int(text)
    if name == "requeue" and text is not None and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return value if text is None else text


def quote(value: object) -> str:
    """Quote text for bash, on one line: the program gets exactly these characters.

    :raises UserError: a NUL character, or text that is not Unicode; no program can get those.
    """
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(f"An argument of the job is not text: {text[:80]!r}", "correct the parameter.")
    if "\0" in text:
        _refuse(f"An argument of the job holds a NUL character: {text[:80]!r}", "correct the parameter.")
    if not any(ord(char) < 32 or ord(char) == 127 for char in text):
        return shlex.quote(text)
    return "$'" + "".join(_escape(char) for char in text) + "'"


def _escape(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    return f"\\{ord(char):03o}" if ord(char) < 32 or ord(char) == 127 else char


class _Quoted(str):
    """Text that is quoted already."""


def _quoted(value: Any) -> _Quoted:
    if value is None or isinstance(value, Mapping):
        _refuse(
            f"A value printed in the job script is {value!r}", "give it a value, or leave it out with if."
        )
    if isinstance(value, _Quoted):
        return value
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return _Quoted(" ".join(_quoted(item) for item in value))
    return _Quoted(quote(value))


def render_template(template: str, context: Mapping[str, Any], *, name: str = "job script") -> str:
    """Fill in a body template.

    :param name: what the template is called in errors, such as its path.
    :raises UserError: wrong syntax, or a name without a value.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        finalize=_quoted,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - bash, not HTML: `finalize` quotes
    )
    environment.filters["quote"] = _quoted
    try:
        return environment.from_string(template).render(**context)
    except jinja2.UndefinedError as error:
        _refuse(f"{name}: {error}", "add it to template_context.")
    except jinja2.TemplateError as error:
        _refuse(f"{name}: {error}", "correct the template.")


def render_file(path: Path, context: Mapping[str, Any]) -> str:
    """Fill in a body template from a file.

    :raises UserError: the file cannot be read, or see `render_template`.
    """
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        _refuse(f"The job script template {path} cannot be read ({reason})", "check its path.")
    return render_template(template, context, name=f"Job script template {path.name}")


def job_script(
    resources: SlurmResources,
    job_name: str,
    body: str,
    *,
    owner: Owner | None = None,
    claim: Claim | None = None,
) -> str:
    """Put directives and body together; the only place where a job script is built.

    Directives come first: sbatch reads none after the first command. The body's own shebang is kept.

    :param owner: goes into the job's comment.
    :param claim: whose work it is: of several such jobs only one does anything, and none beside another of
        its name.
    :raises UserError: the body is empty, brings directives of its own, has DOS line ends, or is not for sh.
    """
    shebang, commands = check_body(body)
    directives = resources.directives(job_name)
    if owner:
        directives.append(f"#SBATCH --comment={owner.mark}")
    if claim:
        directives.append("#SBATCH --dependency=singleton")
        commands = f"{claim.preamble}\n{commands.strip(chr(10))}"
    return "\n".join([shebang, *directives, "", commands.strip("\n"), ""])


def check_body(body: str) -> tuple[str, str]:
    """The shebang and the commands of a body.

    :raises UserError: it is empty, brings directives of its own, has DOS line ends, or is not for sh.
    """
    first, _, rest = body.lstrip("\n").partition("\n")
    shebang, commands = (first, rest) if first.startswith("#!") else ("#!/bin/bash", body)
    if not any(line.strip() and not line.lstrip().startswith("#") for line in commands.splitlines()):
        _refuse("The job script has no command", "give a script or a template with one.")
    if re.search(r"^\s*#SBATCH", commands, re.MULTILINE):
        _refuse("The job script brings #SBATCH lines of its own", "give them as resources.")
    if "\r\n" in body:
        _refuse("The job script has DOS line ends", "save it with Unix line ends.")
    require_sh(shebang)
    return shebang, commands


def _refuse(what: str, next_step: str) -> NoReturn:
    raise UserError(what, next_step=next_step) from None
