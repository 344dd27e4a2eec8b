"""Keeping records where lookups look for them: a pure schedule, and the loop that follows it.

    what                      when                                         to whom
    ours (published here)     every 15 min, at once if nobody took it yet  the replicas nearest to the key
    held for others           every 20 min, unless somebody sent it since  the same
    anything held             when a node enters the routing table that    that node
                              is among the replicas nearest to the key
    ours                      when a cut has ended                         the replicas nearest to the key

Times are spread by a tenth either way, by key, so that a node does not send everything at once and replicas of one key
do not all send it. Re-replication passes envelopes on as they are: it never extends an expiry. Of what one other member
brought to a key, RELAYED_PER_VIA records are passed on: see `dht.seats`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

import structlog

from dht.overlay import Overlay
from dht.records.replica import Replica
from dht.records.storage import PURGED_AT_ONCE, Row

log = structlog.get_logger(__name__)

OURS_INTERVAL_S = 900.0
"""Longer than contents are announced anew (`directory`): an announcement is a spread, and needs no second one."""
HELD_INTERVAL_S = 1200.0
"""Longer than the owner's: while it lives, nobody else has to."""
RETRY_S = 15.0
"""After fewer acks than wanted."""
BASES = ((True, OURS_INTERVAL_S), (False, HELD_INTERVAL_S))
JITTER = 0.1
TICK_S = 1.0
DUE_AT_ONCE = 128
"""Rows considered in one tick."""
SPREADS_AT_ONCE = 4
PURGE_S = 60.0
KEYS_BETWEEN_PAUSES = 64
HANDOVER_RANK = 3
"""A newcomer is told of a key by the nodes that are among so many nearest to it: enough that one may be away."""


def interval(key: bytes, *, ours: bool) -> float:
    """Seconds between two spreads of the records at `key`: the same for a key at every call, different among keys."""
    base = OURS_INTERVAL_S if ours else HELD_INTERVAL_S
    return base * (1 - JITTER + 2 * JITTER * key[-1] / 255)


def due_at(row: Row) -> float:
    return row.spread_at + interval(row.key, ours=row.ours)


def is_due(row: Row, now: float) -> bool:
    return due_at(row) <= now


def spread_again_from(key: bytes, now: float, *, ours: bool, enough: bool) -> float:
    """What to note as `spread_at`: now, or a time that makes the row due again after RETRY_S."""
    return now if enough else now + RETRY_S - interval(key, ours=ours)


def by_key(rows: Iterable[Row]) -> dict[bytes, list[Row]]:
    groups: defaultdict[bytes, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.key].append(row)
    return dict(groups)


def distance(a: bytes, b: bytes) -> int:
    return int.from_bytes(a, "big") ^ int.from_bytes(b, "big")


def owed(key: bytes, own_id: bytes, nearest: Sequence[bytes], newcomers: set[bytes]) -> list[bytes]:
    """Newcomers that `own_id` should tell about `key`. `nearest`: ids of the replicas nearest to it, newcomers too."""
    new = [n for n in nearest if n in newcomers]
    if not new:
        return []
    nearer = [n for n in nearest if n not in newcomers and distance(n, key) < distance(own_id, key)]
    return new if len(nearer) < HANDOVER_RANK else []


@dataclass
class MeshNews:
    """What the overlay noticed and the republisher has not acted on yet: ids of nodes that entered the routing table,
    and whether a cut has ended."""

    newcomers: set[bytes] = field(default_factory=set)
    reached_again: bool = False

    def came_back(self) -> None:
        self.reached_again = True


