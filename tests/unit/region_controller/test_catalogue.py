from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec
import pytest

from protocol.decisions import MAX_PASSED_OVER
from protocol.instances import StartRequest
from protocol.problems import AmbiguousService, BadCursor, BadRequest, NoMatchingService, Unavailable
from protocol.records import ServiceRecord, Signed, Terms, raw_public_key
from region_controller import resolution
from region_controller.agents import Warmth
from region_controller.catalogue import MISSING_S, OWN_S, SEEN_S, Catalogue
from region_controller.paging import PageRequest
from region_controller.resolution import Standing, WarmthOf
from tests.one_region import a_service, key_of


def cold(_: ServiceRecord) -> Warmth:
    return Warmth.COLD


def all_cold() -> WarmthOf:
    return cold


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
        found = [Signed(r, r.publisher, msgspec.msgpack.encode(r)) for r in self.found if name in r.names]
        return sorted(found, key=lambda s: -s.record.seq)


class Bench:
    """A catalogue with a clock to turn and refreshes to run."""

    def __init__(self, *found: ServiceRecord) -> None:
        self.directory = Counting(*found)
        self.now = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sleepers: list[asyncio.Future[None]] = []
        directory: Any = self.directory
        self.catalogue = Catalogue(
            directory, self._spawn, clock=lambda: 0.0, monotonic=lambda: self.now, sleep=self._sleep
        )

    async def named(self, text: str) -> ServiceRecord:
        return (await self.catalogue.resolve(StartRequest(service=text), all_cold)).record

    async def first_page(self, **conditions: Any) -> Sequence[ServiceRecord]:
        return self.catalogue.page(await self.catalogue.search(**conditions), PageRequest()).items

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sleep(self, _: float) -> None:
        self._sleepers.append(asyncio.get_running_loop().create_future())
        await self._sleepers[-1]

    async def pass_time(self, seconds: float) -> None:
        """Whoever sleeps wakes up, once."""
        await self.settled()
        self.now += seconds
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            sleeper.set_result(None)
        await self.settled()

    async def settled(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


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
        await bench.catalogue.resolve(StartRequest(), all_cold)


# --- by meaning -----------------------------------------------------------------------------------------------------


def by_meaning(records: list[ServiceRecord], warm: dict[str, Warmth], **request: Any) -> str:
    asked = StartRequest(**request)
    found = resolution.by_meaning(asked, asked.category or "/", records, lambda r: warm.get(r.digest, Warmth.COLD))
    return found.record.id if found else "none"


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
            lambda r: Warmth.CACHED if r.digest == warm else Warmth.COLD,
            lambda publisher: standing.get(publisher, Standing.NEW),
            missing,
        )
        assert found is not None
        return found.record.id

    everything = [*fakes, old, ours]
    assert chosen(everything, missing=set()) == "ours"
    assert chosen(everything, missing={ours.digest}) == "old"
    assert chosen(everything, missing={ours.digest, old.digest}) == "z29"
    assert chosen(everything, missing={r.digest for r in everything}) == "ours"
    assert chosen(everything, missing=set(), warm=fakes[3].digest) == "z3", "what is here is the first choice"
    rank = resolution.known_first(everything, lambda p: standing.get(p, Standing.NEW))
    assert [r.id for r in sorted(everything, key=rank)] == ["ours", "old", *(r.id for r in reversed(fakes))]


def test_each_match_that_was_not_taken_says_why() -> None:
    ours, old = a_service("ours", seq=1), a_service("old", seq=2, publisher=key_of("old"))
    new, gone = a_service("new", seq=3, publisher=key_of("new")), a_service("gone", seq=4)
    never = msgspec.structs.replace(a_service("never", seq=5), terms=Terms(min_accuracy=0.9))
    standing = {old.publisher: Standing.SEEN}

    def told(*records: ServiceRecord, **request: Any) -> list[tuple[str, str]]:
        found = resolution.by_meaning(
            StartRequest(category="/text", **request),
            "/text",
            records,
            lambda r: Warmth.CACHED if r == ours else Warmth.COLD,
            lambda publisher: standing.get(publisher, Standing.NEW),
            {gone.digest},
        )
        assert found is not None
        return [(found.record.id, found.why.partition(": ")[2]), *((other.id, other.why) for other in found.others)]

    assert told(never, gone, new, old, ours) == [
        ("ours", "of 5 matches the one whose archive is here already"),
        ("old", "nothing of it is here"),
        ("new", "nothing of it is here"),
        ("never", "its policy asks for accuracy 0.9, and no variant says how accurate it is"),
        ("gone", "its archive could not be had of late"),
    ]
    assert told(new, old) == [
        ("old", "of 2 matches the one whose publisher is known best here"),
        ("new", "its publisher is new here"),
    ]
    assert told(ours) == [("ours", "the only match")]
    assert told(never, gone, new)[0] == ("new", "of 3 matches the one that can be started")
    assert told(never, gone)[0][0] == "never", "better than none: its refusal says why"
    many = [a_service(f"s{number}", seq=number + 1) for number in range(30)]
    assert len(told(*many)) == 1 + MAX_PASSED_OVER


