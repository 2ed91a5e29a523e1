"""Job scripts: directives from typed resources, arguments that arrive unchanged."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facilities.errors import UserError
from facilities.superfacility.job_script import (
    SlurmResources,
    job_script,
    quote,
    render_file,
    render_template,
)

REPOSITORY = Path(__file__).resolve().parents[3]
PLAIN: dict[str, Any] = {"account": "als_g", "qos": "regular", "constraint": "gpu", "time_limit": "04:00:00"}
GOLDEN = """\
#!/bin/bash
#SBATCH --job-name=NS_230216033-0123456789abcdef-g0
#SBATCH --account=als_g
#SBATCH --qos=regular
#SBATCH --constraint=gpu
#SBATCH --time=04:00:00
#SBATCH --nodes=1
#SBATCH --gpus=4
#SBATCH --output=/global/cfs/cdirs/als/7012/NS_230216033_ptychocam_%j.out
#SBATCH --no-requeue

set -euo pipefail
/software/ptychocam_reconstruction.sh -i 500 -M '/scans/2023/02/it'"'"'s $(here).cxi'
"""


def test_golden_script() -> None:
    resources = SlurmResources(
        **PLAIN,
        gpus=4,
        output="/global/cfs/cdirs/als/7012/NS_230216033_ptychocam_%j.out",
        requeue=False,
    )
    body = render_template(
        "set -euo pipefail\n{{ script }}{% for a in arguments %} {{ a | quote }}{% endfor %}",
        {
            "script": "/software/ptychocam_reconstruction.sh",
            "arguments": ["-i", 500, "-M", "/scans/2023/02/it's $(here).cxi"],
        },
    )
    assert job_script(resources, "NS_230216033-0123456789abcdef-g0", body) == GOLDEN


ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
NASTY = ["", " ", "\n", "\r\n", "'", '"', "$(touch x)", "`id`", "${HOME}", "-n", "\\", "*", "~", "!"]
NASTY += ["a\n#SBATCH --qos=premium", "é\u2028\x85", "\x7f\x1b[31m", "{{ x }}", "a;b|c&d>e", "%s"]


@settings(max_examples=60)
@given(st.lists(ANY_TEXT | st.sampled_from(NASTY), min_size=1, max_size=12), st.booleans())
def test_any_argument_arrives_unchanged_at_the_job(arguments: list[str], each: bool) -> None:
    words = "{% for a in arguments %} {{ a | quote }}{% endfor %}" if each else " {{ arguments }}"
    body = render_template("printf {{ pattern }}" + words, {"pattern": "%s\\0", "arguments": arguments})
    script = job_script(SlurmResources(**PLAIN), "test", body)
    assert "\r" not in script
    directives = [line for line in script.splitlines() if line.lstrip().startswith("#SBATCH")]
    assert len(directives) == 6
    ran = subprocess.run(["/bin/bash"], input=script.encode(), capture_output=True, check=True)
    assert ran.stdout.decode().split("\0")[:-1] == arguments


@pytest.mark.parametrize("argument", NASTY)
def test_quoting_keeps_to_one_line(argument: str) -> None:
    assert "\n" not in quote(argument)


@pytest.mark.parametrize("argument", ["a\0b", "\ud800"])
def test_what_no_program_can_get_is_refused(argument: str) -> None:
    with pytest.raises(UserError, match="An argument of the job"):
        quote(argument)


FIELDS = [
    "account",
    "qos",
    "constraint",
    "time_limit",
    "memory",
    "output",
    "error",
    "chdir",
    "reservation",
    "licenses",
]


@given(st.sampled_from(FIELDS), st.text(max_size=30) | st.sampled_from(NASTY))
def test_no_resource_brings_a_line_or_a_command_of_its_own(field: str, value: str) -> None:
    try:
        lines = SlurmResources(**{**PLAIN, field: value}).directives("test")
    except UserError:
        return
    assert all(len(line.splitlines()) == 1 and line.startswith("#SBATCH --") for line in lines)
    assert not set("".join(lines)) & set(" \n\r'\"$`;\\<>") - {" "}
    assert all(line.count(" ") == 1 for line in lines)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"gpus": 0}, "gpus"),
        ({"gpus": "many"}, "gpus"),
        ({"gpus": True}, "gpus"),
        ({"nodes": 1.5}, "nodes"),
        ({"time_limit": "4h"}, "time_limit"),
        ({"account": ""}, "Missing Slurm resources: account"),
        ({"qos": None}, "Missing Slurm resources: qos"),
        ({"output": "relative.out"}, "absolute path"),
        ({"output": "/a/../b.out"}, "absolute path"),
        ({"array": "1-4"}, "Unknown Slurm resources: array"),
        ({"requeue": "perhaps"}, "requeue"),
    ],
)
def test_resources_that_cannot_be_right_are_named(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SlurmResources.of({**PLAIN, **resources})


def test_resources_come_from_templates_as_text() -> None:
    resources = SlurmResources.of({**PLAIN, "gpus": " 4 ", "nodes": "2", "requeue": "True", "memory": ""})
    assert (resources.gpus, resources.nodes, resources.requeue, resources.memory) == (4, 2, True, None)


@pytest.mark.parametrize("name", ["a b", "a|b", "a\nb", "a'b", "", "é", "x" * 201])
def test_names_that_slurms_look_up_does_not_survive_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="Not a safe job name"):
        SlurmResources(**PLAIN).directives(name)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ missing }}", "'missing' is undefined"),
        ("{{ none }}", "is None"),
        ("{{ mapping }}", "is {'a': 1}"),
        ("{% if %}", "Job script template broken"),
    ],
)
def test_templates_say_what_is_wrong(tmp_path: Path, template: str, said: str) -> None:
    path = tmp_path / "broken.sh.j2"
    path.write_text(template)
    with pytest.raises(UserError, match=said.replace("broken", "broken.sh.j2").replace("{", r"\{")):
        render_file(path, {"none": None, "mapping": {"a": 1}})


def test_a_missing_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.sh\.j2 cannot be read"):
        render_file(tmp_path / "nowhere.sh.j2", {})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "no command"),
        ("#!/bin/bash\n# only a comment\n", "no command"),
        ("echo a\n  #SBATCH --qos=premium\n", "of its own"),
        ("echo a\r\necho b\r\n", "DOS line ends"),
    ],
)
def test_bodies_that_cannot_be_right_are_refused(body: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        job_script(SlurmResources(**PLAIN), "test", body)


def test_the_bodys_own_shebang_is_kept() -> None:
    lines = job_script(SlurmResources(**PLAIN), "test", "#!/bin/sh -e\necho a\n").splitlines()
    assert lines[0] == "#!/bin/sh -e"
    assert lines[-1] == "echo a"


@pytest.mark.parametrize("name", ["ptychocam", "cdtools"])
@pytest.mark.parametrize(
    ("settings", "told"),
    [({"positions": "sample", "defocus": "1.5e-05@700"}, "sample|1.5e-05@700"), ({}, "|")],
    ids=["now", "planned by an older version"],
)
def test_the_beamlines_templates_pass_any_file_name(
    name: str, settings: dict[str, str], told: str, tmp_path: Path
) -> None:
    program = tmp_path / "it's a program"
    program.write_text(
        '#!/bin/bash\nprintf "%s|" "$COSMIC_POSITIONS" "$COSMIC_DEFOCUS" "$COSMIC_OUTPUT" "$@"\n'
    )
    program.chmod(0o700)
    scan = "/scans/$(touch gone)/a 'b' \"c\".cxi"
    context = {"script": str(program), "arguments": ["-i", 500, scan], "output": scan + "_out", **settings}
    body = render_file(REPOSITORY / "include" / "job_scripts" / f"{name}.sh.j2", context)
    script = job_script(SlurmResources(**PLAIN), "test", body)
    ran = subprocess.run(
        ["/bin/bash"], input=script, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert ran.stdout == f"{told}|{scan}_out|-i|500|{scan}|"
    assert [path.name for path in tmp_path.iterdir()] == ["it's a program"]
