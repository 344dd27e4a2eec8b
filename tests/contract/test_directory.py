"""What every `dht.contracts.Directory` does: the real one over UDP, and the fake."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from dht.contracts import Directory
from dht.records.memory_directory import MemoryDirectory, MemoryMesh
from protocol.problems import BadRequest, InvalidRecord
from protocol.records import ServiceRecord
from tests.dht_mesh import identity, mesh, service

Meshes = Callable[[int], AbstractAsyncContextManager[Sequence[Directory]]]
DIGEST = "sha256:" + hashlib.sha256(b"content").hexdigest()
MS = int(time.time() * 1000)


@asynccontextmanager
async def in_memory(count: int) -> AsyncIterator[Sequence[Directory]]:
    shared = MemoryMesh()
    yield [MemoryDirectory(shared, identity(i), (f"127.0.0.1:{9000 + i}",)) for i in range(count)]


@pytest.fixture(params=["network", "memory"])
def meshes(request: pytest.FixtureRequest) -> Meshes:
    return mesh if request.param == "network" else in_memory


async def digests(directory: Directory, name: str) -> list[str]:
    records = [s.record for s in await directory.services(name)]
    return [r.digest for r in records if isinstance(r, ServiceRecord)]


async def test_published_anywhere_is_found_everywhere_by_every_name(meshes: Meshes) -> None:
    signed = service("od01", category="/image/object_detection")
    async with meshes(5) as nodes:
        await nodes[1].publish(signed)
        for reader in nodes:
            for name in signed.record.names:
                assert [s.envelope for s in await reader.services(name)] == [signed.envelope], name


async def test_one_node_alone_knows_the_whole_truth(meshes: Meshes) -> None:
    async with meshes(1) as (only,):
        assert await only.services("id:nothing") == []
        await only.publish(service("od01"))
        assert len(await only.services("id:od01")) == 1


async def test_nothing_published_is_an_empty_answer(meshes: Meshes) -> None:
    async with meshes(3) as nodes:
        assert await nodes[2].services("id:nobody") == []
        assert await nodes[1].providers(DIGEST) == []
        assert await nodes[0].regions("region:eu/de") == []


async def test_services_of_one_id_by_two_publishers_are_both_listed_newest_first(meshes: Meshes) -> None:
    other = identity(77)
    older = service("od01", content="a", seq=MS + 1000)
    newer = service("od01", content="b", seq=MS + 2000, key=other)
    async with meshes(3) as nodes:
        await nodes[0].publish(newer)
        await nodes[1].publish(older)
        found = await nodes[2].services("id:od01")
        assert [s.envelope for s in found] == [newer.envelope, older.envelope]


async def test_a_newer_version_replaces_by_id_but_the_older_stays_findable_by_digest(meshes: Meshes) -> None:
    old, new = service("od01", content="v1", seq=MS + 1000), service("od01", content="v2", seq=MS + 2000)
    async with meshes(3) as nodes:
        await nodes[0].publish(old)
        await nodes[1].publish(new)
        assert [s.envelope for s in await nodes[2].services("id:od01")] == [new.envelope]
        assert [s.envelope for s in await nodes[2].services(old.record.names[0])] == [old.envelope]


async def test_an_outdated_record_is_refused(meshes: Meshes) -> None:
    async with meshes(3) as nodes:
        await nodes[0].publish(service("od01", content="v2", seq=MS + 2000))
        with pytest.raises(InvalidRecord, match="newer"):
            await nodes[2].publish(service("od01", content="v1", seq=MS + 1000))
        assert len(await nodes[1].services("id:od01")) == 1


@pytest.mark.parametrize("expiry", [-10, 500 * 86_400], ids=["expired", "too far ahead"])
async def test_a_record_outside_its_time_is_refused(meshes: Meshes, expiry: float) -> None:
    async with meshes(2) as nodes:
        with pytest.raises(InvalidRecord):
            await nodes[0].publish(service(expiry=time.time() + expiry))
        assert await nodes[1].services("id:wc01") == []


async def test_withdrawn_is_gone_everywhere(meshes: Meshes) -> None:
    async with meshes(4) as nodes:
        await nodes[0].publish(service("od01", seq=MS + 1000))
        assert len(await nodes[3].services("id:od01")) == 1
        await nodes[2].publish(service("od01", seq=MS + 1001, withdrawn=True))
        for reader in nodes:
            assert await digests(reader, "id:od01") == []
            assert await digests(reader, "category:/text") == []


async def test_withdrawing_an_old_version_leaves_the_new_one(meshes: Meshes) -> None:
    old, new = service("od01", content="v1", seq=MS + 1000), service("od01", content="v2", seq=MS + 2000)
    async with meshes(3) as nodes:
        await nodes[0].publish(old)
        await nodes[0].publish(new)
        await nodes[1].publish(service("od01", content="v1", seq=MS + 1001, withdrawn=True))
        assert await digests(nodes[2], "id:od01") == [new.record.digest]  # type: ignore[union-attr]
        assert await digests(nodes[2], old.record.names[0]) == []


async def test_providers_are_found_by_others_and_not_by_themselves(meshes: Meshes) -> None:
    async with meshes(4) as nodes:
        await nodes[0].announce_content(DIGEST)
        await nodes[1].announce_content(DIGEST)
        assert [p.addresses for p in await nodes[0].providers(DIGEST)] == [("127.0.0.1:9001",)]
        assert {p.addresses[0] for p in await nodes[3].providers(DIGEST)} == {"127.0.0.1:9000", "127.0.0.1:9001"}


async def test_retracted_content_has_no_provider(meshes: Meshes) -> None:
    async with meshes(3) as nodes:
        await nodes[0].announce_content(DIGEST)
        assert len(await nodes[2].providers(DIGEST)) == 1
        await nodes[0].retract_content(DIGEST)
        assert await nodes[1].providers(DIGEST) == []
        assert await nodes[2].providers(DIGEST) == []


async def test_regions_by_path_and_by_parent_with_the_newest_summary(meshes: Meshes) -> None:
    async with meshes(3) as nodes:
        await nodes[0].announce_region(region="eu/de/darmstadt", agents=1, memory_total=100, memory_free=100)
        await nodes[1].announce_region(region="eu/de/berlin", agents=2, memory_total=200, memory_free=200)
        await nodes[0].announce_region(region="eu/de/darmstadt", agents=1, memory_total=100, memory_free=40)
        found = await nodes[2].regions("children:eu/de")
        assert {r.region: r.memory_free for r in found} == {"eu/de/darmstadt": 40, "eu/de/berlin": 200}
        assert [r.agents for r in await nodes[1].regions("region:eu/de/berlin")] == [2]


async def test_many_services_in_one_category_are_all_found(meshes: Meshes) -> None:
    signed = [service(f"s{i}", content=str(i), description="x" * 160) for i in range(40)]
    async with meshes(3) as nodes:
        for one in signed:
            await nodes[0].publish(one)
        found = await nodes[2].services("category:/text")
        assert {s.envelope for s in found} == {s.envelope for s in signed}


@pytest.mark.parametrize("name", ["", "id", "content:x", "planet:mars"])
async def test_names_of_other_kinds_are_refused(meshes: Meshes, name: str) -> None:
    async with meshes(1) as (only,):
        with pytest.raises(BadRequest):
            await only.services(name)


async def test_a_service_that_moved_to_another_category_is_gone_from_the_old_one(meshes: Meshes) -> None:
    old = service("od01", content="v1", seq=MS + 1000, category="/image/detection")
    new = service("od01", content="v2", seq=MS + 2000, category="/video/detection")
    async with meshes(4) as nodes:
        await nodes[0].publish(old)
        await nodes[1].publish(new)
        for reader in nodes:
            assert await digests(reader, "category:/image/detection") == []
            assert await digests(reader, "category:/image") == []
            assert await digests(reader, "category:/video") == [new.record.digest]  # type: ignore[union-attr]
            assert await digests(reader, "category:/") == [new.record.digest]  # type: ignore[union-attr]
            assert len(await reader.services(old.record.names[0])) == 1, "by its digest it stays findable"
