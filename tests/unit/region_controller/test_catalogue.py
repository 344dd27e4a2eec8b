from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from protocol.instances import StartRequest
from protocol.problems import AmbiguousService, BadRequest, NoMatchingService, Unavailable
from protocol.records import ServiceRecord, Signed
from region_controller import resolution
from region_controller.catalogue import MISSING_S, OWN_S, SEEN_S, Catalogue
from region_controller.placement import Warmth
from region_controller.resolution import Standing
from tests.one_region import a_service, key_of


def cold(_: str) -> Warmth:
    return Warmth.COLD


class Counting:
    """A directory that answers `found` for every name, counts, and can be cut off."""

    def __init__(self, *found: ServiceRecord) -> None:
        self.found = found
        self.asked: list[str] = []
        self.away = False

    async def services(self, name: str) -> list[Signed]:
        self.asked.append(name)
        if self.away:
            raise Unavailable("no peer answers")
        return [Signed(r, r.publisher, b"") for r in self.found if name in r.names]


class Bench:
    """A catalogue with a clock to turn and refreshes to run."""

    def __init__(self, *found: ServiceRecord) -> None:
        self.directory = Counting(*found)
        self.now = 0.0
        self.refreshes: list[Coroutine[Any, Any, None]] = []
        directory: Any = self.directory
        self.catalogue = Catalogue(directory, self.refreshes.append, clock=lambda: 0.0, monotonic=lambda: self.now)

    async def named(self, text: str) -> ServiceRecord:
        record, _ = await self.catalogue.resolve(StartRequest(service=text), cold)
        return record

    async def refresh(self) -> None:
        pending, self.refreshes[:] = list(self.refreshes), []
        await asyncio.gather(*pending)


# --- by id, name, digest --------------------------------------------------------------------------------------------


def test_one_service_from_two_publishers_is_one_service() -> None:
    mine = a_service("od01", digest="same", seq=1)
    theirs = a_service("od01", digest="same", seq=2, publisher=key_of("other"))
    assert resolution.by_name("od01", [mine, theirs]) == theirs


def test_versions_of_one_publisher_resolve_to_the_newest() -> None:
    old, new = a_service(digest="old", seq=1), a_service(digest="new", seq=2)
    assert resolution.by_name("svc", [new, old]) == new


def test_a_copy_of_an_old_version_by_another_is_explained_by_the_author() -> None:
    old, new = a_service(digest="old", seq=1), a_service(digest="new", seq=2)
    copy = a_service(digest="old", seq=9, publisher=key_of("other"))
    assert resolution.by_name("svc", [old, new, copy]) == new


def test_one_id_for_two_services_is_ambiguous_even_of_one_publisher() -> None:
    with pytest.raises(AmbiguousService) as caught:
        resolution.by_name("od01", [a_service("od01", name="objects"), a_service("od01", name="odours")])
    assert [c["id"] for c in caught.value.extra["candidates"]] == ["od01", "od01"]
    assert "2 different services" in caught.value.detail


def test_two_publishers_with_different_archives_are_ambiguous() -> None:
    with pytest.raises(AmbiguousService):
        resolution.by_name("svc", [a_service(digest="a"), a_service(digest="b", publisher=key_of("other"))])


async def test_resolve_by_id_name_and_digest() -> None:
    record = a_service("od01", name="object detection")
    bench = Bench(record)
    assert await bench.named("od01") == record
    assert await bench.named("object detection") == record
    assert await bench.named(record.digest) == record
    with pytest.raises(NoMatchingService, match="nothing published"):
        await bench.named("sha256:" + "0" * 64)
    with pytest.raises(NoMatchingService) as caught:
        await bench.named("od02")
    assert caught.value.extra["near"] == ["od01"]
    with pytest.raises(BadRequest):
        await bench.catalogue.resolve(StartRequest(), cold)


# --- by meaning -----------------------------------------------------------------------------------------------------


def by_meaning(records: list[ServiceRecord], warm: dict[str, Warmth], **request: Any) -> str:
    asked = StartRequest(**request)
    found = resolution.by_meaning(asked, asked.category or "/", records, lambda d: warm.get(d, Warmth.COLD))
    return found[0].id if found else "none"


def test_meaning_is_subtree_inputs_and_outputs() -> None:
    records = [
        a_service("faces", category="/image/faces", inputs=["image", "video"], outputs=["text"]),
        a_service("image", category="/imagery", inputs=["image"], outputs=["text"]),
    ]
    assert by_meaning(records, {}, category="/image", inputs=("image",), outputs=("text",)) == "faces"
    assert by_meaning(records, {}, category="/image", inputs=("image", "sound")) == "none"
    assert by_meaning(records, {}, category="/image", outputs=("sound",)) == "none"
    assert by_meaning(records, {}, category="/imagery") == "image"


def test_among_matches_warm_then_built_then_cached_then_newest() -> None:
    records = [a_service(name, seq=seq) for seq, name in enumerate(["oldest", "old", "new", "newest"], start=1)]
    digest = {r.id: r.digest for r in records}
    warm: dict[str, Warmth] = {}
    order = []
    for name, warmth in [("new", Warmth.CACHED), ("old", Warmth.BUILT), ("oldest", Warmth.WARM)]:
        order.append(by_meaning(records, warm, category="/text"))
        warm[digest[name]] = warmth
    order.append(by_meaning(records, warm, category="/text"))
    assert order == ["newest", "new", "old", "oldest"]


