"""Members that answer the reader of a large set with nonsense, with a part of it, or late."""

from __future__ import annotations

import asyncio
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht import ordering, rules
from dht.overlay import Tuning
from dht.overlay.answering import Answering, Shelf
from dht.overlay.messages import Compare, Page, Parts, Proof, Records, decode, encode
from dht.overlay.routing import Routing
from dht.records import sifting
from protocol.identifiers import record_key
from protocol.problems import Unavailable
from protocol.records import ServiceRecord, Signed, check_signature
from tests.dht_mesh import service
from tests.simulation import EPOCH, Simulation, address, simulation

SEED = int(os.environ.get("SIM_SEED", "20260713"))
CATEGORY = "category:/text/count"
TUNING = Tuning(k=8, replicas=6, acks=4)
READER = 8
OTHERS = range(READER)

pytestmark = pytest.mark.timeout(110)


class Lying(Answering, ABC):
    """Answers comparisons with what `lie` makes of the truth."""

    def _parts(self, request: Compare, proof: Proof | None) -> Parts | None:
        told = super()._parts(request, proof)
        return None if told is None else self.lie(request, told)

    @abstractmethod
    def lie(self, request: Compare, told: Parts) -> Parts: ...


def noise(told: Parts, length: int) -> bytes:
    return (told.id * length)[: length * ordering.SHORT_BYTES]


class Endless(Lying):
    """However narrow the range: it differs in all its parts."""

    def lie(self, request: Compare, told: Parts) -> Parts:
        return msgspec.structs.replace(told, fingerprint=told.id, parts=noise(told, ordering.PARTS), positions=b"")


class EndlessPages(Endless):
    """Then it has page after page of what is no record."""

    def _page(self, request: Records, proof: Proof | None) -> Page:
        page = super()._page(request, proof)
        if request.cursor is None:
            return page
        after = int.from_bytes(request.cursor, "big") + 1
        return msgspec.structs.replace(page, envelopes=(page.id,), next=after.to_bytes(8, "big"))


class Elsewhere(Lying):
    """Positions that do not lie in the range, again and again the same."""

    def lie(self, request: Compare, told: Parts) -> Parts:
        return msgspec.structs.replace(told, fingerprint=told.id, parts=b"", positions=noise(told, ordering.LISTED))


class Invented(Lying):
    """A number of records that nobody has."""

    def lie(self, request: Compare, told: Parts) -> Parts:
        return msgspec.structs.replace(told, fingerprint=told.id, count=10**6)


class LowerHalfOnly(Answering):
    """Keeps silent about what stands in the upper half of all positions."""

    def _page(self, request: Records, proof: Proof | None) -> Page | None:  # type: ignore[override]
        return super()._page(request, proof) if (request.cursor or b"") < b"\x80" else None


class Crowding(Answering, ABC):
    """Has many records of invented signers, dated ahead of all that is real, beside what it really holds."""

    FAKES = 120

    def __init__(self, own_id: bytes, routing: Routing, shelf: Shelf, *, k: int, door: int) -> None:
        super().__init__(own_id, routing, shelf, k=k, door=door)
        self.honest = shelf
        self._shelf = self
        self._fakes = list(map(invented, range(*self.numbers())))

    @abstractmethod
    def numbers(self) -> tuple[int, int]:
        """Of those that it invents."""

    def ordered(self, key: bytes) -> ordering.OrderedSet:
        return ordering.OrderedSet([*self.honest.ordered(key).envelopes, *self._fakes])

    def offer(self, key: bytes, envelopes: Sequence[bytes], via: bytes) -> Sequence[int]:
        return self.honest.offer(key, envelopes, via)


class CrowdingAlone(Crowding):
    """Each invents others."""

    def numbers(self) -> tuple[int, int]:
        first = int.from_bytes(self._own_id[:4], "big")
        return first, first + self.FAKES


class CrowdingTogether(Crowding):
    """All invent the same: the largest group of equal sets."""

    def numbers(self) -> tuple[int, int]:
        return 0, self.FAKES


class OnlyInvented(CrowdingTogether):
    """And it hides what is real."""

    def ordered(self, key: bytes) -> ordering.OrderedSet:
        return ordering.OrderedSet(self._fakes)


