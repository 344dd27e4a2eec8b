"""Signed records in the mesh, over the Kademlia overlay. The contract is `dht.contracts.Directory`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice
from pathlib import Path

import structlog
from msgspec import Struct, field

from dht import ordering, rules
from dht.overlay import (
    Address,
    OpenTransport,
    Overlay,
    StoreOutcome,
    Tuning,
    WholeSets,
    running_overlay,
    udp_transport,
)
from dht.overlay.sealing import Keyring
from dht.quiet import Quiet
from dht.records.own_records import provider_record, region_record
from dht.records.replica import Replica
from dht.records.republish import TICK_S, MeshNews, Republisher
from dht.records.sifting import Sieve
from dht.records.storage import KnownContact, opened_storage
from dht.records.views import WORTH_KEEPING
from dht.tasks import OwnedTasks, periodically
from protocol.admission import Credentials
from protocol.identifiers import check_digest, node_id, record_key
from protocol.problems import ConfigError, DiskUnusable, InvalidRecord, Problem, Unavailable
from protocol.records import (
    ProviderRecord,
    Record,
    RegionRecord,
    ServiceRecord,
    Signed,
    raw_public_key,
    reopened,
    sign,
)

log = structlog.get_logger(__name__)

PROVIDER_INTERVAL_S = 600.0
ANNOUNCE_TICK_S = 5.0
ANNOUNCEMENTS_AT_ONCE = 8
REMEMBER_INTERVAL_S = 60.0
REMEMBERED_CONTACTS = 64
CONTACT_LIFETIME_S = 7 * 86_400.0
INVITE_CONTACTS = 4
CHECKED_AT_ONCE = 32
DECODED_AT_ONCE = 128


class DirectoryConfig(Struct, frozen=True, kw_only=True):
    """Where to listen (UDP; port 0: any free one) and whom to ask first (`host:port`, UDP).

    `database` None keeps everything in memory. `advertise`: the host that others can reach, if `host` is a wildcard.
    `door`: the TCP port of this host where `set_routes` answer other nodes; 0: nowhere.
    """

    host: str
    port: int
    bootstrap: tuple[str, ...] = ()
    database: Path | None = None
    advertise: str | None = None
    door: int = 0
    tuning: Tuning = field(default_factory=Tuning)


class NetworkDirectory:
    """Made by `running_directory`."""

    def __init__(
        self,
        *,
        config: DirectoryConfig,
        credentials: Credentials,
        addresses: Sequence[str],
        clock: Callable[[], float],
        replica: Replica,
        overlay: Overlay,
        republisher: Republisher,
    ) -> None:
        self.node = node_id(raw_public_key(credentials.key))
        self._config = config
        self._identity = credentials.key
        self._addresses = tuple(addresses)
        self._clock = clock
        self._replica = replica
        self._storage = replica.storage
        self._overlay = overlay
        self._republisher = republisher
        self._announced: dict[str, float] = {}
        self._sieve = Sieve()
        self._quiet = Quiet()

    # --- services ---

    @property
    def addresses(self) -> Sequence[str]:
        """See `Directory.addresses`."""
        return self._addresses

    async def publish(self, signed: Signed) -> None:
        """See `Directory.publish`."""
        record = signed.record
        rules.accept(record, self._clock())
        keys = [record_key(name) for name in record.names]
        for key in keys:
            self._replica.check(key, signed.envelope)
            if rules.competes_at(key, record) and self._replica.outranks(key, signed):
                raise _outdated(record)
        left = await self._left_behind(signed)
        outcomes = await asyncio.gather(*(self._spread(key, signed) for key in [*keys, *left]))
        if self._overlay.alone:
            return
        for key, outcome in zip(keys, outcomes[: len(keys)], strict=True):
            if outcome.superseded and rules.competes_at(key, record) and await self._is_outdated(key, signed):
                raise _outdated(record)
        if not any(outcome.acks for outcome in outcomes):
            raise Unavailable(
                "no other node took the record",
                fix="It is kept here and spread as soon as a node answers. Check the network and the bootstrap "
                "addresses.",
            )

    async def _spread(self, key: bytes, signed: Signed) -> StoreOutcome:
        """Keep a record as ours, and hand it to the nodes nearest to the key."""
        self._replica.keep(key, signed, ours=True, spread_at=0.0)
        outcome = await self._overlay.store(key, [signed.envelope])
        if outcome.enough:
            row = self._storage.in_slot(key, rules.slot(signed.record))
            self._storage.mark_spread([row] if row is not None else [], self._clock())
        return outcome

    async def _announce(self, key: bytes, signed: Signed) -> None:
        """Spread what is soon said anew. A disk that takes nothing any more must not make others forget this node,
        which goes on serving: then only they keep it."""
        try:
            await self._spread(key, signed)
        except DiskUnusable as problem:
            if self._quiet.may_say(problem.detail, time.monotonic()):
                log.error("announced-without-a-copy-here", detail=problem.detail)
            await self._overlay.store(key, [signed.envelope])

    async def _left_behind(self, signed: Signed) -> list[bytes]:
        """Keys of categories in which an older version stands and this one does not: put there too, it hides that one.

        Empty as well if the mesh does not answer: a publication waits for nothing but its own acks.
        """
        record = signed.record
        if not isinstance(record, ServiceRecord) or record.withdrawn:
            return []
        versions = await self._versions(record_key(f"id:{record.id}"), signed)
        return [record_key(name) for name in sorted({n for one in versions for n in rules.left_behind(one, signed)})]

    async def _is_outdated(self, key: bytes, signed: Signed) -> bool:
        """Do not believe a peer's word that something newer exists: look at it."""
        return rules.supersedes(await self._versions(key, signed), signed)

    async def _versions(self, key: bytes, signed: Signed) -> list[Signed]:
        """What is in the record's slot at `key`, here and elsewhere. Nothing else is verified: there may be much of it,
        and anybody can have put it there."""
        slot = rules.slot(signed.record)
        outcome = await self._overlay.read(key)
        row = self._storage.in_slot(key, slot)
        found = [] if row is None else [row.envelope]
        for count, envelope in enumerate(outcome.envelopes.values()):
            if count % DECODED_AT_ONCE == 0:
                await asyncio.sleep(0)
            with suppress(InvalidRecord):
                if rules.slot(reopened(envelope).record) == slot:
                    found.append(envelope)
        return [one async for batch in self._checked(key, found) for one in batch]

    async def services(self, name: str) -> list[Signed]:
        """See `Directory.services`."""
        return await self._read(rules.check_name(name, *rules.SERVICE_NAMES))

    # --- content ---

    async def providers(self, digest: str) -> list[ProviderRecord]:
        """See `Directory.providers`."""
        found = [s.record for s in await self._read(f"content:{check_digest(digest)}")]
        return [r for r in found if isinstance(r, ProviderRecord) and r.node != self.node]

    async def announce_content(self, digest: str) -> None:
        """See `Directory.announce_content`."""
        self._announced[check_digest(digest)] = self._clock()
        await self._say_provider(digest, withdrawn=False)

    async def retract_content(self, digest: str) -> None:
        """See `Directory.retract_content`."""
        if self._announced.pop(check_digest(digest), None) is not None:
            await self._say_provider(digest, withdrawn=True)

    def offer(self, digest: str) -> Signed:
        """See `Directory.offer`."""
        return self._provider(check_digest(digest), withdrawn=False)

    async def _say_provider(self, digest: str, *, withdrawn: bool) -> None:
        await self._announce(record_key(f"content:{digest}"), self._provider(digest, withdrawn=withdrawn))

    def _provider(self, digest: str, *, withdrawn: bool) -> Signed:
        seq = self._next_seq(record_key(f"content:{digest}"))
        record = provider_record(
            digest, node=self.node, addresses=self._addresses, seq=seq, now=self._clock(), withdrawn=withdrawn
        )
        return sign(record, self._identity)

    def _next_seq(self, key: bytes) -> int:
        return rules.next_seq(self._storage.highest_seq(key, raw_public_key(self._identity)), self._clock())

    async def announce_due(self) -> None:
        """Announce contents anew, well before their records expire. To be called every ANNOUNCE_TICK_S."""
        gate = asyncio.Semaphore(ANNOUNCEMENTS_AT_ONCE)

        async def say(digest: str) -> None:
            async with gate:
                if digest in self._announced:
                    self._announced[digest] = self._clock()
                    await self._say_provider(digest, withdrawn=False)

        now = self._clock()
        due = [d for d, said_at in self._announced.items() if not 0 <= now - said_at < announce_interval(d)]
        await asyncio.gather(*map(say, due))

    # --- regions ---

    async def regions(self, name: str) -> list[RegionRecord]:
        """See `Directory.regions`."""
        found = await self._read(rules.check_name(name, *rules.REGION_NAMES))
        return [s.record for s in found if isinstance(s.record, RegionRecord)]

    async def announce_region(self, *, region: str, agents: int, memory_total: int, memory_free: int) -> None:
        """See `Directory.announce_region`."""
        record = region_record(
            region,
            node=self.node,
            addresses=self._addresses,
            agents=agents,
            memory_total=memory_total,
            memory_free=memory_free,
            seq=self._next_seq(record_key(f"region:{region}")),
            now=self._clock(),
        )
        signed = sign(record, self._identity)
        await asyncio.gather(*(self._announce(record_key(name), signed) for name in record.names))

    # --- reading ---

    async def _read(self, name: str) -> list[Signed]:
        """Verified, visible records at a name, newest first: the same object as before if nothing has changed.

        Raises Unavailable if there seem to be none but too few answered, or if only a part of a large set came in time;
        what came is kept, and the next call goes on from there.
        """
        key = record_key(name)
        view = self._replica.views.get(key)
        if view is None:
            view = self._replica.views.begin(key)
            async for batch in self._held(key):
                view.add_own(*batch)
        loop = asyncio.get_running_loop()
        known = view if len(view) >= WORTH_KEEPING else None
        outcome = await self._overlay.read(key, known, lambda holders: self._sieve.unread(holders, loop.time()))
        envelopes, held = self._sieve.sift(outcome.envelopes, outcome.held, loop.time())
        view.tell(held)
        async for batch in self._checked(key, envelopes):
            view.add(*batch)
        self._replica.views.keep(key, view)
        found = view.visible(self._clock())
        if not self._overlay.alone and not (outcome.whole if found else outcome.conclusive):
            raise Unavailable(
                f"{outcome.answered} nodes answered: too few to say what is known as {name[:100]}",
                fix="Try again; if it persists, check that other nodes of the mesh can be reached over UDP.",
                retry_after=1.0,
            )
        return found

    async def _held(self, key: bytes) -> AsyncIterator[list[Signed]]:
        """What this node holds itself, in batches. Other tasks get their turn in between, as in `_checked`."""
        held = self._replica.held(key)
        while batch := list(islice(held, DECODED_AT_ONCE)):
            yield batch
            await asyncio.sleep(0)

    async def _checked(self, key: bytes, envelopes: Iterable[bytes]) -> AsyncIterator[list[Signed]]:
        """Those that are good, in batches. Other tasks get their turn after CHECKED_AT_ONCE of them: some 5 ms."""
        unchecked = iter(envelopes)
        refused: list[str] = []
        while batch := list(islice(unchecked, CHECKED_AT_ONCE)):
            checked: list[Signed] = []
            for envelope in batch:
                try:
                    checked.append(self._replica.check(key, envelope))
                except InvalidRecord as problem:
                    refused.append(problem.detail)
            yield checked
            await asyncio.sleep(0)
        if refused and self._quiet.may_say("records-from-peers-refused", time.monotonic()):
            log.info("records-from-peers-refused", count=len(refused), first=refused[0])

    def held_set(self, key: bytes) -> ordering.OrderedSet:
        """What this node answers to peers who ask what it holds at a key."""
        return self._replica.ordered(key)

    # --- the node itself ---

    @property
    def udp_port(self) -> int:
        """The port that is actually listened on."""
        return self._overlay.address.port

    def contacts(self) -> list[str]:
        """`host:port` for an invitation: this node first, if its address is known, then live nodes near it."""
        own = self._config.advertise or self._config.host
        ours = [] if own in ("0.0.0.0", "::", "") else [str(Address(own, self.udp_port))]  # noqa: S104 (compared, not bound)
        return ours + [str(address) for _, address in self._overlay.contacts()[:INVITE_CONTACTS]]

    def add_bootstrap(self, addresses: Sequence[str]) -> None:
        """Further `host:port` at which to look for members, from the next attempt on."""
        self._overlay.add_bootstrap([parse_address(a) for a in addresses])

    def meet(self, node: str, address: str) -> None:
        """The node with this id is said to be on our own network, at this `host:port` (UDP). It has to prove it."""
        self._overlay.meet(bytes.fromhex(node), Address(*parse_address(address)))

    def part(self, node: str) -> None:
        """It says that it leaves."""
        self._overlay.part(bytes.fromhex(node))

    def use_credentials(self, credentials: Credentials) -> None:
        """Show others a renewed admission of the same key from now on."""
        self._overlay.use_credentials(credentials)

    def use_keyring(self, keyring: Keyring) -> None:
        """Seal and open with other keys from now on."""
        self._overlay.use_keyring(keyring)

    def stats(self) -> dict[str, float]:
        """Numbers for metrics, by name."""
        return {
            **self._overlay.stats(),
            "records": self._storage.whole.total,
            "announced": len(self._announced),
            "spreads": self._republisher.spreads,
            "handovers": self._republisher.handovers,
        }

    async def remember_contacts(self) -> None:
        """Write live contacts down for the next start. To be called every REMEMBER_INTERVAL_S."""
        now = self._clock()
        live = self._overlay.contacts()[:REMEMBERED_CONTACTS]
        self._storage.remember([KnownContact(node, address.host, address.port, now) for node, address in live])
        self._storage.forget_contacts(now - CONTACT_LIFETIME_S)


