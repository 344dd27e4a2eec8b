"""The typed client against a controller that follows the contract, and against ones that do not."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from client.controller import ControllerClient
from protocol.instances import Progress, StartRequest, State
from protocol.problems import (
    BadRequest,
    Conflict,
    ControllerUnreachable,
    CorruptContent,
    Forbidden,
    NoCapacity,
    NoMatchingService,
    ServiceError,
    TooLarge,
    Unavailable,
)
from tests.stub_controller import ARCHIVE, INSTANCE, SERVICE, TOKEN, StubController, stub_controller


@pytest.fixture
async def stub() -> AsyncIterator[StubController]:
    async with stub_controller() as running:
        yield running


@pytest.fixture
async def client(stub: StubController) -> AsyncIterator[ControllerClient]:
    async with ControllerClient(stub.url + "/v1") as connected:
        yield connected


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_a_start_tells_its_progress_and_ends_with_the_answer(
    stub: StubController, client: ControllerClient
) -> None:
    steps: list[Progress] = []
    answer = await client.start(StartRequest(service="wc01", alive_time=5), on_progress=steps.append)
    assert answer == stub.answer()
    assert steps == [Progress("resolve", "wc01"), Progress("fetch", "archive", 5, 10)]
    assert stub.starts[0].service == "wc01"
    assert stub.starts[0].alive_time == 5


async def test_a_start_without_progress_is_one_plain_answer(stub: StubController, client: ControllerClient) -> None:
    answer = await client.start(StartRequest(category="/text", inputs=("text",)))
    assert answer.start == "cold"
    assert stub.starts[0].inputs == ("text",)


async def test_a_start_whose_stream_breaks_is_repeated_as_the_same_request(
    stub: StubController, client: ControllerClient
) -> None:
    stub.cut_streams = 2
    answer = await client.start(StartRequest(service="wc01"), on_progress=lambda _: None)
    assert answer.instance == INSTANCE.instance
    assert len(stub.starts) == 3
    assert len({request.request_key for request in stub.starts}) == 1
    assert stub.starts[0].request_key


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_problem_comes_back_as_its_own_class(
    stub: StubController, client: ControllerClient, streamed: bool
) -> None:
    stub.problem = NoCapacity("no agent has 50 MB", fix="Wait.", regions={"eu/a": "full"}, retry_after=5)
    with pytest.raises(NoCapacity) as caught:
        await client.start(StartRequest(service="wc01"), on_progress=(lambda _: None) if streamed else None)
    assert caught.value.detail == "no agent has 50 MB"
    assert caught.value.fix == "Wait."
    assert caught.value.extra["regions"] == {"eu/a": "full"}
    assert caught.value.retry_after == 5
    assert len(stub.starts) == 1, "a problem is an answer: it is not asked for again"


async def test_lease_commands_carry_the_token(stub: StubController, client: ControllerClient) -> None:
    assert (await client.stop(INSTANCE.instance, TOKEN)).state is State.STOPPED
    assert (await client.restart(INSTANCE.instance, TOKEN)).state is State.RUNNING
    assert (await client.alive(INSTANCE.instance, TOKEN, alive_time=9)).state is State.RUNNING
    assert msgspec.json.decode(stub.bodies[-1]) == {"alive_time": 9}
    assert (await client.remove(INSTANCE.instance, TOKEN)).state is State.REMOVED
    assert stub.authorizations == [f"Bearer {TOKEN}"] * 4
    with pytest.raises(Forbidden, match="not the lease's"):
        await client.stop(INSTANCE.instance, "another")


@pytest.mark.parametrize("instance", ["", "../services", "a/b", "a?x=1", "x" * 200])
async def test_an_instance_id_cannot_change_the_path(client: ControllerClient, instance: str) -> None:
    with pytest.raises(BadRequest):
        await client.stop(instance, TOKEN)


async def test_views_are_typed(client: ControllerClient) -> None:
    assert [view.instance for view in await client.instances()] == [INSTANCE.instance]
    assert (await client.instance(INSTANCE.instance)).service.id == "wc01"
    assert [agent.memory_free for agent in await client.agents()] == [974]
    assert [region.relation for region in await client.regions()] == ["self"]
    assert (await client.health()).region == "eu/a"
    assert [c.category for c in (await client.categories()).children] == ["/text"]


async def test_services_are_searched_by_every_condition(stub: StubController, client: ControllerClient) -> None:
    found = await client.services(category="/text", input=["text", "language"], output="integer", id="wc01", q="count")
    assert (found.items, found.total) == ([SERVICE], 1)
    assert stub.queries == [
        {
            "category": ["/text"],
            "input": ["text", "language"],
            "output": ["integer"],
            "id": ["wc01"],
            "q": ["count"],
            "limit": ["1000"],
        }
    ]
    assert await client.service(SERVICE.digest) == SERVICE
    with pytest.raises(NoMatchingService):
        await client.service("sha256:" + "0" * 64)


async def test_long_lists_come_in_pages_of_which_the_client_takes_what_it_wants(
    stub: StubController, client: ControllerClient
) -> None:
    stub.further_services = tuple(msgspec.structs.replace(SERVICE, id=f"wc{n}") for n in range(2, 2503))
    ids = [SERVICE.id, *(service.id for service in stub.further_services)]
    everything = await client.services()
    assert ([service.id for service in everything.items], everything.total) == (ids, 2502)
    assert [query["limit"] for query in stub.queries] == [["1000"]] * 3
    stub.queries.clear()
    some = await client.services(q="count", at_most=1003)
    assert ([service.id for service in some.items], some.total) == (ids[:1003], 2502)
    assert [(query["q"], query["limit"]) for query in stub.queries] == [(["count"], ["1000"]), (["count"], ["3"])]
    stub.instances = tuple(msgspec.structs.replace(INSTANCE, instance=f"{n:016x}") for n in range(1001))
    assert len(await client.instances()) == 1001


async def test_an_archive_is_streamed_up_with_its_record(
    stub: StubController, client: ControllerClient, tmp_path: Path
) -> None:
    archive = tmp_path / "big.csar"
    archive.write_bytes(b"z" * 700_000)
    steps: list[Progress] = []
    view = await client.publish(archive, b"\xfb\xff\xfe envelope", steps.append)
    assert view == SERVICE
    assert stub.uploads == [(b"z" * 700_000, b"\xfb\xff\xfe envelope")]
    assert (steps[-1].done, steps[-1].total) == (700_000, 700_000)
    await client.publish(archive)
    assert stub.uploads[-1][1] is None


async def test_a_file_that_is_not_there_is_named(client: ControllerClient, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"missing\.csar"):
        await client.publish(tmp_path / "missing.csar")


async def test_a_withdrawal_carries_the_tombstone(stub: StubController, client: ControllerClient) -> None:
    await client.withdraw(SERVICE.digest, b"tombstone")
    assert stub.withdrawn == [(SERVICE.digest, b"tombstone")]


async def test_a_download_is_verified(stub: StubController, client: ControllerClient, tmp_path: Path) -> None:
    out = tmp_path / "wc01.csar"
    steps: list[Progress] = []
    assert await client.fetch(SERVICE.digest, out, steps.append) == len(ARCHIVE)
    assert out.read_bytes() == ARCHIVE
    assert steps[0] == Progress("fetch", "from 3 peers", 5, 10), "first how it comes to the controller"
    assert steps[-1] == Progress("download", out.name, len(ARCHIVE), len(ARCHIVE))


async def test_a_corrupted_download_leaves_nothing_behind(
    stub: StubController, client: ControllerClient, tmp_path: Path
) -> None:
    out = tmp_path / "wc01.csar"
    out.write_bytes(b"what was there before")
    stub.content = ARCHIVE[:-1] + b"\x01"
    with pytest.raises(CorruptContent):
        await client.fetch(SERVICE.digest, out)
    assert out.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [out]


async def test_a_download_is_bounded(stub: StubController, client: ControllerClient, tmp_path: Path) -> None:
    stub.content = bytes(5000)
    digest = "sha256:" + hashlib.sha256(stub.content).hexdigest()
    with pytest.raises(TooLarge):
        await client.fetch(digest, tmp_path / "out", max_bytes=4999)
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_cannot_be_written_is_named(client: ControllerClient, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="missing"):
        await client.fetch(SERVICE.digest, tmp_path / "missing" / "out")


async def test_a_service_is_called_at_its_own_address(stub: StubController, client: ControllerClient) -> None:
    answer = stub.answer()
    assert await client.invoke(answer, "/wordcount", b"one two three") == b"3"
    with pytest.raises(ServiceError) as caught:
        await client.invoke(answer, "/nothing", b"")
    assert caught.value.extra["answered"] == 404
    assert f"cornerstore logs {answer.instance}" in caught.value.fix
    with pytest.raises(BadRequest):
        await client.invoke(answer, "wordcount", b"")


async def test_a_service_that_is_gone_is_told_apart_from_its_controller(
    stub: StubController, client: ControllerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.invocation.PATIENCE_S", 0.3)
    gone = msgspec.structs.replace(stub.answer(), url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="service at"):
        await client.invoke(gone, "/wordcount", b"one")
    with pytest.raises(Conflict):
        await client.invoke(msgspec.structs.replace(gone, url=None), "/wordcount", b"one")


async def test_a_controller_that_is_away_is_named_with_a_way_out() -> None:
    async with ControllerClient(f"127.0.0.1:{free_port()}") as client:
        with pytest.raises(ControllerUnreachable) as caught:
            await client.instances()
    assert "127.0.0.1" in caught.value.detail
    assert "cornerstore discover" in caught.value.fix


async def test_an_answer_that_is_no_controllers_is_refused(stub: StubController) -> None:
    async with ControllerClient(stub.url) as client:
        with pytest.raises(ControllerUnreachable, match="404"):
            await client._rest.call("GET", "/nothing", dict)
        with pytest.raises(ControllerUnreachable, match="not a controller's"):
            await client._rest.call("GET", "/healthz", list[int])