def test_a_flood_of_new_publishers_does_not_win_over_those_known_here() -> None:
    ours, old = a_service("ours", seq=1), a_service("old", seq=2, publisher=key_of("old"))
    fakes = [a_service(f"z{i}", seq=2**50 + i, publisher=key_of(f"z{i}")) for i in range(30)]
    standing = {ours.publisher: Standing.TRUSTED, old.publisher: Standing.SEEN}

    def chosen(records: list[ServiceRecord], *, missing: set[str], warm: str = "") -> str:
        found = resolution.by_meaning(
            StartRequest(category="/text"),
            "/text",
            records,
            lambda d: Warmth.CACHED if d == warm else Warmth.COLD,
            lambda publisher: standing.get(publisher, Standing.NEW),
            missing,
        )
        assert found is not None
        return found[0].id

    everything = [*fakes, old, ours]
    assert chosen(everything, missing=set()) == "ours"
    assert chosen(everything, missing={ours.digest}) == "old"
    assert chosen(everything, missing={ours.digest, old.digest}) == "z29"
    assert chosen(everything, missing={r.digest for r in everything}) == "ours"
    assert chosen(everything, missing=set(), warm=fakes[3].digest) == "z3", "what is here is the first choice"
    known = resolution.known_first(everything, lambda p: standing.get(p, Standing.NEW))
    assert [r.id for r in known] == ["ours", "old", *(r.id for r in fakes)]


async def test_a_publisher_met_some_time_ago_comes_before_a_new_one() -> None:
    known = a_service("known", seq=1, publisher=key_of("known"))
    bench = Bench(known)
    await bench.catalogue.search(category="/text")
    bench.now += SEEN_S
    bench.directory.found = (known, a_service("fake", seq=9, publisher=key_of("fake")))
    assert [r.id for r in await bench.catalogue.search(category="/text")] == ["known", "fake"]
    assert (await bench.catalogue.resolve(StartRequest(category="/text"), cold))[0].id == "known"
    bench.catalogue.missing(known.digest)
    assert (await bench.catalogue.resolve(StartRequest(category="/text"), cold))[0].id == "fake"
    bench.now += MISSING_S
    assert (await bench.catalogue.resolve(StartRequest(category="/text"), cold))[0].id == "known"


def test_only_the_newest_version_matches() -> None:
    old = a_service(digest="old", seq=1, inputs=["image"])
    new = a_service(digest="new", seq=2)
    assert by_meaning([old, new], {}, category="/text", inputs=("image",)) == "none"


async def test_near_misses_are_a_hint() -> None:
    bench = Bench(a_service("faces", category="/image", inputs=["image"], outputs=["text"]))
    with pytest.raises(NoMatchingService) as caught:
        await bench.catalogue.resolve(StartRequest(category="/image", inputs=("sound",)), cold)
    assert caught.value.fix == "faces (service) does not take sound"
    with pytest.raises(NoMatchingService) as caught:
        await bench.catalogue.resolve(StartRequest(category="/text", inputs=("image",)), cold)
    assert caught.value.fix == "faces (service) is in /image"
    with pytest.raises(NoMatchingService) as caught:
        await bench.catalogue.resolve(StartRequest(category="/imaeg"), cold)
    assert caught.value.fix == "category /image exists"


# --- cache ----------------------------------------------------------------------------------------------------------


async def test_lookups_are_cached_for_a_second_then_refreshed_behind_the_answer() -> None:
    old, new = a_service(digest="old", seq=1), a_service(digest="new", seq=2)
    bench = Bench(old)
    assert await bench.named("svc") == old
    asked = len(bench.directory.asked)
    bench.directory.found = (new,)
    bench.now = 1.0
    assert await bench.named("svc") == old
    assert len(bench.directory.asked) == asked
    bench.now = 1.5
    assert await bench.named("svc") == old
    await bench.refresh()
    assert await bench.named("svc") == new


async def test_after_two_seconds_the_mesh_is_asked_first() -> None:
    bench = Bench(a_service(digest="old", seq=1))
    await bench.named("svc")
    bench.directory.found = (a_service(digest="new", seq=2),)
    bench.now = 2.1
    assert await bench.named("svc") == bench.directory.found[0]


async def test_nothing_found_is_not_remembered_beyond_a_second() -> None:
    bench = Bench()
    with pytest.raises(NoMatchingService):
        await bench.named("svc")
    bench.directory.found = (a_service(),)
    bench.now = 1.1
    assert (await bench.named("svc")).id == "svc"


async def test_the_last_known_stands_in_while_the_mesh_is_away() -> None:
    bench = Bench(a_service())
    await bench.named("svc")
    bench.directory.away = True
    bench.now = 300.0
    assert (await bench.named("svc")).id == "svc"
    with pytest.raises(Unavailable):
        await bench.named("other")
    bench.now = 700.0
    with pytest.raises(Unavailable):
        await bench.named("svc")


async def test_own_publications_count_at_once_and_withdrawals_too() -> None:
    bench = Bench()
    with pytest.raises(NoMatchingService):
        await bench.named("svc")
    record = a_service(seq=5)
    bench.catalogue.published(record)
    assert await bench.named("svc") == record
    assert await bench.catalogue.search(category="/text", text="SERV") == [record]
    bench.directory.found = (record,)
    bench.catalogue.published(msgspec.structs.replace(record, withdrawn=True, seq=6))
    bench.now = 1.5
    with pytest.raises(NoMatchingService):
        await bench.named("svc")
    bench.now = OWN_S + 3
    assert await bench.named("svc") == record, "by then the mesh is believed again"
