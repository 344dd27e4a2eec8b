"""The overlay of one node: join, look up, store and read sets of records at keys, and answer others who do.

It knows keys and envelopes as bytes; what may stand where is decided by the `Shelf` it is given.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol, TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kademlia.node import Node
from msgspec import Struct

from dht import rules
from dht.overlay import messages
from dht.overlay.crawl import Crawl, CrawlPolicy
from dht.overlay.datagrams import Address, DatagramTransport, OpenTransport
from dht.overlay.endpoint import Endpoint, Peer, size_of
from dht.overlay.messages import (
    A,
    AnyAnswer,
    AnyRequest,
    Compare,
    Find,
    Nodes,
    Page,
    Parts,
    Ping,
    Pong,
    Proof,
    Records,
    Request,
    Store,
    Stored,
)
from dht.overlay.routing import SUSPICIOUS_SHARE, Routing, address_of, refresh_targets
from dht.sealing import MAX_PLAINTEXT, Keyring, Sealer
from dht.seats import UNPROVEN
from dht.tasks import OwnedTasks
from protocol.identifiers import KEY_BYTES

log = structlog.get_logger(__name__)
T = TypeVar("T")

REFRESH_PREFIXES = 5
FIRST_REFRESH_S = 15.0
REFRESH_S = (600.0, 900.0)
"""Bounds of the random pause between two refreshes."""
REJOIN_S = (1.0, 15.0)
"""First and longest pause between attempts to join while nobody is known."""
TICK_S = 1.0
PROBE_S = 5.0
"""While suspiciously many members are lost, PROBES of them are asked this often, however long they have been silent."""
PROBES = 2
RETURN_S = 15.0
"""One return is told once: the others come back within this time."""
REFRESH_AFTER_RETURN_S = 2.0
PAGE_CONTACTS = 8
PAGE_RESERVE = 24
"""Bytes kept free in a page for the next cursor and the list headers."""
MAX_PAGES = 4096
SEARCHES = 2
STRETCHES = 16
"""Parts of a large set that are read at the same time."""
MAX_CHECKS = 64
"""Nodes whose claimed id is being checked at one time."""

ACKNOWLEDGED = {rules.Verdict.KEPT, rules.Verdict.SUPERSEDED}
PAGE_BY_PAGE_FROM = 4
"""More missing envelopes of one range than this are read page by page, fewer each for itself."""
COMPARE_FROM = 16
"""Of a larger set only those records are sent that the receiver lacks: a question is cheaper than many stores."""
STORE_OVERHEAD = 64
"""Bytes of a store request beside its envelopes."""


class Tuning(Struct, frozen=True, kw_only=True):
    """Kademlia's constants. `k` bucket size; `alpha` questions at once; `replicas` nodes that keep a record;
    `acks` of them make a store good; `lookup_s` deadline of a lookup; `paging_s` that of a large set's
    further pages."""

    k: int = 20
    alpha: int = 4
    replicas: int = 8
    acks: int = 5
    lookup_s: float = 2.0
    paging_s: float = 10.0

    @property
    def policy(self) -> CrawlPolicy:
        return CrawlPolicy(self.replicas, self.alpha, self.acks)


class Shelf(Protocol):
    """What this node keeps for others. A Problem is raised only when its disk fails."""

    def ordered(self, key: bytes) -> rules.OrderedSet: ...

    def offer(self, key: bytes, envelopes: Sequence[bytes], via: bytes) -> Sequence[int]:
        """One `dht.rules.Verdict` for each envelope. `via`: the proven id of the node that sent them, or UNPROVEN."""


class Known(Protocol):
    """What the reader of a set has of it already: see `dht.views.View`."""

    @property
    def ordered(self) -> rules.OrderedSet: ...

    def has(self, short: bytes) -> bool: ...


@dataclass(frozen=True)
class StoreOutcome:
    """`asked` nodes were sent the records, `acks` answered that they hold them, or something newer (`superseded`).
    `enough`: as many as make a store good, or all of them in a small mesh."""

    asked: int
    acks: int
    enough: bool
    superseded: bool = False


@dataclass(frozen=True)
class ReadOutcome:
    """`envelopes` as peers sent them, not judged. `conclusive`: what is not among them does not exist. `whole` false:
    a set is known to hold more than what arrived in time."""

    envelopes: frozenset[bytes] = frozenset()
    conclusive: bool = False
    answered: int = 0
    whole: bool = True


class Overlay:
    """Made by `running_overlay`. All methods run in its event loop; none raises for what peers do or fail to do."""

    def __init__(
        self,
        *,
        identity: Ed25519PrivateKey,
        keyring: Keyring,
        shelf: Shelf,
        tuning: Tuning,
        tasks: OwnedTasks,
        on_newcomer: Callable[[bytes], None],
        on_return: Callable[[], None],
        chance: random.Random,
    ) -> None:
        self._chance = chance
        self._sealer = Sealer(keyring, random=chance.randbytes)
        self._endpoint = Endpoint(
            identity=identity,
            mesh=keyring.mesh,
            sealer=self._sealer,
            serve=self._serve,
            on_late=self._heard,
            fresh_bytes=chance.randbytes,
        )
        self.id = self._endpoint.id
        self.address = Address("", 0)
        self._routing = Routing(self.id, tuning.k)
        self._shelf = shelf
        self._tuning = tuning
        self._tasks = tasks
        self._on_newcomer = on_newcomer
        self._on_return = on_return
        self._bootstrap: list[tuple[str, int]] = []
        self._checking: set[bytes] = set()
        self._returned_at = -RETURN_S
        self._lookups: Counter[str] = Counter()
        self._next_refresh = 0.0

    def attach(self, transport: DatagramTransport) -> None:
        self.address = transport.local
        self._endpoint.attach(transport)

    def received(self, datagram: bytes, address: Address) -> None:
        self._endpoint.received(datagram, address)

    # --- membership ---

    @property
    def alone(self) -> bool:
        """True if no other node is known to exist: then this node's own records are the whole truth."""
        return not (len(self._routing) or self._bootstrap or self._routing.lost_members())

    @property
    def connected(self) -> bool:
        return len(self._routing) > 0

    def use_keyring(self, keyring: Keyring) -> None:
        self._sealer.use(keyring)

    def add_bootstrap(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Addresses at which members may be found, asked whenever this node knows nobody."""
        self._bootstrap += [a for a in addresses if a not in self._bootstrap]

    def contacts(self) -> list[tuple[bytes, Address]]:
        """Node id and address of every live contact, nearest first."""
        return [(n.id, address_of(n)) for n in self._routing.closest(self.id, len(self._routing) or 1)]

    def nearest_contacts(self, key: bytes, count: int) -> list[bytes]:
        """Ids of the contacts nearest to a key, from the routing table alone."""
        return [n.id for n in self._routing.closest(key, count)]

    async def join(self) -> bool:
        """Ask all bootstrap addresses at once, then fill the routing table. True if anybody answered."""
        numeric = await asyncio.gather(*(_resolved(host, port) for host, port in self._bootstrap))
        lost = [address_of(node) for node in self._routing.lost_members()]
        addresses = dict.fromkeys([*(a for found in numeric for a in found), *lost])
        await asyncio.gather(*(self._call(Peer(None, a), Ping, Pong) for a in addresses if a != self.address))
        if self.connected:
            await self.refresh()
        return self.connected

    async def refresh(self) -> None:
        """Look up the own id and one id in each far part of the id space."""
        targets = [self.id, *refresh_targets(self.id, REFRESH_PREFIXES, self._chance.randbytes(KEY_BYTES))]
        await asyncio.gather(*(self._find(target) for target in targets))

    async def maintain(self) -> None:
        """Rejoin when alone, ask lost members again, refresh the table. Runs until cancelled."""
        loop = asyncio.get_running_loop()
        self._next_refresh = loop.time() + FIRST_REFRESH_S
        next_join, pause = loop.time(), REJOIN_S[0]
        next_probe = loop.time() + PROBE_S
        while True:
            now = loop.time()
            if not self.connected and now >= next_join:
                joined = await self.join()
                pause = REJOIN_S[0] if joined else min(2 * pause, REJOIN_S[1])
                next_join = loop.time() + pause
            for node in self._routing.to_ask_again(now):
                self._check(node.id, address_of(node))
            if now >= next_probe:
                next_probe = now + PROBE_S
                self._probe_lost()
            if now >= self._next_refresh:
                self._next_refresh = now + self._chance.uniform(*REFRESH_S)
                await self.refresh()
            await asyncio.sleep(TICK_S)

    def _probe_lost(self) -> None:
        """Ask a few lost members, so that the end of a cut is noticed within seconds even after hours."""
        if self._routing.lost_share < SUSPICIOUS_SHARE:
            return
        lost = self._routing.lost_members()
        for node in self._chance.sample(lost, min(PROBES, len(lost))):
            self._check(node.id, address_of(node))

    def _came_back(self) -> None:
        """A lost member answered while many were lost: this side, or that one, is reachable again."""
        now = asyncio.get_running_loop().time()
        if now - self._returned_at >= RETURN_S:
            self._returned_at = now
            log.info("mesh-reached-again", lost=len(self._routing.lost_members()), contacts=len(self._routing))
            self._routing.end_rests(now)
            self._next_refresh = min(self._next_refresh, now + REFRESH_AFTER_RETURN_S)
            self._on_return()

    # --- records ---

    async def store(self, key: bytes, envelopes: Sequence[bytes]) -> StoreOutcome:
        """Hand records to the nodes nearest to `key`. Returns at enough acks; the slower ones are told all the same."""
        crawl = await self._find(key)
        nearest = crawl.nearest_answered(self._tuning.replicas)
        return await self._store_at(nearest, key, envelopes)

    async def store_at(self, node_ids: Sequence[bytes], key: bytes, envelopes: Sequence[bytes]) -> StoreOutcome:
        """Hand records to certain contacts."""
        nodes = [node for node_id in node_ids if (node := self._routing.table.get(node_id)) is not None]
        return await self._store_at(nodes, key, envelopes)

    async def _store_at(self, nodes: Sequence[Node], key: bytes, envelopes: Sequence[bytes]) -> StoreOutcome:
        waiting = {self._tasks.run(self._hand_over(node, key, envelopes)) for node in nodes}
        acks, superseded = 0, False
        while waiting and acks < self._tuning.acks:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            verdicts = [v for task in done if (v := task.result()) is not None]
            acks += len(verdicts)
            superseded = superseded or any(rules.Verdict.SUPERSEDED in v for v in verdicts)
        enough = 0 < acks >= min(self._tuning.acks, len(nodes))
        return StoreOutcome(len(nodes), acks, enough, superseded)

    async def _hand_over(self, node: Node, key: bytes, envelopes: Sequence[bytes]) -> list[int] | None:
        """The verdicts, or None if the node went silent or refused everything."""
        verdicts: list[int] = []
        if len(envelopes) > COMPARE_FROM:
            lacking = await self._lacking(node, key, envelopes)
            if lacking is None:
                return None
            verdicts += [rules.Verdict.KEPT] * (len(envelopes) - len(lacking))
            envelopes = lacking
        for batch in rules.batches(envelopes, MAX_PLAINTEXT - STORE_OVERHEAD):
            stored = await self._ask(node, Store, Stored, key, tuple(batch))
            if stored is None:
                return None
            verdicts += stored.verdicts
        return verdicts if ACKNOWLEDGED.intersection(verdicts) else None

    async def _lacking(self, node: Node, key: bytes, envelopes: Sequence[bytes]) -> list[bytes] | None:
        """Which of many envelopes a node may lack, by one look at what it holds. None if it went silent."""
        told = await self._ask(node, Compare, Parts, key, *rules.EVERYWHERE)
        if told is None:
            return None
        ours = rules.OrderedSet(envelopes)
        if not told.parts:
            held = set(rules.shorts(told.positions))
            return [e for e in ours.envelopes if rules.position(e)[: rules.SHORT_BYTES] not in held]
        pairs = zip(rules.parts_of(*rules.EVERYWHERE), rules.shorts(told.parts), strict=False)
        return [e for part, digest in pairs if digest != ours.fingerprint_of(*part) for e in ours.between(*part)]

    async def read(self, key: bytes, known: Known | None = None) -> ReadOutcome:
        """The union of what the nodes nearest to `key` hold, but for what is `known` already.

        The search ends at the lookup deadline, the reading of further pages PAGING_S later. When many nodes died at
        once, a first search may learn little but who is dead: then a second one follows.
        """
        deadline = asyncio.get_running_loop().time() + self._tuning.lookup_s
        found: set[bytes] = set()
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
        crawl = self._crawl(key, Records, Page, key, None)
        await crawl.run(deadline)
        self._count_lookup(crawl)
        found.update(e for page in crawl.answers.values() for e in page.envelopes)
        sets: dict[bytes, list[Node]] = {}
        for node in crawl.nearest_answered(len(crawl.answers)):
            if crawl.answers[node.id].next is not None:
                sets.setdefault(crawl.answers[node.id].fingerprint, []).append(node)

        async def rest(nodes: list[Node]) -> bool:
            pieces = self._stretches(crawl.answers[nodes[0].id])
            turned = [(*piece, nodes[i % len(nodes) :] + nodes[: i % len(nodes)]) for i, piece in enumerate(pieces)]
            return all(await asyncio.gather(*(self._read_stretch(key, *piece, found) for piece in turned)))

        return crawl, await self._of_each_set(sets, rest)

    async def _read_news(
        self, key: bytes, known: Known, found: set[bytes], deadline: float
    ) -> tuple[Crawl[Parts], bool]:
        crawl = self._crawl(key, Compare, Parts, key, *rules.EVERYWHERE)
        await crawl.run(deadline)
        self._count_lookup(crawl)
        sets: dict[bytes, list[Node]] = {}
        for node in crawl.nearest_answered(len(crawl.answers)):
            if (fingerprint := crawl.answers[node.id].fingerprint) != known.ordered.fingerprint:
                sets.setdefault(fingerprint, []).append(node)

        async def differences(nodes: list[Node]) -> bool:
            gate = asyncio.Semaphore(STRETCHES)
            told = crawl.answers[nodes[0].id]
            return await self._read_difference(key, rules.EVERYWHERE, told, nodes, known, found, gate)

        return crawl, await self._of_each_set(sets, differences)

    async def _of_each_set(
        self, sets: Mapping[bytes, list[Node]], read: Callable[[list[Node]], Awaitable[bool]]
    ) -> bool:
        """Read as many sets that differ as it takes to meet every store that had its acks; of equal sets, one.

        `sets`: holders by fingerprint. One that cannot be read is replaced by the next. When one set is here whole,
        the others have LOOKUP_S left: a slow or lying holder must not keep the reader. True if one is whole.
        """
        loop = asyncio.get_running_loop()
        waiting = list(sets.values())
        until = loop.time() + self._tuning.paging_s
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

    async def _read_difference(
        self,
        key: bytes,
        where: tuple[int, int],
        told: Parts,
        nodes: Sequence[Node],
        known: Known,
        found: set[bytes],
        gate: asyncio.Semaphore,
    ) -> bool:
        """Add to `found` what `nodes`, who hold equal sets, have in a range and we do not. `told`: its summary."""
        if not told.parts:
            missing = [short for short in rules.shorts(told.positions) if not known.has(short)]
            if len(missing) > PAGE_BY_PAGE_FROM:
                up_to = where[1].to_bytes(rules.POSITION_BYTES, "big")
                return await self._read_stretch(key, rules.cursor_before(missing[0]), up_to, nodes, found)
            return all(await asyncio.gather(*(self._read_at(key, short, nodes, found, gate) for short in missing)))
        if where[1] - where[0] < rules.PARTS:
            return False  # so narrow a range holds no more than can be listed: a liar
        pairs = zip(rules.parts_of(*where), rules.shorts(told.parts), strict=False)
        ranges = [part for part, digest in pairs if digest != known.ordered.fingerprint_of(*part)]

        async def narrower(part: tuple[int, int]) -> bool:
            async with gate:
                answer = await self._ask_any(nodes, Compare, Parts, key, *part)
            return answer is not None and await self._read_difference(key, part, answer, nodes, known, found, gate)

        return all(await asyncio.gather(*map(narrower, ranges)))

    async def _read_at(
        self, key: bytes, short: bytes, nodes: Sequence[Node], found: set[bytes], gate: asyncio.Semaphore
    ) -> bool:
        """Fetch the envelope at a position, with those that share its page."""
        async with gate:
            page = await self._ask_any(nodes, Records, Page, key, rules.cursor_before(short))
        if page is not None:
            found.update(page.envelopes)
        return page is not None

    def _count_lookup(self, crawl: Crawl[A]) -> None:
        self._lookups.update(count=1, hops=crawl.hops, answers=len(crawl.answers))

    def _stretches(self, first: Page) -> list[tuple[bytes, bytes]]:
        return [] if first.next is None else rules.stretches(first.next, STRETCHES)

    async def _read_stretch(
        self, key: bytes, cursor: bytes, up_to: bytes, nodes: Sequence[Node], found: set[bytes]
    ) -> bool:
        """Add to `found` what `nodes`, who hold equal sets, have after `cursor` and up to `up_to`. True if all came."""
        for _ in range(MAX_PAGES):
            page = await self._ask_any(nodes, Records, Page, key, cursor)
            if page is None or (page.next is not None and page.next <= cursor):
                return False
            found.update(page.envelopes)
            if page.next is None or page.next >= up_to:
                return True
            cursor = page.next
        return False

    # --- asking ---

    async def _find(self, key: bytes) -> Crawl[Nodes]:
        crawl = self._crawl(key, Find, Nodes, key)
        await crawl.run(asyncio.get_running_loop().time() + self._tuning.lookup_s)
        return crawl

    def _crawl(self, key: bytes, request: type[Request], answer: type[A], *args: Any) -> Crawl[A]:
        now = asyncio.get_running_loop().time()
        seeds = [n for n in self._routing.closest(key, self._tuning.k) if not self._routing.is_resting(n.id, now)]
        return Crawl[A](
            key,
            seeds or self._routing.lost_members(),
            self._tuning.policy,
            own_id=self.id,
            ask=lambda node: self._ask(node, request, answer, *args),
            usable=lambda node: not self._routing.is_resting(node.id, now),
            missing=self._routing.missing(now),
            patience=self._patience,
            spawn=self._tasks.run,
        )

    async def _ask(self, node: Node, request: type[Request], answer: type[A], *args: Any) -> A | None:
        return await self._call(Peer(node.id, address_of(node)), request, answer, *args)

    async def _ask_any(self, nodes: Sequence[Node], request: type[Request], answer: type[A], *args: Any) -> A | None:
        """The first answer of nodes that would all answer alike. The next is asked when one fails, or is slow."""
        asked: set[asyncio.Task[A | None]] = set()
        for node in nodes:
            asked.add(self._tasks.run(self._ask(node, request, answer, *args)))
            done, asked = await asyncio.wait(asked, timeout=self._patience(node), return_when=asyncio.FIRST_COMPLETED)
            if found := next((a for task in done if (a := task.result()) is not None), None):
                return found
        while asked:
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            if found := next((a for task in done if (a := task.result()) is not None), None):
                return found
        return None

    def _patience(self, node: Node) -> float:
        """After how many seconds a node counts as slow."""
        return self._endpoint.round_trips.timeout(address_of(node)) / 2

    async def _call(self, peer: Peer, request: type[Request], answer: type[A], *args: Any) -> A | None:
        """One question, with its consequences for the routing table."""
        known = peer.node is not None and self._routing.is_proven(peer.node, peer.address)
        found = await self._endpoint.call(peer, request, answer, *args, prove=not known)
        if found is not None:
            self._heard(Peer(found.sender, peer.address))
        elif peer.node is not None:
            self._routing.failed(peer.node, peer.address, asyncio.get_running_loop().time())
        return found

    def _heard(self, peer: Peer) -> None:
        """A proven peer showed that it is alive."""
        assert peer.node is not None
        if self._routing.is_lost(peer.node) and self._routing.lost_share >= SUSPICIOUS_SHARE:
            self._came_back()
        is_new = self._routing.table.get(peer.node) is None
        doubtful = self._routing.alive(peer.node, peer.address)
        if doubtful is not None:
            self._check(doubtful.id, address_of(doubtful))
        elif is_new:
            self._on_newcomer(peer.node)

    def _check(self, node_id: bytes, address: Address) -> None:
        """Ping a node in the background, once at a time."""
        if node_id not in self._checking and len(self._checking) < MAX_CHECKS:
            self._checking.add(node_id)
            self._tasks.run(self._checked(Peer(node_id, address)))

    async def _checked(self, peer: Peer) -> None:
        assert peer.node is not None
        try:
            await self._call(peer, Ping, Pong)
        finally:
            self._checking.discard(peer.node)

    # --- answering ---

    def _serve(self, request: AnyRequest, address: Address, proof: Proof | None) -> AnyAnswer | None:
        proven = self._routing.is_proven(request.sender, address)
        if proven:
            self._heard(Peer(request.sender, address))
        else:
            self._check(request.sender, address)
        match request:
            case Ping():
                return Pong(request.id, self.id, proof)
            case Find():
                return Nodes(request.id, self.id, proof, self._contacts_for(request, self._tuning.k))
            case Records():
                return self._page(request, proof)
            case Compare():
                return self._parts(request, proof)
            case Store():
                verdicts = self._shelf.offer(request.key, request.envelopes, request.sender if proven else UNPROVEN)
                return Stored(request.id, self.id, proof, tuple(map(int, verdicts)))

    def _page(self, request: Records, proof: Proof | None) -> Page:
        held = self._shelf.ordered(request.key)
        contacts = self._contacts_for(request, PAGE_CONTACTS) if request.cursor is None else ()
        page = Page(request.id, self.id, proof, contacts, (), None, held.fingerprint)
        taken, following = held.page(request.cursor or b"", MAX_PLAINTEXT - size_of(page) - PAGE_RESERVE)
        return Page(request.id, self.id, proof, contacts, tuple(taken), following, page.fingerprint)

    def _parts(self, request: Compare, proof: Proof | None) -> Parts | None:
        if not request.low <= request.high <= rules.EVERYWHERE[1]:
            return None
        everywhere = (request.low, request.high) == rules.EVERYWHERE
        contacts = self._contacts_for(request, PAGE_CONTACTS) if everywhere else ()
        told = self._shelf.ordered(request.key).summary(request.low, request.high)
        return Parts(request.id, self.id, proof, contacts, *told)

    def _contacts_for(self, request: Find | Records | Compare, count: int) -> tuple[messages.WireContact, ...]:
        nearest = self._routing.table.find_neighbors(Node(request.key), count, exclude=Node(request.sender))
        return tuple(messages.wire_contact(n.id, address_of(n)) for n in nearest)

    def stats(self) -> dict[str, float]:
        return {
            "contacts": len(self._routing),
            "lost_members": len(self._routing.lost_members()),
            "tasks": len(self._tasks),
            "crashes": self._tasks.crashes,
            **{f"lookups_{name}": count for name, count in self._lookups.items()},
            **{f"datagrams_{name}": count for name, count in self._endpoint.counts.items()},
        }


async def _awaited(result: Awaitable[T]) -> T:
    return await result


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _resolved(host: str, port: int) -> list[Address]:
    """Numeric addresses of a host; none if its name cannot be resolved in time."""
    if _is_numeric(host):
        return [Address(host, port)]
    try:
        async with asyncio.timeout(2.0):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=2)
    except (OSError, TimeoutError) as error:
        log.warning("bootstrap-address-not-resolved", host=host, error=str(error) or "timeout")
        return []
    return [Address(str(sockaddr[0]), int(sockaddr[1])) for *_, sockaddr in found]


@asynccontextmanager
async def running_overlay(
    open_transport: OpenTransport,
    *,
    identity: Ed25519PrivateKey,
    keyring: Keyring,
    shelf: Shelf,
    tuning: Tuning,
    bootstrap: Sequence[tuple[str, int]],
    on_newcomer: Callable[[bytes], None],
    on_return: Callable[[], None],
    chance: random.Random,
) -> AsyncIterator[Overlay]:
    """A member of the overlay that tried once to join, and keeps trying. Raises PortTaken or ConfigError.

    `on_newcomer` hears the id of every node that enters the routing table, `on_return` of the end of a cut. `chance`
    also draws nonces: anything but `random.SystemRandom` is for simulations.
    """
    async with OwnedTasks() as tasks:
        overlay = Overlay(
            identity=identity,
            keyring=keyring,
            shelf=shelf,
            tuning=tuning,
            tasks=tasks,
            on_newcomer=on_newcomer,
            on_return=on_return,
            chance=chance,
        )
        async with open_transport(overlay.received) as transport:
            overlay.attach(transport)
            overlay.add_bootstrap(bootstrap)
            await overlay.join()
            tasks.run(overlay.maintain(), name="maintain the overlay")
            yield overlay
