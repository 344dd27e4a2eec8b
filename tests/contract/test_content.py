"""What every `dht.contracts.Content` promises, held against the real exchange over HTTP and the fake in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dht.contracts import Content
from dht.swarm.memory_content import MemoryContent, Swarm
from protocol.identifiers import digest_of
from protocol.instances import Progress
from protocol.problems import (
    BadRequest,
    Conflict,
    ContentNotFound,
    DeadlineExceeded,
    DiskFull,
    Problem,
    TooLarge,
    Unavailable,
)
from tests.content_sites import Whereabouts, a_file, noise, site
from tests.waiting import until

QUOTA = 6_000_000
MANY = 1 << 30


@dataclass
class Sites:
    contents: list[Content]
    go_slow: Callable[[], None]
    """From now on the mesh does not answer in time."""
    files: Path = field(default_factory=Path)

    def file(self, data: bytes) -> Path:
        return a_file(self.files / digest_of(data)[7:20], data)


@asynccontextmanager
async def real_sites(path: Path, count: int) -> AsyncIterator[Sites]:
    shared = Whereabouts()
    async with AsyncExitStack() as stack:
        sites = [
            await stack.enter_async_context(site(shared, path, number, quota_bytes=QUOTA)) for number in range(count)
        ]
        yield Sites([s.exchange for s in sites], lambda: setattr(shared, "slow", True))


@asynccontextmanager
async def memory_sites(path: Path, count: int) -> AsyncIterator[Sites]:
    swarm = Swarm(latency_s=0.01)
    contents: list[Content] = [MemoryContent(swarm, quota_bytes=QUOTA) for _ in range(count)]
    yield Sites(contents, lambda: setattr(swarm, "failure", Unavailable("peers were slow")))


@pytest.fixture(params=[real_sites, memory_sites], ids=["exchange", "memory"])
def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], object]:
    @asynccontextmanager
    async def start(count: int) -> AsyncIterator[Sites]:
        async with request.param(tmp_path, count) as sites:
            sites.files = tmp_path
            yield sites

    return start


async def bytes_of(content: Content, digest: str) -> bytes:
    async with content.materialized(digest) as path:
        return path.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 2_000, 3_000_000])
async def test_what_is_added_at_one_site_arrives_at_another_byte_for_byte(mesh, size: int) -> None:
    data = noise(size)
    async with mesh(2) as sites:
        here, there = sites.contents
        digest = await here.add(sites.file(data))
        assert digest == digest_of(data)
        assert here.has(digest)
        assert not there.has(digest)
        await there.fetch(digest, max_bytes=MANY, deadline_s=10)
        assert there.has(digest)
        assert list(there.held()) == [digest]
        assert await bytes_of(there, digest) == data


async def test_the_third_site_gets_it_after_the_first_dropped_it(mesh) -> None:
    data = noise(1_000_000)
    async with mesh(3) as sites:
        first, second, third = sites.contents
        digest = await first.add(sites.file(data))
        await second.fetch(digest, max_bytes=MANY, deadline_s=10)
        await first.remove(digest)
        assert not first.has(digest)

        async def third_has_it() -> bool:
            try:
                await third.fetch(digest, max_bytes=MANY, deadline_s=10)
            except (ContentNotFound, Unavailable):
                return False
            return True

        await until(third_has_it)
        assert await bytes_of(third, digest) == data


async def test_a_materialized_file_is_read_only_and_gone_with_the_blob(mesh) -> None:
    async with mesh(1) as sites:
        (content,) = sites.contents
        digest = await content.add(sites.file(b"x" * 1000))
        async with content.materialized(digest) as path:
            assert path.stat().st_mode & 0o222 == 0
        await content.remove(digest)
        assert not path.exists()


async def test_of_two_versions_each_is_made_a_file(mesh) -> None:
    old = noise(2_000_000)
    new = b"an edit" + old
    async with mesh(1) as sites:
        (content,) = sites.contents
        first, second = await content.add(sites.file(old)), await content.add(sites.file(new))
        assert await bytes_of(content, second) == new
        await content.remove(first)
        assert await bytes_of(content, second) == new


async def test_simultaneous_fetches_share_one_transfer_and_a_cancelled_one_harms_nobody(mesh) -> None:
    data = noise(3_000_000)
    async with mesh(2) as sites:
        here, there = sites.contents
        digest = await here.add(sites.file(data))
        fetches = [asyncio.create_task(there.fetch(digest, max_bytes=MANY, deadline_s=10)) for _ in range(5)]
        await asyncio.sleep(0)
        fetches[0].cancel()
        outcomes = await asyncio.gather(*fetches, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert outcomes[1:] == [None] * 4
        assert await bytes_of(there, digest) == data


async def test_progress_ends_with_all_bytes_and_names_the_peers(mesh) -> None:
    heard: list[Progress] = []
    async with mesh(2) as sites:
        here, there = sites.contents
        digest = await here.add(sites.file(noise(3_000_000)))
        await there.fetch(digest, max_bytes=MANY, deadline_s=10, on_progress=heard.append)
    fetched = [p for p in heard if p.phase == "fetch" and p.total]
    assert fetched[-1] == Progress("fetch", "from 1 peer", 3_000_000, 3_000_000)
    assert [p.done for p in fetched] == sorted(p.done for p in fetched)


async def test_nobody_offers_it(mesh) -> None:
    async with mesh(2) as sites:
        with pytest.raises(ContentNotFound):
            await sites.contents[0].fetch(digest_of(b"nowhere"), max_bytes=MANY, deadline_s=5)


async def test_slow_peers_are_not_the_same_as_not_found(mesh) -> None:
    async with mesh(2) as sites:
        digest = await sites.contents[0].add(sites.file(b"x" * 1000))
        sites.go_slow()
        with pytest.raises(Unavailable):
            await sites.contents[1].fetch(digest, max_bytes=MANY, deadline_s=5)


async def test_what_is_here_needs_no_mesh(mesh) -> None:
    async with mesh(1) as sites:
        digest = await sites.contents[0].add(sites.file(b"x" * 1000))
        sites.go_slow()
        await sites.contents[0].fetch(digest, max_bytes=1, deadline_s=0.001)


async def test_more_than_the_caller_wants_is_too_large(mesh) -> None:
    async with mesh(2) as sites:
        digest = await sites.contents[0].add(sites.file(noise(2_000_000)))
        with pytest.raises(TooLarge):
            await sites.contents[1].fetch(digest, max_bytes=1_999_999, deadline_s=5)
        assert not sites.contents[1].has(digest)


async def test_a_deadline_that_has_passed(mesh) -> None:
    async with mesh(2) as sites:
        digest = await sites.contents[0].add(sites.file(noise(2_000_000)))
        with pytest.raises(DeadlineExceeded):
            await sites.contents[1].fetch(digest, max_bytes=MANY, deadline_s=0.0)


async def test_the_least_recently_used_goes_first_and_the_pinned_never(mesh) -> None:
    async with mesh(1) as sites:
        (content,) = sites.contents
        pinned = await content.add(sites.file(noise(2_000_000, 1)), pin="published here")
        older = await content.add(sites.file(noise(2_000_000, 2)))
        newer = await content.add(sites.file(noise(1_900_000, 3)))
        await bytes_of(content, older)
        newest = await content.add(sites.file(noise(2_000_000, 4)))
        assert set(content.held()) == {pinned, older, newest}
        assert not content.has(newer)


async def test_no_room_beside_the_pinned_is_an_error_that_keeps_nothing(mesh) -> None:
    async with mesh(1) as sites:
        (content,) = sites.contents
        pinned = await content.add(sites.file(noise(4_000_000, 1)), pin="running here")
        with pytest.raises(DiskFull):
            await content.add(sites.file(noise(3_000_000, 2)), pin="published here")
        assert list(content.held()) == [pinned]


async def test_pins_are_a_set_of_reasons(mesh) -> None:
    async with mesh(1) as sites:
        (content,) = sites.contents
        digest = await content.add(sites.file(b"x" * 1000), pin="published here")
        await content.pin(digest, "running here")
        await content.pin(digest, "running here")
        await content.unpin(digest, "running here")
        assert set(await content.pinned()) == {digest}
        with pytest.raises(Conflict, match="published here"):
            await content.remove(digest)
        await content.unpin(digest, "published here")
        assert set(await content.pinned()) == set()
        await content.remove(digest)
        assert not content.has(digest)
        with pytest.raises(ContentNotFound):
            await bytes_of(content, digest)


async def test_removing_what_is_not_here_changes_nothing(mesh) -> None:
    async with mesh(1) as sites:
        await sites.contents[0].remove(digest_of(b"nowhere"))
        assert list(sites.contents[0].held()) == []


async def test_a_file_that_is_not_there(mesh, tmp_path: Path) -> None:
    async with mesh(1) as sites:
        with pytest.raises(BadRequest) as caught:
            await sites.contents[0].add(tmp_path / "absent")
        assert isinstance(caught.value, Problem)
        assert caught.value.fix
