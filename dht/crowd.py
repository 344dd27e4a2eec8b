"""Who fetches one blob at this moment, and which chunks this node gave away lately. Pure: the time is handed in.

Nodes that fetch the same blob tell each other, and every holder they ask, what they have by now; each answer names the
others that the holder heard of. So partial holders are found within a round trip, not a lookup, and everybody knows
which chunks are rare.

A holder asked by a crowd gives each chunk once and then, for a while, answers "elsewhere": those it gave the chunk to
pass it on. That is super-seeding, with the whole crowd's uplinks at work instead of one. The while doubles with every
copy, so that a chunk whose takers died or are slow goes out again, and a crowd of any size costs a few copies at most.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

PRESENT_S = 5.0
"""A node that told nothing for so long is not fetching any more."""
AGAIN_S = 2.0
MAX_AGAIN_S = 8.0
BELONGS_S = 60.0
"""So long after it fetched, a node gives to whoever asks."""
MAX_MEMBERS = 64
MAX_CROWDS = 64


@dataclass(frozen=True)
class Member:
    """A node that fetches. `offer` is its signed provider record, `held` the positions of the chunks it has."""

    node: str
    offer: bytes
    held: frozenset[int]
    told_at: float


@dataclass(frozen=True)
class _Gift:
    to: str
    at: float
    copies: int

    def again_at(self) -> float:
        return self.at + min(AGAIN_S * 2.0 ** (self.copies - 1), MAX_AGAIN_S)


class Crowd:
    """Of one blob, as one of its holders sees it."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._gifts: dict[str, _Gift] = {}

    def told(self, member: Member) -> None:
        """A node says what it has. Bounded: the one that was silent longest makes room."""
        self._members.pop(member.node, None)
        self._members[member.node] = member
        if len(self._members) > MAX_MEMBERS:
            del self._members[next(iter(self._members))]

    def left(self, node: str) -> None:
        self._members.pop(node, None)

    def others(self, asker: str, now: float) -> list[Member]:
        """Who else fetches, the most recently heard first."""
        return [m for m in reversed(self._members.values()) if m.node != asker and now - m.told_at <= PRESENT_S]

    def gives(self, asker: str, chunk: str, now: float) -> bool:
        """Whether to send a chunk to a node of the crowd, rather than to let it ask elsewhere."""
        gift = self._gifts.get(chunk)
        if gift is None or gift.to == asker or now >= gift.again_at():
            return True
        return not self.others(asker, now)

    def gave(self, asker: str, chunk: str, now: float) -> None:
        """To be called when the chunk is about to be sent, so that two askers at once do not both get it."""
        before = self._gifts.get(chunk)
        self._gifts[chunk] = _Gift(asker, now, before.copies + 1 if before else 1)

    def given(self, chunks: Collection[str], asker: str, now: float) -> list[bool]:
        """For each chunk: would `asker` be told "elsewhere"?"""
        return [not self.gives(asker, chunk, now) for chunk in chunks]

    def present(self, now: float) -> bool:
        return any(now - member.told_at <= PRESENT_S for member in self._members.values())


class Crowds:
    """The crowds a node knows, by blob; and which of them it belongs to itself.

    A node that fetches, or has just fetched, gives to whoever asks: it is one of those who pass chunks on.
    """

    def __init__(self) -> None:
        self._crowds: dict[str, Crowd] = {}
        self._joined: dict[str, float] = {}

    def joined(self, blob: str, now: float) -> None:
        """This node fetches the blob itself."""
        self._joined = {b: at for b, at in self._joined.items() if now - at <= BELONGS_S}
        self._joined[blob] = now

    def belongs(self, blob: str, now: float) -> bool:
        return now - self._joined.get(blob, -BELONGS_S - 1) <= BELONGS_S

    def of(self, blob: str, now: float) -> Crowd:
        """Forgets crowds that dispersed, and the oldest when there are too many."""
        crowd = self._crowds.get(blob)
        if crowd is None:
            self._crowds = {b: c for b, c in self._crowds.items() if c.present(now)}
            if len(self._crowds) >= MAX_CROWDS:
                del self._crowds[next(iter(self._crowds))]
            crowd = self._crowds[blob] = Crowd()
        return crowd

    def known(self, blob: str) -> Crowd | None:
        return self._crowds.get(blob)
