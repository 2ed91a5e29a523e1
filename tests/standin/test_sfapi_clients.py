"""The contract: sfapi_client, sync and async, unmodified, by its own calls."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from authlib.integrations.base_client.errors import OAuthError
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sfapi_client import AsyncClient, Client, OutageStatusValue, SfApiError, StatusValue
from sfapi_client.compute import Machine
from sfapi_client.exceptions import ClientKeyError
from sfapi_client.jobs import JobCommand, JobState

from standin.testing import until
from support.nersc import Nersc, async_client, nersc_running, script, sync_client


@pytest.fixture(scope="module")
def nersc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nersc]:
    """One facility for the module."""
    with nersc_running(tmp_path_factory.mktemp("clients")) as made:
        yield made


@pytest.fixture(scope="module")
def client(nersc: Nersc) -> Iterator[Client]:
    """The sync client."""
    with sync_client(nersc) as made:
        yield made


@pytest.mark.both
def test_submit_and_complete(nersc: Nersc, client: Client) -> None:
    perlmutter = client.compute(Machine.perlmutter)
    job = perlmutter.submit_job(script("echo done", directives="-J contract"))
    job.complete(timeout=60)
    assert job.state == JobState.COMPLETED
    nersc.wait_for(job.jobid, "COMPLETED")  # now it has its name, too
    accounted = perlmutter.job(job.jobid)
    assert (accounted.state, accounted.jobname, accounted.exitcode) == (JobState.COMPLETED, "contract", "0:0")
    jobs = perlmutter.jobs(jobids=[job.jobid], command=JobCommand.sacct)
    assert [j.jobid for j in jobs] == [job.jobid]
    mine = perlmutter.jobs(user=nersc.described["user"], command=JobCommand.sacct)
    assert job.jobid in [j.jobid for j in mine]


@pytest.mark.both
def test_running_cancel_and_squeue(nersc: Nersc, client: Client) -> None:
    perlmutter = client.compute("perlmutter")
    job = perlmutter.submit_job(script("sleep 60", directives="-t 30 -J sleeper"))
    assert job.running(timeout=60) == JobState.RUNNING
    queued = perlmutter.job(job.jobid, JobCommand.squeue)
    assert (queued.name, queued.partition, queued.st) == ("sleeper", "gpu_ss11", "R")
    assert [j.jobid for j in perlmutter.jobs(user=nersc.described["user"], partition="gpu_ss11")] == [
        job.jobid
    ]
    job.cancel(wait=True)
    assert job.state == JobState.CANCELLED


@pytest.mark.both
def test_refused_submit_is_an_error_of_the_client(client: Client) -> None:
    perlmutter = client.compute(Machine.perlmutter)
    with pytest.raises(SfApiError, match="Invalid qos specification"):
        perlmutter.submit_job(script().replace("-q regular", "-q none"))
    with pytest.raises(SfApiError, match="No such file or directory"):
        perlmutter.submit_job("/no/such/script.sh")
    with pytest.raises(SfApiError, match="Job not found: 99999"):
        perlmutter.job(99999)


@pytest.mark.both
def test_submit_by_path_with_arguments(nersc: Nersc, client: Client) -> None:
    path = Path(nersc.described["home"]) / "by-path.sh"
    path.write_text(script('echo "[$1]"'))
    perlmutter = client.compute(Machine.perlmutter)
    job = perlmutter.submit_job(str(path), args=["two words"])
    job.complete(timeout=60)
    assert nersc.output(job.jobid) == "[two words]\n"


def test_files(nersc: Nersc, client: Client) -> None:
    perlmutter = client.compute(Machine.perlmutter)
    home = nersc.described["home"]
    content = b"\x89PNG\0\xff"
    file = io.BytesIO(content)
    file.name = "preview.png"
    (folder,) = perlmutter.ls(home, directory=True)
    assert folder.is_dir()
    uploaded = (folder / "preview.png").upload(file)
    assert uploaded.name == "preview.png"
    (found,) = perlmutter.ls(f"{home}/preview.png")
    assert (found.size, found.is_file(), found.name) == (6.0, True, "preview.png")
    assert found.download(binary=True).read() == content
    with (folder / "note.txt").open("w") as note:
        note.write("größer\n")
    with (folder / "note.txt").open("r") as note:
        assert note.read() == "größer\n"
    assert {"preview.png", "note.txt"} <= {path.name for path in perlmutter.ls(home)}
    with pytest.raises(SfApiError, match="No such file or directory"):
        perlmutter.ls(f"{home}/missing")
    with pytest.raises(IsADirectoryError):
        folder.download()


def test_commands(client: Client) -> None:
    perlmutter = client.compute(Machine.perlmutter)
    assert perlmutter.run("echo '$HOME'; not a shell") == "$HOME; not a shell\n"
    assert perlmutter.run(["bash", "-c", "'echo $0 $NERSC_HOST'"]) == "bash perlmutter\n"
    with pytest.raises(SfApiError, match="command not found"):
        perlmutter.run("no-such-program")
    task = perlmutter.run_task("bash -c 'exit 3'")
    until(lambda: task.update().result)
    assert (task.result.exit_code, task.result.status) == (3, "error")


def test_account(nersc: Nersc, client: Client) -> None:
    user = client.user()
    assert user.name == nersc.described["user"]
    assert [p.repo_name for p in user.projects()] == ["als", "als_g"]
    assert [r.iris_role for r in user.roles()] == ["user", "user"]
    (group,) = user.groups()
    assert [m.name for m in client.group(group.name).members] == [user.name]
    assert group.members[0].user().uid == user.uid
    (described,) = user.clients()
    assert described.clientId == nersc.described["client_id"]
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        client.user("nobody-else")
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        group.add("other")


def test_node_hours_are_those_of_the_jobs(nersc: Nersc, client: Client) -> None:
    job_id = nersc.submit(script("sleep 0.6", directives="-N 4"))
    nersc.wait_for(job_id, "COMPLETED", "TIMEOUT")
    used = {p.repo_name: p.hours_used for p in client.user().projects()}
    assert used["als_g"] >= 4 * 60 / 3600 * 0.9  # 0.6 s are a minute here
    assert used["als"] == 0


def test_resources_need_no_login(nersc: Nersc) -> None:
    with Client(api_base_url=nersc.described["api_url"]) as anonymous:
        resources = anonymous.resources
        assert resources.status("perlmutter").status == StatusValue.active
        assert resources.status()["dtns"].full_name == "Data Transfer Nodes"
        assert resources.outages() == {}
        assert resources.planned_outages("perlmutter") == []
        assert resources.notes() == {}
        assert anonymous.api.config()["compute.targets"] == "perlmutter"
        assert anonymous.api.changelog()[0].change
        with pytest.raises(SfApiError, match="unauthenticated client"):
            anonymous.user()


def test_outages(nersc: Nersc) -> None:
    nersc.control("maintenance", resource="archive", seconds=600, description="tape robot")
    nersc.control("maintenance", resource="archive", start_in=3600, seconds=600)
    nersc.control("degrade", resource="jupyter", note="slow logins")
    with Client(api_base_url=nersc.described["api_url"]) as anonymous:
        resources = anonymous.resources
        assert resources.status("archive").status == StatusValue.unavailable
        (active,) = resources.outages("archive")
        assert (active.status, active.description) == (OutageStatusValue.Active, "tape robot")
        assert active.start_at.tzinfo is not None
        (planned,) = resources.planned_outages()["archive"]
        assert planned.status == OutageStatusValue.Planned
        assert resources.status("jupyter").status == StatusValue.degraded
        assert resources.notes("jupyter")[0].notes == "slow logins"
        nersc.control("extend_maintenance", resource="archive", seconds=1200)
        assert resources.outages()["archive"][0].status == OutageStatusValue.Extended
        assert nersc.control("end_maintenance", resource="archive") == {"ended": 2}
        assert resources.outages("archive")[0].status == OutageStatusValue.Completed
        assert resources.planned_outages("archive") == []
    nersc.control("degrade", resource="jupyter", note=None)


def test_storage(nersc: Nersc, client: Client) -> None:
    home = Path(nersc.described["home"])
    (home / "from" / "deep").mkdir(parents=True)
    (home / "from" / "deep" / "a.txt").write_text("1234")
    globus = client.storage.globus()
    transfer = globus.start_transfer(Machine.perlmutter, Machine.dtns, home / "from", home / "to", "label")
    assert transfer.complete(timeout=60).value == "SUCCEEDED"
    assert transfer.bytes_transferred == 4
    assert (home / "to" / "deep" / "a.txt").read_text() == "1234"
    failing = globus.start_transfer(Machine.dtn01, Machine.perlmutter, "/etc", home / "etc")
    assert failing.complete(timeout=60).value == "FAILED"
    assert "No such file" in globus.transfer(failing.transfer_id).reason


def test_wrong_credentials(nersc: Nersc, tmp_path: Path) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for client_id, secret in (("0123456789abc", nersc.key), (nersc.described["client_id"], pem)):
        with (
            Client(client_id, secret, **urls(nersc)) as wrong,
            pytest.raises(OAuthError, match="invalid_client"),
        ):
            wrong.user()
    key = tmp_path / "key.pem"
    key.write_text(f"{nersc.described['client_id']}\n{nersc.key}")
    key.chmod(0o640)
    with pytest.raises(ClientKeyError, match="Incorrect permissions"):
        Client(key=key, **urls(nersc))
    key.chmod(0o600)
    with Client(key=key, **urls(nersc)) as right:
        assert right.user().name == nersc.described["user"]


def urls(nersc: Nersc) -> dict[str, str]:
    """Where a client finds the facility."""
    return {"api_base_url": nersc.described["api_url"], "token_url": nersc.described["token_url"]}


def test_key_as_jwk(nersc: Nersc) -> None:
    jwk = json.loads(Path(nersc.described["jwk_path"]).read_text())
    with Client(nersc.described["client_id"], jwk, **urls(nersc)) as client:
        assert client.user().name == nersc.described["user"]


@pytest.mark.both
def test_async_client(nersc: Nersc) -> None:
    async def work(client: AsyncClient) -> None:
        perlmutter = await client.compute(Machine.perlmutter)
        jobs = await asyncio.gather(*(perlmutter.submit_job(script(f"exit {n}")) for n in range(3)))
        before = len(nersc.facility.requests("nersc"))
        await asyncio.gather(*(job.complete(timeout=60) for job in jobs))
        assert [job.state for job in jobs] == [JobState.COMPLETED, JobState.FAILED, JobState.FAILED]
        assert len(nersc.facility.requests("nersc")) > before
        cancelled = await perlmutter.submit_job(script("sleep 60", directives="-t 30"))
        await cancelled.running(timeout=60)
        await cancelled.cancel(wait=True)
        (folder,) = await perlmutter.ls(nersc.described["home"], directory=True)
        file = io.BytesIO(b"abc")
        remote = await (folder / "async.txt").upload(file)
        assert (await remote.download()).read() == "abc"
        assert await perlmutter.run("echo hi") == "hi\n"
        user = await client.user()
        assert (await user.clients())[0].clientId == nersc.described["client_id"]
        assert await perlmutter.outages() == []
        assert await perlmutter.planned_outages() == []

    async def main() -> None:
        async with async_client(nersc) as client:
            await work(client)

    asyncio.run(main())


def test_tokens_are_renewed(nersc: Nersc) -> None:
    def token_requests() -> int:
        return sum(request["path"].endswith("/token") for request in nersc.facility.requests("nersc"))

    nersc.control("set", token_seconds=61.0)  # authlib renews a minute before the end
    try:
        with sync_client(nersc) as client:
            client.compute(Machine.perlmutter)
            before = token_requests()
            until(lambda: client.compute(Machine.perlmutter) and token_requests() > before, 10)
    finally:
        nersc.control("set", token_seconds=600.0)
