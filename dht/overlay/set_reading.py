"""Reading one set: what nodes of equal fingerprints hold at a key, of which any may be asked.

First it is found out what is lacking here, by comparing with the most similar set that is known (`_survey`); then just
that is fetched (`_fetch`): over HTTP if it is much, in pages if it is little. All the while it is noted who told of
which position. In the end that counts for all of the nodes if it has their fingerprint, else for each what it told.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from kademlia.node import Node

from dht import ordering
from dht.overlay.asking import Asking
from dht.overlay.gathering import LARGE, Gathering
from dht.overlay.messages import A, Compare, Page, Parts, Records, Request

QUESTIONS = 8192
"""At most so many are asked about one set: a full key has some 5,500 pages, a liar has any number."""
STRETCHES = 16
"""Parts of a large set that are read at the same time."""
NARROWINGS = 2
"""So often the range of all positions is cut; a part of a part holds two records of a full key, unless somebody chose
records by their hashes to crowd it."""
PAGE_BY_PAGE_FROM = 4
"""More missing envelopes of one range than this are read page by page, fewer each for itself."""
HOLDERS_TRIED = 3
"""For one set over HTTP."""


class WholeSets(Protocol):
    """Sets from other nodes, not page by page: see `dht.records.set_client.SetClient`."""

    async def read(self, address: str, key: bytes, after: bytes, take: Callable[[list[bytes], bytes], None]) -> bool:
        """What the node at `address` (TCP) holds at `key` after a position, in order: `take` gets it as it comes, with
        the position of the last. True if it came to its end. Never raises for what the node does."""


class LargeSets:
    """Sets over HTTP, one at a time: what one holder brings, the next need not. `doors`: where a node serves, by id.
    A holder has half of the time that is left, all of it if what it holds is `alone`: no other set differs. Which of
    equal ones comes first changes with `first`: it is not the same slow one every time."""

    def __init__(
        self,
        whole_sets: WholeSets | None,
        key: bytes,
        doors: Mapping[bytes, str],
        until: float,
        *,
        alone: bool,
        first: int,
    ) -> None:
        self._whole_sets = whole_sets
        self._key = key
        self._doors = doors
        self._until = until
        self._share = 1.0 if alone else 0.5
        self._first = first
        self.turn = asyncio.Lock()
        """To be held while reading."""

    def some_of(self, nodes: Sequence[Node]) -> list[Node]:
        """HOLDERS_TRIED of those that serve, in the order in which to ask them."""
        serving = [node for node in nodes if node.id in self._doors] if self._whole_sets is not None else []
        at = self._first % (len(serving) or 1)
        return [*serving[at:], *serving[:at]][:HOLDERS_TRIED]

    async def read(self, node: Node, after: bytes, take: Callable[[list[bytes], bytes], None]) -> bool:
        """See `WholeSets.read`."""
        assert self._whole_sets is not None
        try:
            async with asyncio.timeout((self._until - asyncio.get_running_loop().time()) * self._share):
                return await self._whole_sets.read(self._doors[node.id], self._key, after, take)
        except TimeoutError:
            return False


async def read_equal_sets(
    asking: Asking, large: LargeSets, key: bytes, nodes: Sequence[Node], told: Page | Parts, gathering: Gathering
) -> None:
    """Read sets that are said to be equal as one. If what is told of them is something else, each by itself."""
    if await _SetReading(asking, large, key, nodes, gathering).read(told) or len(nodes) == 1:
        return

    async def alone(node: Node) -> None:
        own = await asking.ask(node, Compare, Parts, key, *ordering.EVERYWHERE)
        if own is None:
            return
        if (known := gathering.equal_to(own.fingerprint)) is not None:
            gathering.settle([node], known)
        else:
            await _SetReading(asking, large, key, [node], gathering).read(own)

    await asyncio.gather(*map(alone, nodes))


class _Lacking(NamedTuple):
    """What of a range is to be fetched: the envelopes at these shortened positions; None: all."""

    low: int
    high: int
    shorts: Sequence[bytes] | None


class _SetReading:
    """What `nodes` hold at a key: equal sets, so each question goes to whichever of them answers. Whatever is answered,
    the questions come to an end."""

    def __init__(
        self, asking: Asking, large: LargeSets, key: bytes, nodes: Sequence[Node], gathering: Gathering
    ) -> None:
        self._asking = asking
        self._large = large
        self._key = key
        self._nodes = nodes
        self._gathering = gathering
        self._gate = asyncio.Semaphore(STRETCHES)
        self._questions = QUESTIONS
        self._told: defaultdict[bytes, set[bytes]] = defaultdict(set)
        """By node id, the positions that this node itself told of."""
        self._listed: defaultdict[bytes, set[bytes]] = defaultdict(set)
        """The same, as shortened positions of which some are still to be fetched."""

    async def read(self, told: Page | Parts) -> bool:
        """Read what a first answer promises. True if it is known now what each node holds."""
        complete = False
        if isinstance(told, Page):
            self._told[told.sender].update(map(ordering.position, told.envelopes))
        try:
            complete = await (self._read_all(told) if isinstance(told, Page) else self._read_difference(told))
        finally:
            known = self._settle(told.fingerprint, complete=complete)
        return known

    def _settle(self, fingerprint: bytes, *, complete: bool) -> bool:
        for node_id, shorts in self._listed.items():
            found = map(self._gathering.place, shorts)
            self._told[node_id].update(place for place in found if place is not None)
        everything = ordering.Places(set().union(*self._told.values()))
        if everything.fingerprint == fingerprint or (complete and len(self._nodes) == 1):
            self._gathering.settle(self._nodes, everything)
            return True
        for node_id, places in self._told.items():
            self._gathering.add(node_id, places)
        return False

    async def _read_all(self, first: Page) -> bool:
        """All that follows a first page."""
        if first.count >= LARGE:
            async with self._large.turn:
                if self._gathering.lacks_most(first.count) and await self._fetch_whole(b""):
                    return True
            for node_id, places in self._told.items():
                self._gathering.add(node_id, places)
        if not self._gathering.lacks_most(first.count):
            told = await self._ask(self._nodes, Compare, Parts, self._key, *ordering.EVERYWHERE)
            return told is not None and await self._read_difference(told)
        pieces = [] if first.next is None else ordering.stretches(first.next, STRETCHES)
        starts = [i % len(self._nodes) for i in range(len(pieces))]
        turned = [(*piece, [*self._nodes[i:], *self._nodes[:i]]) for i, piece in zip(starts, pieces, strict=True)]
        return all(await asyncio.gather(*(self._read_stretch(*piece) for piece in turned)))

    async def _read_difference(self, told: Parts) -> bool:
        """What is lacking here of a set, by its summary."""
        lacking: list[_Lacking] = []
        similar = self._gathering.most_similar_to(told.parts)
        return await self._survey(ordering.EVERYWHERE, told, similar, lacking, cuts=0) and await self._fetch(lacking)

    # --- finding what is lacking ---

    async def _survey(
        self, where: tuple[int, int], told: Parts, similar: ordering.Places, lacking: list[_Lacking], *, cuts: int
    ) -> bool:
        """Add to `lacking` what the set has in a range and is not here. `told`: its summary; `cuts`: how often the
        range of all was cut. False if it was not told, or nonsense."""
        if not told.parts:
            return self._listed_there(where, told, lacking)
        differing = similar.differing(*where, told.parts)
        for part in set(ordering.parts_of(*where)).difference(differing):
            self._told[told.sender].update(similar.places_between(*part))
        if cuts == NARROWINGS or (cuts and len(differing) > STRETCHES):
            lacking.append(_Lacking(*where, None))
            return True

        async def narrower(part: tuple[int, int]) -> bool:
            answer = await self._ask(self._nodes, Compare, Parts, self._key, *part)
            return answer is not None and await self._survey(part, answer, similar, lacking, cuts=cuts + 1)

        return all(await asyncio.gather(*map(narrower, differing)))

    def _listed_there(self, where: tuple[int, int], told: Parts, lacking: list[_Lacking]) -> bool:
        shorts = ordering.shorts(told.positions)
        if not all(ordering.lies_in(short, *where) for short in shorts):
            return False
        self._listed[told.sender].update(shorts)
        missing = self._missing(shorts)
        if missing:
            lacking.append(_Lacking(*where, missing))
        return True

    def _missing(self, shorts: Iterable[bytes]) -> list[bytes]:
        return sorted({short for short in shorts if self._gathering.place(short) is None})

    # --- fetching it ---

    async def _fetch(self, lacking: Sequence[_Lacking]) -> bool:
        if _count(lacking) >= LARGE:
            async with self._large.turn:
                lacking = self._still(lacking)  # another may have brought it meanwhile
                if _count(lacking) >= LARGE:
                    whole = await self._fetch_whole(ordering.position_before(min(one.low for one in lacking)))
                    lacking = [] if whole else self._still(lacking)
        return all(await asyncio.gather(*map(self._fetch_range, lacking)))

    def _still(self, lacking: Iterable[_Lacking]) -> list[_Lacking]:
        now = [one if one.shorts is None else one._replace(shorts=self._missing(one.shorts)) for one in lacking]
        return [one for one in now if one.shorts is None or one.shorts]

    async def _fetch_whole(self, after: bytes) -> bool:
        """All after a position over HTTP: the next holder goes on where one leaves off."""
        position = after
        for node in self._large.some_of(self._nodes):

            def take(envelopes: list[bytes], last: bytes, *, node_id: bytes = node.id) -> None:
                nonlocal position
                self._told[node_id].update(self._gathering.take(envelopes))
                position = last

            if await self._large.read(node, position, take):
                return True
        return False

    async def _fetch_range(self, lacking: _Lacking) -> bool:
        low, high, shorts = lacking
        up_to = high.to_bytes(ordering.POSITION_BYTES, "big")
        if shorts is None:
            return await self._read_stretch(ordering.position_before(low), up_to, self._nodes)
        if len(shorts) > PAGE_BY_PAGE_FROM:
            return await self._read_stretch(ordering.cursor_before(shorts[0]), up_to, self._nodes)
        return all(await asyncio.gather(*map(self._read_at, shorts)))

    async def _read_at(self, short: bytes) -> bool:
        """The envelope at a position, with those that share its page."""
        page = await self._ask(self._nodes, Records, Page, self._key, ordering.cursor_before(short))
        if page is not None:
            self._told[page.sender].update(self._gathering.take(page.envelopes))
        return page is not None

    async def _read_stretch(self, cursor: bytes, up_to: bytes, nodes: Sequence[Node]) -> bool:
        """What comes after `cursor` and up to `up_to`."""
        while (page := await self._ask(nodes, Records, Page, self._key, cursor)) is not None:
            self._told[page.sender].update(self._gathering.take(page.envelopes))
            if page.next is None or page.next >= up_to:
                return True
            if page.next <= cursor or not page.envelopes:
                return False
            cursor = page.next
        return False

    async def _ask(self, nodes: Sequence[Node], request: type[Request], answer: type[A], *args: Any) -> A | None:
        if not self._questions:
            return None
        self._questions -= 1
        async with self._gate:
            return await self._asking.ask_any(nodes, request, answer, *args)


def _count(lacking: Iterable[_Lacking]) -> int:
    """How many envelopes that is; a range that is lacking whole counts as many, for it is."""
    return sum(ordering.LISTED if one.shorts is None else len(one.shorts) for one in lacking)