class InDisguise(OnlyInvented):
    """It says at first that it has just what the honest ones have."""

    def _page(self, request: Records, proof: Proof | None) -> Page:
        page, real = super()._page(request, proof), self.honest.ordered(request.key)
        return msgspec.structs.replace(page, fingerprint=real.fingerprint, count=len(real.envelopes))

    def _parts(self, request: Compare, proof: Proof | None) -> Parts | None:
        told = super()._parts(request, proof)
        if told is None:
            return None
        real = self.honest.ordered(request.key).summary(*ordering.EVERYWHERE)
        if (request.low, request.high) == ordering.EVERYWHERE:
            return msgspec.structs.replace(told, **real._asdict())
        return told


def invented(number: int) -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"throwaway%d" % number).digest())
    seq = int((EPOCH + 250) * 1000)
    return service(f"z{number}", seq=seq, expiry=EPOCH + 300 * 86_400, key=key).envelope


@asynccontextmanager
async def category(count: int) -> AsyncIterator[Simulation]:
    """`count` services in one category."""
    async with simulation(seed=SEED, tuning=TUNING) as sim:
        await sim.add(0)
        for number in range(1, READER + 1):
            await sim.add(number, through=0)
        for i in range(count):
            await sim.nodes[i % READER].publish(sim.service(f"s{i}"))
        yield sim


def real_ones(found: Sequence[Signed]) -> int:
    return sum(isinstance(s.record, ServiceRecord) and not s.record.id.startswith("z") for s in found)


async def read(sim: Simulation, number: int = READER) -> int:
    """How many real services a node finds."""
    return real_ones(await sim.nodes[number].services(CATEGORY))


@pytest.mark.parametrize("lies", [Endless, Elsewhere, Invented])
async def test_a_few_who_compare_falsely_hide_nothing_and_cost_little(lies: type[Lying]) -> None:
    loop = asyncio.get_running_loop()
    async with category(20) as sim:
        assert await read(sim) == 20
        await sim.nodes[1].publish(sim.service("news"))
        with sim.turned([2, 5], lies):
            began, before = loop.time(), sim.network.counts["sent"]
            assert await read(sim) == 21, f"seed {SEED}"
            assert loop.time() - began < 2 * TUNING.lookup_s + 0.5
            assert sim.network.counts["sent"] - before < 4000
        assert sim.nodes[READER].stats()["crashes"] == 0


@pytest.mark.parametrize("lies", [CrowdingAlone, CrowdingTogether, OnlyInvented, InDisguise])
async def test_holders_who_invent_records_crowd_nothing_out(
    lies: type[Crowding], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_PER_KEY", 100)
    async with category(20) as sim:
        assert await read(sim) == 20
        nearest = sim.nearest(record_key(CATEGORY), [n for n in OTHERS if n])[:3]
        with sim.turned(nearest, lies):
            await sim.add(READER + 1, through=0)
            await sim.nodes[1].publish(sim.service("s-news"))
            shown = await sim.nodes[READER + 1].services(CATEGORY)
            assert len(shown) > 40, "the lies did not arrive"
            assert real_ones(shown) == 21, f"seed {SEED}"
            for number in (READER, READER + 1):
                assert await read(sim, number) == 21, f"node {number}, seed {SEED}"
        for number in (READER, READER + 1):
            assert await read(sim, number) == 21, f"node {number}, seed {SEED}"
        assert all(node.stats()["crashes"] == 0 for node in sim.nodes.values())


def invented_ones(found: Sequence[Signed]) -> int:
    return len(found) - real_ones(found)


async def test_of_what_a_holder_invents_alone_little_is_looked_at_and_then_it_is_not_read_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sifting, "ALONE", 30)
    async with category(20) as sim:
        nearest = sim.nearest(record_key(CATEGORY), [n for n in OTHERS if n])[0]
        reader = sim.nodes[READER]
        with sim.turned([nearest], CrowdingAlone):
            shown = await reader.services(CATEGORY)
            assert real_ones(shown) == 20, f"seed {SEED}"
            assert invented_ones(shown) == 30
            await sim.nodes[1].publish(sim.service("s-news"))
            before = sim.network.counts["sent"]
            shown = await reader.services(CATEGORY)
            assert sim.network.counts["sent"] - before < 60, "it was read again"
        assert real_ones(shown) == 21
        assert invented_ones(shown) == 30


