"""Large sets over HTTP: what holders send, and what a reader takes of hostile ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from dht import ordering
from dht.peer_http import PeerHttp
from dht.records import set_client, set_serving, set_wire
from dht.records.directory import NetworkDirectory
from dht.records.set_client import SetClient
from dht.records.set_serving import set_routes
from dht.records.set_wire import LENGTH, SetDecoder, encoded
from protocol.identifiers import record_key
from protocol.problems import BadRequest, CorruptContent
from protocol.records import Signed
from tests.content_sites import served
from tests.dht_mesh import identity, node, service

ROOT = "category:/"
KEY = record_key(ROOT)
SET = ordering.OrderedSet(b"record %d" % n for n in range(700))


@asynccontextmanager
async def client() -> AsyncIterator[SetClient]:
    async with aiohttp.ClientSession() as session:
        yield SetClient(PeerHttp(session, None))


async def taken(address: str, after: bytes = b"") -> tuple[list[bytes], bool]:
    got: list[bytes] = []
    async with client() as sets:
        whole = await sets.read(address, KEY, after, lambda envelopes, _: got.extend(envelopes))
    return got, whole


def sending(*pieces: bytes, pause_s: float = 0.0) -> list[web.RouteDef]:
    async def get_set(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(pause_s)
        return response

    return [web.get("/peer/records/{key}", get_set)]


# --- the format -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (encoded(reversed(SET.envelopes[:2])), "order"),
        (encoded([SET.envelopes[0]] * 2), "order"),
        (LENGTH.pack(0), "0 bytes"),
        (LENGTH.pack(1025) + bytes(1025), "1025 bytes"),
    ],
)
def test_what_no_holder_sends_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(CorruptContent, match=why):
        SetDecoder(b"").feed(body)


def test_a_set_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_wire, "MAX_RECORDS", 3)
    decoder = SetDecoder(b"")
    assert len(decoder.feed(encoded(SET.envelopes[:3]))) == 3
    with pytest.raises(CorruptContent, match="more than 3"):
        decoder.feed(encoded(SET.envelopes[3:4]))


@pytest.mark.parametrize("text", ["xy", "0" * 18])
def test_a_position_that_is_none_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequest):
        set_wire.position_in(text)


# --- over HTTP ------------------------------------------------------------------------------------------------------


async def test_a_set_is_had_whole_or_from_a_position_on() -> None:
    async with served(set_routes(lambda _: SET)) as address:
        assert await taken(address) == (SET.envelopes, True)
        assert await taken(address, SET.positions[499]) == (SET.envelopes[500:], True)
        assert await taken(address, SET.positions[-1]) == ([], True)


async def test_a_holder_sends_so_many_sets_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_serving, "SETS_AT_ONCE", 0)
    async with served(set_routes(lambda _: SET)) as address, aiohttp.ClientSession() as session:
        assert await taken(address) == ([], False)
        async with session.get(f"http://{address}{set_wire.path_of(KEY, b'')}") as response:
            assert response.status == 429
        async with session.get(f"http://{address}/peer/records/abc") as response:
            assert response.status == 400


async def test_who_is_too_slow_loses_its_turn_and_what_it_sent_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_client, "GRACE_S", 0.05)
    async with served(sending(*(encoded([e]) for e in SET.envelopes), pause_s=0.02)) as address:
        got, whole = await taken(address)
    assert not whole
    assert got == SET.envelopes[: len(got)]
    assert 0 < len(got) < 100


async def test_who_falls_silent_loses_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_client, "IDLE_S", 0.1)
    async with served(sending(encoded(SET.envelopes[:9]), pause_s=30.0)) as address:
        assert await taken(address) == (SET.envelopes[:9], False)


async def test_who_never_ends_is_left_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_wire, "MAX_RECORDS", 500)
    async with served(set_routes(lambda _: SET)) as address:
        got, whole = await taken(address)
    assert not whole
    assert len(got) <= 500


async def test_a_set_that_breaks_off_or_is_out_of_order_is_not_whole() -> None:
    async with served(sending(encoded(SET.envelopes[:9])[:-1])) as address:
        assert await taken(address) == (SET.envelopes[:8], False)
    async with served(sending(encoded(SET.envelopes[:9]), encoded(SET.envelopes[:9]))) as address:
        assert not (await taken(address))[1]
    assert await taken("127.0.0.1:1") == ([], False)


# --- in a mesh ------------------------------------------------------------------------------------------------------


def services(count: int) -> list[Signed]:
    return [service(f"svc{n}", content=str(n), key=identity(1000 + n % 7)) for n in range(count)]


class Noted:
    """Whole sets, and what came of them."""

    def __init__(self, sets: SetClient) -> None:
        self._sets = sets
        self.came: list[bytes] = []

    async def read(self, address: str, key: bytes, after: bytes, take: Callable[[list[bytes], bytes], None]) -> bool:
        def noting(envelopes: list[bytes], last: bytes) -> None:
            self.came += envelopes
            take(envelopes, last)

        return await self._sets.read(address, key, after, noting)


@asynccontextmanager
async def reader_of(
    held: list[list[Signed]], doors: list[Callable[[ordering.OrderedSet], ordering.OrderedSet] | None]
) -> AsyncIterator[tuple[NetworkDirectory, list[bytes]]]:
    """Nodes that hold such sets at the root and show them, changed by `doors`, over HTTP (None: nobody opens); yields
    another node, and what comes to it over HTTP."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        contacts: list[str] = []
        for number, (records, shown) in enumerate(zip(held, doors, strict=True)):
            address = "127.0.0.1:1"
            if shown is not None:
                ordered = shown(ordering.OrderedSet(s.envelope for s in records))
                address = await enter(served(set_routes(lambda _, ordered=ordered: ordered)))
            holder = await enter(node(number, bootstrap=contacts[:1], door=int(address.rpartition(":")[2])))
            contacts += holder.contacts()[:1]
            for signed in records:
                holder._replica.keep(KEY, signed, ours=False, spread_at=2e9, via=b"v" * 20)
        sets = Noted(await enter(client()))
        yield await enter(node(99, bootstrap=contacts[:1], whole_sets=sets)), sets.came


