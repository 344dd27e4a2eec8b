"""Reading the set of records at a key: the union of what the nodes nearest to it hold.

Nodes whose sets have equal fingerprints are read as one, which any of them may serve. Of a large set that is new here,
one holder is asked over HTTP; what the others hold beyond it is found by comparing, which also tells whether that one
left something out. What arrives is passed on as it came, unjudged; the outcome says whether what did not arrive can be
taken for absent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

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

T = TypeVar("T")

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


class Known(Protocol):
    """What the reader of a set has of it already: see `dht.records.views.View`."""

    @property
    def ordered(self) -> rules.OrderedSet: ...

    def has(self, short: bytes) -> bool: ...


class Viewed(Known, Protocol):
    """What the reader keeps from one reading to the next."""

    @property
    def within(self) -> dict[bytes, bytes]:
        """By node id, the fingerprint of a set in which that node, asked for itself, had nothing to bring: it need not
        be looked into again. What one node says counts for it alone."""


class WholeSets(Protocol):
    """Sets from other nodes, not page by page: see `dht.records.set_client.SetClient`."""

    async def read(self, address: str, key: bytes, after: bytes, take: Callable[[list[bytes], bytes], None]) -> bool:
        """What the node at `address` (TCP) holds at `key` after a position, in order: `take` gets it as it comes, with
        the position of the last. True if it came to its end. Never raises for what the node does."""


class _Gathered:
    """What is known once more came to what was known before."""

    def __init__(self, envelopes: Iterable[bytes], known: Known | None) -> None:
        before = known.ordered.envelopes if known is not None else ()
        self.ordered = rules.OrderedSet({*before, *envelopes})
        self._known = known
        self._shorts = {place[: rules.SHORT_BYTES] for place in self.ordered.positions}

    def has(self, short: bytes) -> bool:
        return short in self._shorts or (self._known is not None and self._known.has(short))


@dataclass(frozen=True)
class ReadOutcome:
    """`envelopes` as peers sent them, not judged. `conclusive`: what is not among them does not exist. `whole` false:
    a set is known to hold more than what arrived in time."""

    envelopes: frozenset[bytes] = frozenset()
    conclusive: bool = False
    answered: int = 0
    whole: bool = True


class Reading:
    """`whole_sets` None: large sets are read page by page."""

    def __init__(self, lookups: Lookups, asking: Asking, tuning: Tuning, whole_sets: WholeSets | None) -> None:
        self._lookups = lookups
        self._asking = asking
        self._tuning = tuning
        self._whole_sets = whole_sets

    async def read(self, key: bytes, known: Viewed | None = None) -> ReadOutcome:
        """The union of what the nodes nearest to `key` hold, but for what is `known` already.

        The search ends at the lookup deadline, the reading of further pages PAGING_S later. When many nodes died at
        once, a first search may learn little but who is dead: then a second one follows.
        """
        deadline = asyncio.get_running_loop().time() + self._tuning.lookup_s
        found: set[bytes] = set()
        crawl: Crawl[Page] | Crawl[Parts]
        for _ in range(SEARCHES):
            if known is None:
                crawl, whole = await self._read_all(key, found, deadline)
            else:
                crawl, whole = await self._read_news(key, known, found, deadline)
            outcome = ReadOutcome(frozenset(found), crawl.conclusive and whole, len(crawl.answers), whole)
            if found or known or outcome.conclusive or not crawl.converged:
                break
        return outcome

    async def _read_all(self, key: bytes, found: set[bytes], deadline: float) -> tuple[Crawl[Page], bool]:
        crawl = await self._lookups.ask_nearest(key, deadline, Records, Page, key, None)
        answers = [(node, crawl.answers[node.id]) for node in crawl.nearest_answered(len(crawl.answers))]
        found.update(e for page in crawl.answers.values() for e in page.envelopes)
        sets = by_fingerprint((node, page.fingerprint) for node, page in answers if page.next is not None)

        until = asyncio.get_running_loop().time() + self._tuning.paging_s
        largest = max(sets.values(), key=len, default=[])
        if largest and crawl.answers[largest[0].id].count >= WHOLE_FROM:
            server = await self._read_whole(key, largest, crawl.answers, b"", found, until)
            if server is not None:
                known = _Gathered(found, None)

                async def beyond(nodes: list[Node]) -> bool:
                    others = [*(n for n in nodes if n.id != server.id), *(n for n in nodes if n.id == server.id)]
                    return await _EqualSets(self._asking, key, others, found).read_news(known)

                return crawl, await self._of_each_set(sets, beyond, until)

        async def rest(nodes: list[Node]) -> bool:
            return await _EqualSets(self._asking, key, nodes, found).read_after(crawl.answers[nodes[0].id].next)

        return crawl, await self._of_each_set(sets, rest, until)

    async def _read_news(
        self, key: bytes, view: Viewed, found: set[bytes], deadline: float
    ) -> tuple[Crawl[Parts], bool]:
        known: Known = view
        crawl = await self._lookups.ask_nearest(key, deadline, Compare, Parts, key, *rules.EVERYWHERE)
        answers = [(node, crawl.answers[node.id].fingerprint) for node in crawl.nearest_answered(len(crawl.answers))]
        held = known.ordered.fingerprint
        sets = by_fingerprint((n, print_) for n, print_ in answers if print_ not in (held, view.within.get(n.id)))
        until = asyncio.get_running_loop().time() + self._tuning.paging_s
        largest = max(sets.values(), key=len, default=[])
        if largest and (told := crawl.answers[largest[0].id]).count - len(known.ordered.envelopes) >= WHOLE_FROM:
            differing = known.ordered.differing(*rules.EVERYWHERE, told.parts)
            after = rules.position_before(differing[0][0]) if differing else b""
            if await self._read_whole(key, largest, crawl.answers, after, found, until) is not None:
                known = _Gathered(found, known)

        async def differences(nodes: list[Node]) -> bool:
            told = crawl.answers[nodes[0].id]
            whole = await _EqualSets(self._asking, key, nodes, found).read_difference(rules.EVERYWHERE, told, known)
            if whole and not found and len(nodes) == 1:
                view.within[nodes[0].id] = told.fingerprint
            return whole

        return crawl, await self._of_each_set(sets, differences, until)

    async def _read_whole(
        self,
        key: bytes,
        nodes: Sequence[Node],
        answers: Mapping[bytes, Page] | Mapping[bytes, Parts],
        after: bytes,
        found: set[bytes],
        until: float,
    ) -> Node | None:
        """What equal sets hold after a position, over HTTP: the next holder goes on where one leaves off. Who brought
        the last of it, whole or not; None if nobody brought anything."""
        if self._whole_sets is None:
            return None
        position, server = after, None

        def take(envelopes: list[bytes], last: bytes) -> None:
            nonlocal position, server
            found.update(envelopes)
            position, server = last, node

        open_to_all = [(node, door) for node in nodes if (door := answers[node.id].door)]
        for node, door in open_to_all[:HOLDERS_TRIED]:
            address = str(Address(address_of(node).host, door))
            try:
                async with asyncio.timeout_at(until):
                    if await self._whole_sets.read(address, key, position, take):
                        break
            except TimeoutError:
                break
        return server

    async def _of_each_set(
        self, sets: Mapping[bytes, list[Node]], read: Callable[[list[Node]], Awaitable[bool]], until: float
    ) -> bool:
        """Read as many sets that differ as it takes to meet every store that had its acks; of equal sets, one.

        `sets`: holders by fingerprint. One that cannot be read is replaced by the next. When one set is here whole,
        the others have LOOKUP_S left: a slow or lying holder must not keep the reader. `until`: in the event loop's
        time. True if one is whole.
        """
        loop = asyncio.get_running_loop()
        waiting = list(sets.values())
        wanted = self._tuning.replicas - self._tuning.acks + 1
        whole = 0
        async with OwnedTasks() as tasks:
            reading: set[asyncio.Task[bool]] = set()
            while (reading or waiting) and whole < wanted and loop.time() < until:
                while waiting and len(reading) + whole < wanted:
                    reading.add(tasks.run(_awaited(read(waiting.pop(0)))))
                done, reading = await asyncio.wait(
                    reading, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED
                )
                if read_now := sum(task.result() for task in done):
                    whole += read_now
                    until = min(until, loop.time() + self._tuning.lookup_s)
        return whole > 0 or not sets


class _EqualSets:
    """What `nodes` hold at a key: equal sets, so each question goes to whichever of them answers. All methods add to
    `found`, and return True if all they were to bring came. Whatever is answered, the questions come to an end."""

    def __init__(self, asking: Asking, key: bytes, nodes: Sequence[Node], found: set[bytes]) -> None:
        self._asking = asking
        self._key = key
        self._nodes = nodes
        self._found = found
        self._gate = asyncio.Semaphore(STRETCHES)
        self._questions = QUESTIONS

    async def read_after(self, cursor: bytes | None) -> bool:
        """All that follows a first page, in stretches that begin at different nodes. `cursor` None: nothing does."""
        pieces = [] if cursor is None else rules.stretches(cursor, STRETCHES)
        starts = [i % len(self._nodes) for i in range(len(pieces))]
        turned = [(*piece, [*self._nodes[i:], *self._nodes[:i]]) for i, piece in zip(starts, pieces, strict=True)]
        return all(await asyncio.gather(*(self._read_stretch(*piece) for piece in turned)))

    async def read_news(self, known: Known) -> bool:
        """What these sets have and we do not."""
        told = await self._ask(self._nodes, Compare, Parts, self._key, *rules.EVERYWHERE)
        return told is not None and await self.read_difference(rules.EVERYWHERE, told, known)

    async def read_difference(self, where: tuple[int, int], told: Parts, known: Known, *, cuts: int = 0) -> bool:
        """What these sets have in a range and we do not. `told`: its summary; `cuts`: how often the range was cut."""
        if not told.parts:
            return await self._read_listed(where, rules.shorts(told.positions), known)
        differing = known.ordered.differing(*where, told.parts)
        if cuts == NARROWINGS or (cuts and len(differing) > STRETCHES):
            return await self._read_stretch(
                rules.position_before(where[0]), where[1].to_bytes(rules.POSITION_BYTES, "big"), self._nodes
            )

        async def narrower(part: tuple[int, int]) -> bool:
            answer = await self._ask(self._nodes, Compare, Parts, self._key, *part)
            return answer is not None and await self.read_difference(part, answer, known, cuts=cuts + 1)

        return all(await asyncio.gather(*map(narrower, differing)))

    async def _read_listed(self, where: tuple[int, int], positions: Sequence[bytes], known: Known) -> bool:
        """Those envelopes of a list that are not known."""
        if not all(rules.lies_in(short, *where) for short in positions):
            return False
        missing = sorted({short for short in positions if not known.has(short)})
        if len(missing) > PAGE_BY_PAGE_FROM:
            return await self._read_stretch(
                rules.cursor_before(missing[0]), where[1].to_bytes(rules.POSITION_BYTES, "big"), self._nodes
            )
        return all(await asyncio.gather(*(self._read_at(short) for short in missing)))

    async def _read_at(self, short: bytes) -> bool:
        """The envelope at a position, with those that share its page."""
        page = await self._ask(self._nodes, Records, Page, self._key, rules.cursor_before(short))
        if page is not None:
            self._found.update(page.envelopes)
        return page is not None

    async def _read_stretch(self, cursor: bytes, up_to: bytes, nodes: Sequence[Node]) -> bool:
        """What comes after `cursor` and up to `up_to`."""
        while (page := await self._ask(nodes, Records, Page, self._key, cursor)) is not None:
            self._found.update(page.envelopes)
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


def by_fingerprint(sets: Iterable[tuple[Node, bytes]]) -> dict[bytes, list[Node]]:
    """Who holds equal sets, in the order given."""
    holders: dict[bytes, list[Node]] = {}
    for node, fingerprint in sets:
        holders.setdefault(fingerprint, []).append(node)
    return holders


async def _awaited(result: Awaitable[T]) -> T:
    return await result