async def test_wave_after_wave_of_invented_publishers_does_not_make_one_who_stays_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("region_controller.catalogue.MAX_PUBLISHERS", 6)
    known = a_service("known", seq=1, publisher=key_of("known"))
    bench = Bench(known)
    await bench.catalogue.search()
    for wave in range(5):
        bench.now += SEEN_S
        names = [f"z{wave}{number}" for number in range(3)]
        fakes = [a_service(name, seq=9 + wave, publisher=key_of(name)) for name in names]
        bench.directory.found = (known, *fakes)
        assert (await bench.first_page())[0] == known


async def test_a_publisher_met_some_time_ago_comes_before_a_new_one() -> None:
    known = a_service("known", seq=1, publisher=key_of("known"))
    bench = Bench(known)
    await bench.catalogue.search(category="/text")
    bench.now += SEEN_S
    bench.directory.found = (known, a_service("fake", seq=9, publisher=key_of("fake")))
    assert [r.id for r in await bench.first_page(category="/text")] == ["known", "fake"]
    assert (await bench.catalogue.resolve(StartRequest(category="/text"), all_cold)).record.id == "known"
    bench.catalogue.missing(known.digest)
    assert (await bench.catalogue.resolve(StartRequest(category="/text"), all_cold)).record.id == "fake"
    bench.now += MISSING_S
    assert (await bench.catalogue.resolve(StartRequest(category="/text"), all_cold)).record.id == "known"


def test_only_the_newest_version_matches() -> None:
    old = a_service(digest="old", seq=1, inputs=["image"])
    new = a_service(digest="new", seq=2)
    assert by_meaning([old, new], {}, category="/text", inputs=("image",)) == "none"


async def test_near_misses_are_a_hint() -> None:
    bench = Bench(a_service("faces", category="/image", inputs=["image"], outputs=["text"]))
    with pytest.raises(NoMatchingService) as caught:
        await bench.catalogue.resolve(StartRequest(category="/image", inputs=("sound",)), all_cold)
    assert caught.value.fix == "faces (service) does not take sound"
    with pytest.raises(NoMatchingService) as caught:
        await bench.catalogue.resolve(StartRequest(category="/text", inputs=("image",)), all_cold)
    assert caught.value.fix == "faces (service) is in /image"
    with pytest.raises(NoMatchingService) as caught:
        await bench.catalogue.resolve(StartRequest(category="/imaeg"), all_cold)
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
    bench.now = 1.0
    await bench.pass_time(0.5)
    assert await bench.named("svc") == new
    assert len(bench.directory.asked) > asked


async def test_what_is_asked_for_is_kept_fresh_behind_the_answers_for_a_while() -> None:
    bench = Bench(a_service(digest="1", seq=1))
    await bench.catalogue.search()
    for second in range(2, 29):
        bench.directory.found = (a_service(digest=str(second), seq=second),)
        await bench.pass_time(1.0)
        assert len(bench.directory.asked) == second
    assert await bench.catalogue.search() == bench.directory.found, "no older than the last second"
    assert len(bench.directory.asked) == 28
    for _ in range(60):
        await bench.pass_time(1.0)
    assert len(bench.directory.asked) < 62, "nobody asks any more"
    await bench.catalogue.search()
    assert bench.directory.asked[-1] == "category:/"


async def test_what_is_only_downloaded_or_shown_is_not_kept_fresh() -> None:
    bench = Bench(a_service(digest="1"))
    record = bench.directory.found[0]
    assert await bench.catalogue.by_digest(record.digest) == [record]
    for _ in range(5):
        await bench.pass_time(1.0)
    assert bench.directory.asked == [f"service:{record.digest}"]
    await bench.catalogue.by_digest(record.digest)
    assert len(bench.directory.asked) == 2, "no answer is older than two seconds"


