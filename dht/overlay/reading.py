"""Reading the set of records at a key: the union of what the nodes nearest to it hold, and who of them holds what.

Nodes whose sets have equal fingerprints are read as one. A set that is known already, by its fingerprint, is not read
again; of any other it is found by comparing with the most similar known one what is lacking here, and only that is
fetched: over HTTP if it is much, in pages if it is little. What arrives is passed on as it came, unjudged; the outcome
says who holds it, and whether what did not arrive can be taken for absent.

Every holder may lie. So a position counts for the node that told of it, and for others of an equal fingerprint only if
what was told in all has that fingerprint; otherwise each of them is read by itself. And nobody's answers keep the
reader from the other holders: all are read at the same time, nobody has more than half of the time that is left for
sending a large set unless all others have the same, and the time ends only when several are here whole.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from kademlia.node import Node

from dht import rules
from dht.overlay.asking import Asking
from dht.overlay.crawl import Crawl
from dht.overlay.datagrams import Address
from dht.overlay.lookups import Lookups
from dht.overlay.messages import A, Compare, Page, Parts, Records, Request
from dht.overlay.routing import address_of
from dht.overlay.tuning import Tuning
from dht.tasks import OwnedTasks

SEARCHES = 2
QUESTIONS = 8192
"""At most so many are asked about one set: a full key has some 5,500 pages, a liar has any number."""
STRETCHES = 16
"""Parts of a large set that are read at the same time."""
NARROWINGS = 2
"""So often the range of all positions is cut; a part of a part holds two records of a full key, unless somebody chose
records by their hashes to crowd it."""
PAGE_BY_PAGE_FROM = 4
"""More missing envelopes of one range than this are read page by page, fewer each for itself."""
WHOLE_FROM = 256
"""Who lacks so many envelopes asks for the set over HTTP: it would be some 80 pages."""
HOLDERS_TRIED = 3
"""For one set over HTTP."""


class Known(Protocol):
    """What the reader of a set has of it already: see `dht.records.views.View`."""

    @property
    def ordered(self) -> rules.OrderedSet: ...

    @property
    def held(self) -> Mapping[bytes, rules.Places]:
        """By node id, what that node was last found to hold."""

    def place(self, short: bytes) -> bytes | None:
        """The position of an envelope that was seen before, whatever became of it, from its first SHORT_BYTES."""


class _Nothing:
    def __init__(self) -> None:
        self.ordered = rules.OrderedSet(())
        self.held: dict[bytes, rules.Places] = {}

    def place(self, short: bytes) -> None:
        return None


class WholeSets(Protocol):
    """Sets from other nodes, not page by page: see `dht.records.set_client.SetClient`."""

    async def read(self, address: str, key: bytes, after: bytes, take: Callable[[list[bytes], bytes], None]) -> bool:
        """What the node at `address` (TCP) holds at `key` after a position, in order: `take` gets it as it comes, with
        the position of the last. True if it came to its end. Never raises for what the node does."""


@dataclass(frozen=True)
class ReadOutcome:
    """`envelopes` as peers sent them, not judged; `held`, by node id, the positions of what was found to be there,
    known before or not. `conclusive`: what is not among them does not exist. `whole` false: the sets of too few holders
    are here to their ends to rely on what is."""

    envelopes: frozenset[bytes] = frozenset()
    held: Mapping[bytes, rules.Places] = field(default_factory=dict)
    conclusive: bool = False
    answered: int = 0
    whole: bool = True


class Gathering:
    """What one reading brings together, over what was known before."""

    def __init__(self, known: Known) -> None:
        self.envelopes: set[bytes] = set()
        """Those not known before."""
        self.held: dict[bytes, rules.Places] = {}
        self.read: set[bytes] = set()
        """Nodes whose sets are here whole."""
        self._known = known
        self._places: dict[bytes, bytes] = {}

    def take(self, envelopes: Iterable[bytes]) -> list[bytes]:
        """Their positions."""
        places: list[bytes] = []
        for envelope in envelopes:
            place = rules.position(envelope)
            places.append(place)
            if self._known.place(place[: rules.SHORT_BYTES]) is None:
                self._places[place[: rules.SHORT_BYTES]] = place
                self.envelopes.add(envelope)
        return places

    def place(self, short: bytes) -> bytes | None:
        """The position of an envelope that is here, or was seen before."""
        return self._places.get(short) or self._known.place(short)

    def settle(self, nodes: Iterable[Node], places: rules.Places) -> None:
        """These nodes hold just this."""
        for node in nodes:
            self.held[node.id] = places
            self.read.add(node.id)

    def add(self, node_id: bytes, places: set[bytes]) -> None:
        """This node holds that, and perhaps more; what it held before may still be there."""
        before = self.held.get(node_id) or self._known.held.get(node_id) or rules.Places()
        both = places.union(before.positions)
        self.held[node_id] = rules.Places(both if len(both) <= 2 * rules.MAX_PER_KEY else places)

    def equal_to(self, fingerprint: bytes) -> rules.Places | None:
        """A set that is here already."""
        found = next((places for places in self._sets() if places.fingerprint == fingerprint), None)
        if found is None and self._known.ordered.fingerprint == fingerprint:
            return rules.Places(self._known.ordered.positions)
        return found

    def lacks_most(self, told: Page | Parts) -> bool:
        """True if no set is here that is nearly as large, or large enough to begin with."""
        most = max(len(places.positions) for places in (*self._sets(), self._known.ordered))
        return most < min(WHOLE_FROM, told.count // 2)

    def most_similar_to(self, told: Parts) -> rules.Places:
        """Of the sets that are here, the one of which the fewest parts differ from what is told in parts."""
        sets = {id(places): places for places in (*self._sets(), self._known.ordered)}
        return min(sets.values(), key=lambda places: len(places.differing(*rules.EVERYWHERE, told.parts)))

    def _sets(self) -> Iterable[rules.Places]:
        return (*self.held.values(), *self._known.held.values())


class Reading:
    """`whole_sets` None: large sets are read page by page."""

    def __init__(self, lookups: Lookups, asking: Asking, tuning: Tuning, whole_sets: WholeSets | None) -> None:
        self._lookups = lookups
        self._asking = asking
        self._tuning = tuning
        self._whole_sets = whole_sets
        self._readings = 0

    async def read(self, key: bytes, known: Known | None = None) -> ReadOutcome:
        """What the nodes nearest to `key` hold, without the envelopes that are `known` already.

        The search ends at the lookup deadline, the reading of the sets PAGING_S later. When many nodes died at once, a
        first search may learn little but who is dead: then a second one follows.
        """
        deadline = asyncio.get_running_loop().time() + self._tuning.lookup_s
        gathering = Gathering(known or _Nothing())
        crawl: Crawl[Page] | Crawl[Parts]
        for _ in range(SEARCHES):
            if known is None:
                crawl = await self._lookups.ask_nearest(key, deadline, Records, Page, key, None)
            else:
                crawl = await self._lookups.ask_nearest(key, deadline, Compare, Parts, key, *rules.EVERYWHERE)
            nodes = crawl.nearest_answered(len(crawl.answers))
            whole = await self._read_sets(key, nodes, crawl.answers, gathering)
            if gathering.envelopes or known or (crawl.conclusive and whole) or not crawl.converged:
                break
        return ReadOutcome(
            frozenset(gathering.envelopes), gathering.held, crawl.conclusive and whole, len(crawl.answers), whole
        )

    async def _read_sets(
        self,
        key: bytes,
        nodes: Sequence[Node],
        answers: Mapping[bytes, Page] | Mapping[bytes, Parts],
        gathering: Gathering,
    ) -> bool:
        """Read what `nodes`, nearest first, did not tell in their first answers.

        True if enough sets are here whole: as many as it takes to meet every store that had its acks, or half of those
        that answered. Then the others have LOOKUP_S left: a slow or lying holder must not keep the reader.
        """
        groups: dict[bytes, list[Node]] = {}
        for node in nodes:
            told = answers[node.id]
            if isinstance(told, Page):
                places = gathering.take(told.envelopes)
                if told.next is None:
                    gathering.settle([node], rules.Places(places))
                    continue
                gathering.add(node.id, set(places))
            elif (known := gathering.equal_to(told.fingerprint)) is not None:
                gathering.settle([node], known)
                continue
            groups.setdefault(told.fingerprint, []).append(node)

        near = nodes[: self._tuning.replicas]
        wanted = min(self._tuning.replicas - self._tuning.acks + 1, (len(near) + 1) // 2)

        def enough() -> bool:
            return sum(node.id in gathering.read for node in near) >= wanted

        loop = asyncio.get_running_loop()
        until = loop.time() + self._tuning.paging_s
        doors = {node.id: door for node in nodes if (door := _door(node, answers[node.id])) is not None}
        self._readings += 1
        large = _LargeSets(
            self._whole_sets, key, doors, until, share=1 / min(2, len(groups) or 1), first=self._readings
        )
        async with OwnedTasks() as tasks:
            reading: set[asyncio.Task[None]] = set()
            for group in sorted(groups.values(), key=len, reverse=True):
                told = answers[group[0].id]
                if len(reading) == 1 and gathering.lacks_most(told):  # then compare with what the first one has
                    await asyncio.wait(reading, timeout=self._tuning.lookup_s)
                reading.add(tasks.run(_read_group(self._asking, large, key, group, told, gathering)))
            while reading and loop.time() < until:
                if enough():
                    until = min(until, loop.time() + self._tuning.lookup_s)
                _, reading = await asyncio.wait(
                    reading, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED
                )
        return enough()


def _door(node: Node, told: Page | Parts) -> str | None:
    return str(Address(address_of(node).host, told.door)) if told.door else None


class _LargeSets:
    """Sets over HTTP, one at a time: what one holder brings, the next need not. `doors`: where a node serves, by id.
    A holder takes no more than `share` of the time that is left. Which of several comes first changes with `first`: it
    is not the same slow one every time."""

    def __init__(
        self,
        whole_sets: WholeSets | None,
        key: bytes,
        doors: Mapping[bytes, str],
        until: float,
        *,
        share: float,
        first: int,
    ) -> None:
        self._whole_sets = whole_sets
        self._key = key
        self._doors = doors
        self._until = until
        self._share = share
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


async def _read_group(
    asking: Asking, large: _LargeSets, key: bytes, nodes: Sequence[Node], told: Page | Parts, gathering: Gathering
) -> None:
    """Read sets that are said to be equal as one. If what is told of them is something else, each by itself."""
    if await _SetReading(asking, large, key, nodes, gathering).read(told) or len(nodes) == 1:
        return

    async def alone(node: Node) -> None:
        own = await asking.ask(node, Compare, Parts, key, *rules.EVERYWHERE)
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
        self, asking: Asking, large: _LargeSets, key: bytes, nodes: Sequence[Node], gathering: Gathering
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
            self._told[told.sender].update(map(rules.position, told.envelopes))
        try:
            complete = await (self._read_all(told) if isinstance(told, Page) else self._read_difference(told))
        finally:
            known = self._settle(told.fingerprint, complete=complete)
        return known

    def _settle(self, fingerprint: bytes, *, complete: bool) -> bool:
        for node_id, shorts in self._listed.items():
            found = map(self._gathering.place, shorts)
            self._told[node_id].update(place for place in found if place is not None)
        everything = rules.Places(set().union(*self._told.values()))
        if everything.fingerprint == fingerprint or (complete and len(self._nodes) == 1):
            self._gathering.settle(self._nodes, everything)
            return True
        for node_id, places in self._told.items():
            self._gathering.add(node_id, places)
        return False

    async def _read_all(self, first: Page) -> bool:
        """All that follows a first page."""
        if first.count >= WHOLE_FROM:
            async with self._large.turn:
                if self._gathering.lacks_most(first) and await self._fetch_whole(b""):
                    return True
            for node_id, places in self._told.items():
                self._gathering.add(node_id, places)
        if not self._gathering.lacks_most(first):
            told = await self._ask(self._nodes, Compare, Parts, self._key, *rules.EVERYWHERE)
            return told is not None and await self._read_difference(told)
        pieces = [] if first.next is None else rules.stretches(first.next, STRETCHES)
        starts = [i % len(self._nodes) for i in range(len(pieces))]
        turned = [(*piece, [*self._nodes[i:], *self._nodes[:i]]) for i, piece in zip(starts, pieces, strict=True)]
        return all(await asyncio.gather(*(self._read_stretch(*piece) for piece in turned)))

    async def _read_difference(self, told: Parts) -> bool:
        """What is lacking here of a set, by its summary."""
        lacking: list[_Lacking] = []
        similar = self._gathering.most_similar_to(told)
        return await self._survey(rules.EVERYWHERE, told, similar, lacking, cuts=0) and await self._fetch(lacking)

    # --- finding what is lacking ---

    async def _survey(
        self, where: tuple[int, int], told: Parts, similar: rules.Places, lacking: list[_Lacking], *, cuts: int
    ) -> bool:
        """Add to `lacking` what the set has in a range and is not here. `told`: its summary; `cuts`: how often the
        range of all was cut. False if it was not told, or nonsense."""
        if not told.parts:
            return self._listed_there(where, told, lacking)
        differing = similar.differing(*where, told.parts)
        for part in set(rules.parts_of(*where)).difference(differing):
            self._told[told.sender].update(similar.places_between(*part))
        if cuts == NARROWINGS or (cuts and len(differing) > STRETCHES):
            lacking.append(_Lacking(*where, None))
            return True

        async def narrower(part: tuple[int, int]) -> bool:
            answer = await self._ask(self._nodes, Compare, Parts, self._key, *part)
            return answer is not None and await self._survey(part, answer, similar, lacking, cuts=cuts + 1)

        return all(await asyncio.gather(*map(narrower, differing)))

    def _listed_there(self, where: tuple[int, int], told: Parts, lacking: list[_Lacking]) -> bool:
        shorts = rules.shorts(told.positions)
        if not all(rules.lies_in(short, *where) for short in shorts):
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
        if _count(lacking) >= WHOLE_FROM:
            async with self._large.turn:
                lacking = self._still(lacking)  # another may have brought it meanwhile
                if _count(lacking) >= WHOLE_FROM:
                    whole = await self._fetch_whole(rules.position_before(min(one.low for one in lacking)))
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
        up_to = high.to_bytes(rules.POSITION_BYTES, "big")
        if shorts is None:
            return await self._read_stretch(rules.position_before(low), up_to, self._nodes)
        if len(shorts) > PAGE_BY_PAGE_FROM:
            return await self._read_stretch(rules.cursor_before(shorts[0]), up_to, self._nodes)
        return all(await asyncio.gather(*map(self._read_at, shorts)))

    async def _read_at(self, short: bytes) -> bool:
        """The envelope at a position, with those that share its page."""
        page = await self._ask(self._nodes, Records, Page, self._key, rules.cursor_before(short))
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
    return sum(rules.LISTED if one.shorts is None else len(one.shorts) for one in lacking)