async def test_who_publishes_checks_nothing_but_versions_of_the_same_service(monkeypatch: pytest.MonkeyPatch) -> None:
    async with category(1) as sim:
        before = await sim.nodes[READER].services(CATEGORY)
        assert isinstance(before[0].record, ServiceRecord)
        nearest = sim.nearest(record_key(f"id:{before[0].record.id}"), [n for n in OTHERS if n])[:3]
        checked: list[Signed] = []

        def check(signed: Signed) -> None:
            checked.append(signed)
            check_signature(signed)

        with sim.turned(nearest, CrowdingAlone):
            moved = sim.service("s0", category="/elsewhere")
            monkeypatch.setattr("dht.records.verified.check_signature", check)
            await sim.nodes[READER].publish(moved)
        assert checked
        assert {signed.record.id for signed in checked if isinstance(signed.record, ServiceRecord)} == {"s0"}
        assert await sim.nodes[READER].services(CATEGORY) == [], "it hides the version that it left behind there"


async def test_when_all_answer_without_end_the_questions_end_and_the_reader_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dht.overlay.set_reading.QUESTIONS", 300)
    async with category(12) as sim:
        assert await read(sim) == 12
        with sim.turned(OTHERS, EndlessPages):
            before = sim.network.counts["sent"]
            with pytest.raises(Unavailable):
                await read(sim)
            assert sim.network.counts["sent"] - before < 2 * 300 * TUNING.replicas + 500
        assert await read(sim) == 12, "nothing of it lasts"


@pytest.mark.parametrize(
    ("parts", "positions"), [(1, 0), (95, 0), (97, 0), (96, 1)], ids=["one part", "one less", "one more", "both"]
)
def test_wrong_counts_are_no_message(parts: int, positions: int) -> None:
    shorts = [bytes(ordering.SHORT_BYTES) * count for count in (parts, positions)]
    good = Parts(b"i" * 8, b"s" * 20, None, (), bytes(8), bytes(96 * ordering.SHORT_BYTES), b"", 200, 0)
    assert decode(encode(good)) == good
    with pytest.raises(ValueError, match="told in"):
        msgspec.structs.replace(good, parts=shorts[0], positions=shorts[1])
    fields = msgspec.msgpack.decode(encode(good))
    at = fields.index(good.parts)
    fields[at : at + 2] = shorts
    assert decode(msgspec.msgpack.encode(fields)) is None


async def test_what_came_of_a_set_in_part_is_kept_and_the_next_call_goes_on() -> None:
    async with category(60) as sim:

        async def cost_of_reading(number: int) -> int:
            before = sim.network.counts["sent"]
            assert len(await sim.nodes[number].services(CATEGORY)) == 60, f"seed {SEED}"
            return sim.network.counts["sent"] - before

        with sim.turned(OTHERS, LowerHalfOnly), pytest.raises(Unavailable, match="too few"):
            await read(sim)
        came = sim.nodes[READER]._replica.views.get(record_key(CATEGORY))
        assert came is not None
        assert 20 < len(came) < 40
        going_on = await cost_of_reading(READER)
        await sim.add(READER + 1, through=0)
        assert going_on < await cost_of_reading(READER + 1)


async def test_a_page_that_is_slow_to_come_is_asked_of_the_next_holder() -> None:
    late: set[int] = set()

    class Slowing(Answering):
        """Its first page comes at once, and everything later much later."""

        def _page(self, request: Records, proof: Proof | None) -> Page:
            if request.cursor is not None:
                late.add(1)
                sim.network.delays[where[self._own_id]] = 3.0
            return super()._page(request, proof)

    loop = asyncio.get_running_loop()
    async with category(60) as sim:
        where = {node._overlay.id: address(number) for number, node in sim.nodes.items()}
        began = loop.time()
        assert await read(sim) == 60
        usual = loop.time() - began
        await sim.add(READER + 1, through=0)
        with sim.turned([1, 4], Slowing):
            began = loop.time()
            assert len(await sim.nodes[READER + 1].services(CATEGORY)) == 60
        assert late, "no slow holder was asked"
        assert loop.time() - began < usual + 1.0, f"seed {SEED}"