async def test_no_more_than_some_names_are_kept_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("region_controller.known_names.MAX_WATCHED", 2)
    bench = Bench(a_service(category="/a/b/c/d"))
    for category in ("/", "/a", "/a/b", "/a/b/c"):
        await bench.catalogue.search(category=category)
    await bench.pass_time(1.1)
    assert len(bench.directory.asked) == 4 + 2
    assert len(await bench.catalogue.search(category="/a/b")) == 1
    await bench.settled()
    assert bench.directory.asked[6:] == ["category:/a/b"], "the others when they are asked for"


async def test_many_who_ask_for_the_same_at_once_ask_the_mesh_once() -> None:
    bench = Bench(a_service())
    answers = await asyncio.gather(*(bench.catalogue.search() for _ in range(20)))
    assert bench.directory.asked == ["category:/"]
    assert all(answers)
    bench.directory.away = True
    bench.now = 3000.0
    problems = await asyncio.gather(*(bench.catalogue.search() for _ in range(3)), return_exceptions=True)
    assert [type(problem) for problem in problems] == [Unavailable] * 3
    assert len(bench.directory.asked) == 2


async def test_what_is_remembered_is_bounded_by_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("region_controller.known_names.MAX_RECORDS", 5)
    monkeypatch.setattr("region_controller.known_names.MAX_WATCHED", 0)
    bench = Bench(*(a_service(name, category=f"/{name}/x") for name in "ab"))
    for category in ("/", "/a", "/a/x", "/b", "/"):
        await bench.catalogue.search(category=category)
    assert bench.directory.asked == ["category:/", "category:/a", "category:/a/x", "category:/b"]
    await bench.catalogue.search(category="/b/x")
    await bench.catalogue.search(category="/a")
    assert bench.directory.asked[4:] == ["category:/b/x", "category:/a"], "the least recently asked for was forgotten"


async def test_search_narrows_by_category_types_and_text() -> None:
    records = [
        a_service("faces", category="/image/faces", inputs=["image", "video"], outputs=["text"], seq=1),
        a_service("words", category="/text", inputs=["text"], outputs=["number"], seq=2),
    ]
    bench = Bench(*records)
    search = bench.catalogue.search
    assert [r.id for r in await bench.first_page()] == ["words", "faces"]
    assert [r.id for r in await search(inputs=("image", "video"), outputs=("text",))] == ["faces"]
    assert [r.id for r in await search(category="/image", text="FACES")] == ["faces"]
    assert [r.id for r in await search(service_id="words")] == ["words"]
    assert not await search(service_id="words", category="/image")
    assert not await search(inputs=("image", "text"))


async def test_pages_go_on_in_the_order_of_the_first_whoever_becomes_known_meanwhile() -> None:
    ours, theirs = key_of("ours"), key_of("theirs")
    records = [a_service(f"s{n}", seq=100 - n, publisher=(ours, theirs)[n % 2]) for n in range(10)]
    bench = Bench(*records)
    bench.catalogue.trust(raw_public_key(ours))
    in_order = ["s0", "s2", "s4", "s6", "s8", "s1", "s3", "s5", "s7", "s9"]
    shown: list[str] = []
    page = bench.catalogue.page(await bench.catalogue.search(), PageRequest(3))
    while True:
        assert page.total == 10
        shown += [record.id for record in page.items]
        if page.cursor is None:
            break
        bench.now += SEEN_S
        bench.catalogue.trust(raw_public_key(theirs))
        page = bench.catalogue.page(await bench.catalogue.search(), PageRequest(3, page.cursor))
    assert shown == in_order
    assert [r.id for r in await bench.first_page()] == [record.id for record in records], "a new search knows both"


async def test_a_cursor_from_before_a_restart_is_refused() -> None:
    records = [a_service("a"), a_service("b")]
    cursor = Bench().catalogue.page(records, PageRequest(1)).cursor
    assert cursor is not None
    with pytest.raises(BadCursor, match="restart"):
        Bench().catalogue.page(records, PageRequest(1, cursor))


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
    assert await bench.catalogue.search(category="/text", text="SERV") == (record,)
    bench.directory.found = (record,)
    bench.catalogue.published(msgspec.structs.replace(record, withdrawn=True, seq=6))
    bench.now = 1.5
    with pytest.raises(NoMatchingService):
        await bench.named("svc")
    bench.now = OWN_S + 3
    assert await bench.named("svc") == record, "by then the mesh is believed again"
