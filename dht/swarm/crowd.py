"""Who fetches one blob at this moment, and which chunks this node gave away lately. Pure: the time is handed in.

Nodes that fetch the same blob tell each other, and every holder they ask, what they have by now; each answer names the
others that the holder heard of. So partial holders are found within a round trip, not a lookup, and everybody knows
which chunks are rare.

A holder asked by a crowd gives each chunk once and then answers "elsewhere": those it gave the chunk to pass it on.
That is super-seeding, with the whole crowd's uplinks at work instead of one. A chunk goes out again when it does not
spread: when for some time nobody new has told that it has it nor, before the first has told so, that its taker got
anything at all. So one whose takers died or are slow goes out again, and a crowd of any size costs a few copies at
most. How long that time is follows from how fast the crowd gets on, whatever the uplinks are: a share of what the whole
blob takes a member, as measured. It doubles with every copy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocol.manifest import Manifest

PRESENT_S = 5.0
"""A node that told nothing for so long, and for as long as a chunk may stand still, is not fetching any more."""
MIN_STILL_S, MAX_STILL_S = 2.0, 30.0
"""Bounds of how long a chunk may stand still."""
STILL = 0.25
"""A chunk may stand still for this share of what the whole takes a member."""
PENDING = 4
"""So many times as long, all in all, may its taker get other things first."""
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


@dataclass
class _Progress:
    """Of one member: how many chunks it had when it was first heard, and when it last had more than before."""

    began_at: float
    began_with: int
    gained_at: float


@dataclass
class _Gift:
    to: str
    at: float
    copies: int
    moved_at: float
    """When the chunk was last given, or somebody new told that it has it."""
    arrived: bool = False


class Crowd:
    """Of one blob, as one of its holders sees it. `chunks`: the digest of each position of its manifest."""

    def __init__(self, chunks: Sequence[str] = ()) -> None:
        self._chunks = chunks
        self._members: dict[str, Member] = {}
        self._progress: dict[str, _Progress] = {}
        self._gifts: dict[str, _Gift] = {}

    def asked(self, node: str, now: float) -> None:
        """A node that asks for chunks belongs to the crowd, even if it told nothing yet."""
        if node not in self._members:
            self.told(Member(node, b"", frozenset(), now))

    def told(self, member: Member) -> None:
        """A node says what it has. Bounded: the one that was silent longest makes room."""
        before = self._members.pop(member.node, None)
        self._members[member.node] = member
        if len(self._members) > MAX_MEMBERS:
            self.left(next(iter(self._members)))
        progress = self._progress.get(member.node)
        if before is None or progress is None:
            self._progress[member.node] = _Progress(member.told_at, len(member.held), member.told_at)
        new = member.held - before.held if before else member.held
        if new and progress:
            progress.gained_at = member.told_at
        for position in new:
            if gift := self._gifts.get(self._chunks[position]):
                gift.moved_at, gift.arrived = member.told_at, True

    def left(self, node: str) -> None:
        self._members.pop(node, None)
        self._progress.pop(node, None)

    def others(self, asker: str, now: float) -> list[Member]:
        """Who else fetches, the most recently heard first."""
        silent = max(PRESENT_S, self.still_s())
        return [m for m in reversed(self._members.values()) if m.node != asker and now - m.told_at <= silent]

    def still_s(self) -> float:
        """How long a chunk may stand still before it goes out again: a share of what the whole takes a member.

        Measured until each last got something: a crowd that waits does not slow its own clock down.
        """
        gained, spent = 0, 0.0
        for member in self._members.values():
            progress = self._progress[member.node]
            gained += len(member.held) - progress.began_with
            spent += progress.gained_at - progress.began_at
        if gained <= 0:
            return MAX_STILL_S
        return max(MIN_STILL_S, min(STILL * len(self._chunks) * spent / gained, MAX_STILL_S))

    def gives(self, asker: str, chunk: str, now: float) -> bool:
        """Whether to send a chunk to a node of the crowd, rather than to let it ask elsewhere."""
        return self.given([chunk], asker, now) == [False]

    def _again_at(self, gift: _Gift, still_s: float) -> float:
        moved_at = gift.moved_at
        if not gift.arrived and gift.to in self._progress:
            moved_at = min(max(moved_at, self._progress[gift.to].gained_at), gift.at + PENDING * still_s)
        return moved_at + min(still_s * 2.0 ** (gift.copies - 1), MAX_STILL_S)

    def gave(self, asker: str, chunk: str, now: float) -> None:
        """To be called when the chunk is about to be sent, so that two askers at once do not both get it."""
        before = self._gifts.get(chunk)
        self._gifts[chunk] = _Gift(asker, now, before.copies + 1 if before else 1, now)

    def given(self, chunks: Collection[str], asker: str, now: float) -> list[bool]:
        """For each chunk: would `asker` be told "elsewhere"?"""
        if not self.others(asker, now):
            return [False] * len(chunks)
        still_s = self.still_s()
        gifts = (self._gifts.get(chunk) for chunk in chunks)
        return [g is not None and g.to != asker and now < self._again_at(g, still_s) for g in gifts]

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

    def of(self, manifest: Manifest, now: float) -> Crowd:
        """Forgets crowds that dispersed, and the oldest when there are too many."""
        crowd = self._crowds.get(manifest.digest)
        if crowd is None:
            self._crowds = {b: c for b, c in self._crowds.items() if c.present(now)}
            if len(self._crowds) >= MAX_CROWDS:
                del self._crowds[next(iter(self._crowds))]
            crowd = self._crowds[manifest.digest] = Crowd([c.digest for c in manifest.chunks])
        return crowd

    def known(self, blob: str) -> Crowd | None:
        return self._crowds.get(blob)