def announce_interval(digest: str) -> float:
    """Seconds between two announcements: a tenth more or less by digest, so that they do not come all at once."""
    return PROVIDER_INTERVAL_S * (0.9 + 0.2 * int(digest[-2:], 16) / 255)


def parse_address(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{text[:80]!r} is not host:port", fix="Write a bootstrap address as 10.1.0.10:7401.")
    return host.strip("[]"), int(port)


def _outdated(record: Record) -> Problem:
    return InvalidRecord(
        f"the mesh knows a newer record than seq {record.seq}", fix="Read it, and sign with a higher seq."
    )


@asynccontextmanager
async def running_directory(
    config: DirectoryConfig,
    *,
    credentials: Credentials,
    keyring: Keyring,
    addresses: Sequence[str],
    clock: Callable[[], float] = time.time,
    transport: OpenTransport | None = None,
    chance: random.Random | None = None,
    whole_sets: WholeSets | None = None,
) -> AsyncIterator[NetworkDirectory]:
    """The directory of one node: a member of the overlay, with its records on disk.

    `addresses`: host:port of this node's node-to-node listener, as others reach it. `clock`: Unix s. `transport`
    replaces UDP and `chance` the system's random source (simulation). `whole_sets`: how large sets are had of others at
    once; None: page by page only. It starts even when nobody can be reached, and
    goes on trying. Raises PortTaken, ConfigError.
    """
    bootstrap = [parse_address(a) for a in config.bootstrap]
    with opened_storage(config.database) as storage:
        replica = Replica(storage, clock)
        news = MeshNews()
        known = [(c.host, c.port) for c in storage.known_contacts(limit=REMEMBERED_CONTACTS)]
        async with running_overlay(
            transport or udp_transport(config.host, config.port),
            credentials=credentials,
            clock=clock,
            keyring=keyring,
            shelf=replica,
            tuning=config.tuning,
            bootstrap=[*bootstrap, *known],
            on_newcomer=news.newcomers.add,
            on_return=news.came_back,
            chance=chance or random.SystemRandom(),
            door=config.door,
            whole_sets=whole_sets,
        ) as overlay:
            republisher = Republisher(replica, overlay, news, replicas=config.tuning.replicas, clock=clock)
            directory = NetworkDirectory(
                config=config,
                credentials=credentials,
                addresses=addresses,
                clock=clock,
                replica=replica,
                overlay=overlay,
                republisher=republisher,
            )
            async with OwnedTasks() as tasks:
                tasks.run(periodically(TICK_S, republisher.step), name="republish")
                tasks.run(periodically(ANNOUNCE_TICK_S, directory.announce_due), name="announce")
                tasks.run(periodically(REMEMBER_INTERVAL_S, directory.remember_contacts), name="remember")
                try:
                    yield directory
                finally:
                    try:
                        await directory.remember_contacts()
                    except Problem as problem:  # costs the next start a moment; hides no other error
                        log.warning("contacts-not-remembered", why=problem.detail)