class Republisher:
    """`clock` gives Unix seconds; what is in `news` is taken out as it is acted on."""

    def __init__(
        self, replica: Replica, overlay: Overlay, news: MeshNews, *, replicas: int, clock: Callable[[], float]
    ) -> None:
        self._replica = replica
        self._storage = replica.storage
        self._overlay = overlay
        self._replicas = replicas
        self._clock = clock
        self._news = news
        self._next_purge = 0.0
        self._stepped_at = inf
        self._quiet = (-1, 0.0)
        """Nothing is due before that time, unless `Storage.writes` has grown beyond that number."""
        self.spreads = 0
        self.handovers = 0

    async def step(self) -> None:
        """Do what is due. To be called every TICK_S."""
        now = self._clock()
        if now < self._stepped_at:  # the clock was set back, perhaps while this node was down
            self._next_purge, self._quiet = now, (-1, 0.0)
            self._storage.nothing_spread_after(now)
        self._stepped_at = now
        if now >= self._next_purge:
            self._next_purge = now + PURGE_S
            while self._storage.purge(now) == PURGED_AT_ONCE:
                await asyncio.sleep(0)
            await self._checkpoint()
        elif self._storage.log_is_long:
            await self._checkpoint()
        if self._news.reached_again:
            self._news.reached_again = False
            self._storage.make_ours_due()
        if self._overlay.connected:
            await self._hand_over()
            await self.spread_due()

    async def _checkpoint(self) -> None:
        if self._storage.on_disk:
            await asyncio.to_thread(self._storage.checkpoint)

    async def spread_due(self) -> None:
        """Spread what is due now."""
        now, writes = self._clock(), self._storage.writes
        if writes == self._quiet[0] and now < self._quiet[1]:
            return
        candidates = [
            row
            for ours, base in BASES
            for row in self._storage.due(ours=ours, spread_before=now - base * (1 - JITTER), limit=DUE_AT_ONCE)
        ]
        groups = by_key(row for row in candidates if row.expiry > now and is_due(row, now))
        if not groups:
            self._quiet = writes, self._next_due(candidates, now)
        gate = asyncio.Semaphore(SPREADS_AT_ONCE)
        await asyncio.gather(*(self._spread(gate, key, rows) for key, rows in groups.items()))

    def _next_due(self, candidates: Sequence[Row], now: float) -> float:
        """No row is due before this time, if none is due now. `candidates`: those that waited long enough for some."""
        if len(candidates) >= DUE_AT_ONCE:
            return now
        oldest = [(base, self._storage.oldest_spread(ours=o, after=now - base * (1 - JITTER))) for o, base in BASES]
        later = [when + base * (1 - JITTER) for base, when in oldest if when is not None]
        return min([*later, *(due_at(row) for row in candidates if row.expiry > now)], default=inf)

    async def _spread(self, gate: asyncio.Semaphore, key: bytes, rows: list[Row]) -> None:
        """Of what is held for others, the whole set at once: replicas that hold the same are then asked, not told."""
        async with gate:
            whole = any(not row.ours for row in rows)
            envelopes = self._replica.passed_on(key) if whole else [row.envelope for row in rows]
            outcome = await self._overlay.store(key, list(envelopes))
        self.spreads += 1
        now = self._clock()
        ours = [row for row in rows if row.ours]
        self._storage.mark_spread(ours, spread_again_from(key, now, ours=True, enough=outcome.enough))
        if whole:
            self._storage.mark_held_spread(key, spread_again_from(key, now, ours=False, enough=outcome.enough))

    async def _hand_over(self) -> None:
        """Tell newcomers what they are now among the nearest for: one pass over the keys for all of them."""
        if not self._news.newcomers:
            return
        newcomers = set(self._news.newcomers)
        self._news.newcomers.clear()
        for count, key in enumerate(self._storage.keys(), start=1):
            nearest = self._overlay.nearest_contacts(key, self._replicas)
            targets = owed(key, self._overlay.id, nearest, newcomers)
            envelopes = self._replica.passed_on(key) if targets else []
            if envelopes:
                await self._overlay.store_at(targets, key, envelopes)
                self.handovers += 1
            if count % KEYS_BETWEEN_PAUSES == 0:
                await asyncio.sleep(0)
