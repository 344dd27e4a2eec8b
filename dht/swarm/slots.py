"""How many answers with chunks a node sends at once, and what it promises to who finds no room. Pure: no clock.

Nobody's place is kept: who asks first when an answer has ended has its slot. So a node that is refused is told to come
back soon, and within what time it should have had its turn: as long as answers take at present, for all that wait
before it, and twice that, since it may be unlucky. A fetch goes by that when it decides whether to go on
(`dht.swarm.patience`).
"""

from __future__ import annotations

WAITS_S = 5.0
"""Who was refused and did not ask again for so long does not wait any more."""
LEAST_PROMISE_S, MOST_PROMISE_S = 1.0, 120.0


class Slots:
    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: dict[int, float] = {}
        """Since when, by number."""
        self._number = 0
        self._took_s = 0.0
        """How long an answer takes; of late ones more than of earlier ones."""
        self._refused: dict[str, float] = {}
        """When each peer was refused last, the latest last."""

    @property
    def busy(self) -> int:
        return len(self._taken)

    def take(self, peer: str, now: float) -> int | None:
        """The number of a slot, to be given back; None: all are taken."""
        self._refused = {one: at for one, at in self._refused.items() if one != peer and now - at <= WAITS_S}
        if len(self._taken) >= self._count:
            self._refused[peer] = now
            return None
        self._number += 1
        self._taken[self._number] = now
        return self._number

    def give_back(self, number: int, now: float) -> None:
        took_s = now - self._taken.pop(number)
        self._took_s = took_s if not self._took_s else 0.75 * self._took_s + 0.25 * took_s

    def promise_s(self, now: float) -> float:
        """Within what time, from its first try, one that asks again and again should have a slot."""
        longest_s = max((now - since for since in self._taken.values()), default=0.0)
        turns = 1 + len(self._refused) / max(1, self._count)
        return max(LEAST_PROMISE_S, min(2 * turns * max(self._took_s, longest_s), MOST_PROMISE_S))