def same(ordered: ordering.OrderedSet) -> ordering.OrderedSet:
    return ordered


async def test_a_large_set_comes_over_http_and_what_others_hold_beyond_it_too() -> None:
    records = services(420)
    async with reader_of([records, records, records[:400]], [same, same, same]) as (reader, came):
        assert len(await reader.services(ROOT)) == 420
        assert len(came) >= 400
    async with reader_of([records[:400], records[:400], records[20:]], [same, same, same]) as (reader, came):
        assert len(await reader.services(ROOT)) == 420
        assert len(came) == 400, "the rest by comparing"


async def test_who_leaves_something_out_hides_nothing() -> None:
    records = services(420)

    def half(ordered: ordering.OrderedSet) -> ordering.OrderedSet:
        return ordering.OrderedSet(ordered.envelopes[::2])

    async with reader_of([records, records, records], [half, half, half]) as (reader, _):
        assert len(await reader.services(ROOT)) == 420


async def test_what_nobody_signed_is_not_believed() -> None:
    records = services(300)

    def with_forgeries(ordered: ordering.OrderedSet) -> ordering.OrderedSet:
        return ordering.OrderedSet([*ordered.envelopes, *(e[:-1] + b"x" for e in ordered.envelopes[:50])])

    async with reader_of([records, records], [with_forgeries, with_forgeries]) as (reader, _):
        found = await reader.services(ROOT)
    assert {s.envelope for s in found} == {s.envelope for s in records}


async def test_where_no_door_opens_a_set_is_read_page_by_page() -> None:
    records = services(300)
    async with reader_of([records, records], [None, None]) as (reader, came):
        assert len(await reader.services(ROOT)) == 300
        assert not came


async def test_a_holder_that_lags_behind_is_looked_into_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.records.directory.TICK_S", 600.0)  # nobody helps it up
    records = services(420)
    async with reader_of([records, records[::2]], [same, same]) as (reader, came):
        assert len(await reader.services(ROOT)) == 420
        came.clear()
        await reader.services(ROOT)
        before = reader.stats()["datagrams_calls"]
        for _ in range(3):
            assert len(await reader.services(ROOT)) == 420
        assert reader.stats()["datagrams_calls"] - before < 60, "each look costs a hundred"
        assert not came
