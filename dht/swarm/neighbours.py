"""Which of those that fetch one blob on the same network brings which chunk over the uplink. Pure: time is handed in.

What one of them brings, the others get over the LAN a moment later. So that it crosses the uplink once, and none asks
first what all will do, each works out for itself who is to bring a chunk: the member of the network with the highest
hash of member and chunk (rendezvous hashing; Thaler and Ravishankar, "A name-based mapping scheme for rendezvous",
1996). All that know each other come to the same answer, the shares are about equal, and when a member comes or goes
only its own share moves.

Nobody waits long for a neighbour: one that has brought nothing of its share for `PATIENCE_S`, or twice the longest time
that this took it before, is waited for no more, until it brings something. And who has nothing else to do waits for all
neighbours together no longer than it was busy before: one that trickles, or lies, costs twice the time at most.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

PATIENCE_S = 2.0
MAX_PATIENCE_S = 10.0


def _weight(member: str, piece: int) -> bytes:
    return blake2b(b"%d %s" % (piece, member.encode()), digest_size=8).digest()


def bringer(piece: int, members: Collection[str]) -> str:
    """Who of the members, at least one, is to bring the piece."""
    return max(members, key=lambda member: (_weight(member, piece), member))


class Shares:
    """As the member `me` sees it."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._useful_at: dict[str, float] = {}
        """Of each neighbour that fetches: when it was first heard of, or last brought something of its share."""
        self._began_at: float | None = None
        self._idle_at: float | None = None
        """When the first was heard of, and since when all that is free is theirs."""
        self._longest_s: dict[str, float] = {}
        """The longest that each took to bring something of its share."""
        self._bringers: dict[int, str] = {}

    def heard(self, neighbour: str, new: Collection[int], now: float) -> None:
        """It fetches, too, and has pieces that it did not have before."""
        if neighbour not in self._useful_at:
            self._began_at = now if self._began_at is None else self._began_at
            self._useful_at[neighbour] = now
            self._bringers.clear()
        elif any(self._bringer(piece) == neighbour for piece in new):
            took_s = now - self._useful_at[neighbour]
            self._longest_s[neighbour] = max(took_s, self._longest_s.get(neighbour, 0.0))
            self._useful_at[neighbour] = now

    def left_to(self, neighbours: Collection[str], pieces: Collection[int], now: float) -> dict[str, set[int]]:
        """What of these pieces, which nobody near has, is left to each of these neighbours to bring."""
        left: dict[str, set[int]] = {}
        if self._is_tired(now):
            return left
        if awaited := [name for name in neighbours if self._is_awaited(name, now)]:
            for piece in pieces:
                if (name := self._bringer(piece)) in awaited:
                    left.setdefault(name, set()).add(piece)
        if left and sum(map(len, left.values())) == len(pieces):
            self._idle_at = now if self._idle_at is None else self._idle_at
        return left

    def _is_tired(self, now: float) -> bool:
        if self._began_at is None or self._idle_at is None:
            return False
        return now - self._idle_at >= max(PATIENCE_S, self._idle_at - self._began_at)

    def _is_awaited(self, neighbour: str, now: float) -> bool:
        if neighbour not in self._useful_at:
            return False
        patience_s = max(PATIENCE_S, min(2 * self._longest_s.get(neighbour, 0.0), MAX_PATIENCE_S))
        return now - self._useful_at[neighbour] < patience_s

    def _bringer(self, piece: int) -> str:
        if piece not in self._bringers:
            self._bringers[piece] = bringer(piece, [self._me, *self._useful_at])
        return self._bringers[piece]
