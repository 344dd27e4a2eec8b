"""Which of the records that holders brought are looked at: to check one costs 120 us, to invent one hardly more.

What was published well stands at most of the nodes nearest to its key. So what a third of the holders that were read
have is checked, as much of it as there is room for. What fewer have is new, or comes from the other side of a cut; or a
holder made it up. Of that, each holder has ALONE looked at in QUIET_S, and more is left for later. Who brought more is
not read for QUIET_S, unless it holds just what others hold: by then honest holders have handed on what they were alone
with. However many holders do so, three quarters of all are read.

Pure: the time is handed in.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dht import ordering, rules
from dht.records.allowance import Allowance
from dht.seats import seated

ALONE = 2048
"""As many as one holder's share of a full key, where there are 8."""
QUIET_S = 60.0
MAX_REMEMBERED = 1024


class Sifted(NamedTuple):
    """`envelopes` that are to be checked, and the positions of each holder without what was left for later."""

    envelopes: Sequence[bytes]
    held: Mapping[bytes, ordering.Places]


class Sieve:
    def __init__(self) -> None:
        self._allowance = Allowance(burst=ALONE, per_s=ALONE / QUIET_S)
        self._unread_until: OrderedDict[bytes, float] = OrderedDict()

    def unread(self, holders: Sequence[bytes], now: float) -> list[bytes]:
        """Those of these holders that are not to be read now."""
        quiet = [node for node, until in reversed(self._unread_until.items()) if until > now and node in holders]
        return quiet[: len(holders) // 4]

    def sift(self, new: Mapping[bytes, bytes], held: Mapping[bytes, ordering.Places], now: float) -> Sifted:
        """`new`: by position, envelopes that nobody here has seen; `held`: what each holder that was read has, by its
        node id. Holders take turns (`seats.seated`): nobody's many records keep those of others out."""
        rare = _rare(new, held)
        turns = [self._turns(node, places, new, rare, now) for node, places in held.items()]
        chosen = seated(turns, rules.MAX_PER_KEY)
        if len(chosen) < len(new):
            left = new.keys() - chosen
            equal = {id(places): places for places in held.values()}
            fewer = {same: places.without(left) for same, places in equal.items()}
            held = {node: fewer[id(places)] for node, places in held.items()}
        return Sifted([new[place] for place in chosen], held)

    def _turns(
        self, node: bytes, places: ordering.Places, new: Mapping[bytes, bytes], rare: set[bytes], now: float
    ) -> Iterator[bytes]:
        """What of the new this holder may have looked at."""
        spent = False
        for place in places.positions:
            if place in rare and not spent and not self._allowance.take(node, now):
                spent = True
                self._leave_unread(node, now + QUIET_S)
            if place in new and not (spent and place in rare):
                yield place

    def _leave_unread(self, node: bytes, until: float) -> None:
        self._unread_until.pop(node, None)
        self._unread_until[node] = until
        if len(self._unread_until) > MAX_REMEMBERED:
            self._unread_until.popitem(last=False)


def _rare(new: Mapping[bytes, bytes], held: Mapping[bytes, ordering.Places]) -> set[bytes]:
    """What fewer than a third of the holders have."""
    enough = -(-len(held) // 3)
    equal = Counter(id(places) for places in held.values())
    known: Counter[bytes] = Counter()
    for places in {id(places): places for places in held.values()}.values():
        for place in new.keys() & places.positions:
            known[place] += equal[id(places)]
    return {place for place in new if known[place] < enough}
