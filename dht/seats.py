"""Who may stand at a key when it is crowded. Pure.

Keys to sign with are free, so a bound per signer alone binds nobody: one member could sign as many. What a member
cannot multiply as it likes is itself. So room is shared by members first, and by signers only within a member's share.

**Where records are kept** (`seat`) every row remembers the member that *brought* it (`via`), and

- one signer has at most `rules.MAX_PER_OWNER` rows at a key; of these the highest ranked stay;
- one member has brought at most MAX_PER_VIA rows at a key; in this *pool* the signers have equal shares;
- of a key that is full, the members have equal shares, and within a member's share its signers.

Who has the most loses first, and only to somebody who would still have less. Between equals, first come stays: a date
in a record never counts against another signer's. So whoever has no more than an equal share loses nothing, whatever
the others do. What is published on this node itself (`OWN`) is in no pool and never has to go.

An honest member that passes on other people's records fills its own pool. So it passes on at most RELAYED_PER_VIA of
those that one other member brought: nobody's flood can use it up.

**Where records are read** (`seated`) every record is known to be *held* by some members, and often by several. There
the holders take turns: each gives a seat to the first in its queue who has none yet. So a holder that lies about a
million records uses up its own turns, and takes no seat from what others hold; and what several hold costs only one of
them a turn. Within a holder's queue its signers take turns in the same way, in an order drawn by lot.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from dht.rules import MAX_PER_KEY

T = TypeVar("T", bound=Hashable)

OWN = b"own"
"""The `via` of what is published on this node."""
UNPROVEN = b"unproven"
"""The `via` of senders that have not proven their node id yet: they share one pool."""
MAX_PER_VIA = 1024
"""Rows at one key that one member brought."""
RELAYED_PER_VIA = 256
"""Rows at one key, brought by one member, that another passes on."""


class Tally:
    """Counts by name, and who has the most. Every change takes constant time."""

    def __init__(self) -> None:
        self.total = 0
        self._counts: dict[bytes, int] = {}
        self._having: defaultdict[int, dict[bytes, None]] = defaultdict(dict)
        self._most = 0

    def __getitem__(self, name: bytes) -> int:
        return self._counts.get(name, 0)

    @property
    def largest(self) -> tuple[bytes, int]:
        """A name with the highest count; `(b"", 0)` if there is none."""
        return (next(iter(self._having[self._most])), self._most) if self._most else (b"", 0)

    def add(self, name: bytes, more: int = 1) -> None:
        before = self._counts.pop(name, 0)
        count = before + more
        if before:
            del self._having[before][name]
            if not self._having[before]:
                del self._having[before]
        if count:
            self._counts[name] = count
            self._having[count][name] = None
        self.total += more
        self._most = max(self._most, count)
        while self._most and self._most not in self._having:
            self._most -= 1


class Occupancy:
    """How many rows stand at one key: by signer, by the member that brought them, and by both."""

    def __init__(self, rows: Iterable[tuple[bytes, bytes, int]] = ()) -> None:
        """`rows`: signer, via and count."""
        self.total = 0
        self.owners: Counter[bytes] = Counter()
        self.vias = Tally()
        self._pools: dict[bytes, Tally] = {}
        for owner, via, count in rows:
            self.add(owner, via, count)

    def pool(self, via: bytes) -> Tally:
        """What one member brought, by signer."""
        return self._pools.get(via) or Tally()

    def add(self, owner: bytes, via: bytes, count: int = 1) -> None:
        """So many rows came, or went if `count` is negative."""
        self.total += count
        self.owners[owner] += count
        if not self.owners[owner]:
            del self.owners[owner]
        if via != OWN:
            self.vias.add(via, count)
            pool = self._pools.setdefault(via, Tally())
            pool.add(owner, count)
            if not pool.total:
                del self._pools[via]


class Leaver(NamedTuple):
    """The row that has to go: the lowest ranked of this signer, among those that `via` brought (None: anybody)."""

    owner: bytes
    via: bytes | None


class Seat(NamedTuple):
    """Whether one more row may stand at a key, and who leaves for it; `by_rank`: only if it outranks that row."""

    granted: bool
    leaver: Leaver | None = None
    by_rank: bool = False


REFUSED = Seat(granted=False)


def seat(there: Occupancy, *, owner: bytes, via: bytes, per_owner: int) -> Seat:
    """The rule at the top, for a row in a slot that is not taken yet."""
    if there.owners[owner] >= per_owner:
        return Seat(granted=True, leaver=Leaver(owner, None), by_rank=True)
    pool = there.pool(via)
    if via != OWN and pool.total >= MAX_PER_VIA:
        return _instead_of_largest(pool, owner, via)
    if there.total < MAX_PER_KEY:
        return Seat(granted=True)
    crowded, rows = there.vias.largest
    if via == OWN or rows > there.vias[via] + 1:
        return Seat(granted=True, leaver=Leaver(there.pool(crowded).largest[0], crowded) if rows else None)
    return _instead_of_largest(pool, owner, via)


def _instead_of_largest(pool: Tally, owner: bytes, via: bytes) -> Seat:
    largest, rows = pool.largest
    return Seat(granted=True, leaver=Leaver(largest, via)) if rows > pool[owner] + 1 else REFUSED


def by_turns(queues: Iterable[Sequence[T]]) -> list[T]:
    """One queue of several that have nobody in common: the first of each, then the second of each, and so on."""
    turns: defaultdict[int, list[T]] = defaultdict(list)
    for queue in queues:
        for turn, one in enumerate(queue):
            turns[turn].append(one)
    return [one for turn in sorted(turns) for one in turns[turn]]


def seated(queues: Iterable[Iterable[T]], room: int) -> list[T]:
    """Who gets one of `room` seats, in the order of their seating: the queues take turns, and each seats the first in
    it who has no seat yet.

    So the first `room // n` of each of n queues are seated, whatever stands in the others; and k queues that agree have
    their first `k * (room // n)` seated.
    """
    waiting = deque(map(iter, queues))
    taken: dict[T, None] = {}
    while waiting and len(taken) < room:
        queue = waiting.popleft()
        first = next((one for one in queue if one not in taken), None)
        if first is not None:
            taken[first] = None
            waiting.append(queue)
    return list(taken)
