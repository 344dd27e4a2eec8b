"""A set of envelopes in order: cut into pages, told in fingerprints, and found out where two sets differ. Pure.

Every envelope has a *position*, the first 8 bytes of its SHA-256: the same everywhere, chosen by nobody, and so evenly
spread that a range of positions can be cut into parts of about equal size without looking. From that follows all that
the nodes of a mesh need to bring two sets together:

- a **page** is what follows a cursor, which is just a position, so it stays good while envelopes come and go;
- the **fingerprint** of a range is a hash over the positions in it: equal sets have equal ones;
- a **summary** tells of a small range the positions themselves, and of a large one the fingerprints of its PARTS. Who
  compares them with its own knows which parts to look into, and after two cuts which envelopes it lacks.

Positions tell of a set without its envelopes (`Places`), which is enough to compare with it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

POSITION_BYTES = 8
"""Length of a cursor and of a fingerprint."""
EVERYWHERE = (0, (1 << 8 * POSITION_BYTES) - 1)
"""The range of all positions."""
SHORT_BYTES = 6
"""Positions and fingerprints of parts are told in so many bytes where many stand in one datagram."""
PARTS = 96
LISTED_WITH_CONTACTS = 96
LISTED = 128
"""A range of at most so many envelopes is told by its positions."""


def position(envelope: bytes) -> bytes:
    """Where an envelope stands in the order of pages: stable while others come and go."""
    return hashlib.sha256(envelope).digest()[:POSITION_BYTES]


class Places:
    """Positions in order: what is told of a set without its envelopes. Equal sets have equal fingerprints."""

    def __init__(self, positions: Iterable[bytes] = ()) -> None:
        self.positions = sorted(positions)
        self._whole: Summary | None = None
        self._parts: list[_Part | None] = [None] * PARTS
        """Of EVERYWHERE; None: to be hashed anew. So a change costs one part, not the whole."""

    @property
    def fingerprint(self) -> bytes:
        return self.summary(*EVERYWHERE).fingerprint

    def without(self, gone: Container[bytes]) -> Places:
        return Places(place for place in self.positions if place not in gone)

    def summary(self, low: int, high: int) -> Summary:
        """What is at the positions from `low` to `high`, both included: listed, or as fingerprints of its parts."""
        if (low, high) == EVERYWHERE:
            self._whole = self._whole or self._whole_summary()
            return self._whole
        chosen = self.places_between(low, high)
        if len(chosen) <= LISTED:
            return _listed(chosen)
        return Summary(_digest_of(chosen), b"".join(self._fingerprints(low, high)), b"")

    def differing(self, low: int, high: int, parts: bytes) -> list[tuple[int, int]]:
        """Which parts of the range another set, of which `parts` is told in a summary, does not hold alike."""
        theirs = zip(parts_of(low, high), shorts(parts), self._fingerprints(low, high), strict=False)
        return [part for part, digest, ours in theirs if digest != ours]

    def fingerprint_of(self, low: int, high: int) -> bytes:
        """The shortened fingerprint of what is from `low` to `high`, as in the parts of a summary."""
        return _digest_of(self.places_between(low, high))[:SHORT_BYTES]

    def places_between(self, low: int, high: int) -> list[bytes]:
        """The positions from `low` to `high`."""
        return self.positions[self._slice(low, high)]

    def _slice(self, low: int, high: int) -> slice:
        if low > high:
            return slice(0, 0)
        first = bisect_left(self.positions, low.to_bytes(POSITION_BYTES, "big"))
        return slice(first, bisect_right(self.positions, high.to_bytes(POSITION_BYTES, "big")))

    def _whole_summary(self) -> Summary:
        if len(self.positions) <= LISTED_WITH_CONTACTS:
            return _listed(self.positions)
        parts = [self._part(number) for number in range(PARTS)]
        return Summary(
            _digest_of([part.positions for part in parts]), b"".join(part.fingerprint for part in parts), b""
        )

    def _fingerprints(self, low: int, high: int) -> list[bytes]:
        if (low, high) == EVERYWHERE:
            return [self._part(number).fingerprint for number in range(PARTS)]
        return [self.fingerprint_of(*part) for part in parts_of(low, high)]

    def _part(self, number: int) -> _Part:
        part = self._parts[number]
        if part is None:
            first = bisect_left(self.positions, _PART_STARTS[number])
            last = number + 1 == PARTS
            end = len(self.positions) if last else bisect_left(self.positions, _PART_STARTS[number + 1])
            chosen = self.positions[first:end]
            part = self._parts[number] = _Part(b"".join(chosen), _digest_of(chosen)[:SHORT_BYTES])
        return part


class OrderedSet(Places):
    """Envelopes in the order of their positions."""

    def __init__(self, envelopes: Iterable[bytes]) -> None:
        ordered = sorted((position(e), e) for e in envelopes)
        super().__init__(place for place, _ in ordered)
        self.envelopes = [envelope for _, envelope in ordered]

    def add(self, envelope: bytes) -> None:
        place = position(envelope)
        at = bisect_right(self.positions, place)
        self.positions.insert(at, place)
        self.envelopes.insert(at, envelope)
        self._changed_at(place)

    def remove(self, envelope: bytes) -> bool:
        """False if it was not in the set."""
        place = position(envelope)
        at = bisect_left(self.positions, place)
        if at == len(self.envelopes) or self.envelopes[at] != envelope:
            return False
        del self.positions[at], self.envelopes[at]
        self._changed_at(place)
        return True

    def remove_all(self, envelopes: Container[bytes]) -> None:
        """In one pass: for many of them."""
        kept = [at for at, envelope in enumerate(self.envelopes) if envelope not in envelopes]
        self.positions = [self.positions[at] for at in kept]
        self.envelopes = [self.envelopes[at] for at in kept]
        self._whole, self._parts = None, [None] * PARTS

    def _changed_at(self, place: bytes) -> None:
        self._whole = None
        self._parts[bisect_right(_PART_STARTS, place) - 1] = None

    def between(self, low: int, high: int) -> list[bytes]:
        """The envelopes from `low` to `high`."""
        return self.envelopes[self._slice(low, high)]

    def after(self, place: bytes) -> list[bytes]:
        """The envelopes that come after a position (empty: all)."""
        return self.envelopes[bisect_right(self.positions, place) :]

    def page(self, cursor: bytes, budget: int) -> tuple[Sequence[bytes], bytes | None]:
        """Envelopes after `cursor` (empty: from the start) that fit in `budget` bytes of msgpack, and the next cursor.

        The next cursor is None after the last page. A page is empty when its first envelope does not fit.
        """
        first = after = bisect_right(self.positions, cursor)
        while after < len(self.envelopes):
            budget -= len(self.envelopes[after]) + ENVELOPE_HEADER
            if budget < 0:
                return self.envelopes[first:after], self.positions[after - 1] if after > first else cursor
            after += 1
        return self.envelopes[first:], None


class Summary(NamedTuple):
    """Of a range of positions: the fingerprint of the whole, and either the shortened fingerprints of its `PARTS`, or
    (if it holds few) its shortened positions; both as one string of `SHORT_BYTES` each."""

    fingerprint: bytes
    parts: bytes
    positions: bytes


class _Part(NamedTuple):
    """The positions of one of the PARTS of a set, joined, and their shortened fingerprint."""

    positions: bytes
    fingerprint: bytes


def parts_of(low: int, high: int) -> list[tuple[int, int]]:
    """The range cut into PARTS of nearly equal width, ends included."""
    span = high - low + 1
    return [(low + span * i // PARTS, low + span * (i + 1) // PARTS - 1) for i in range(PARTS)]


_PART_STARTS = [first.to_bytes(POSITION_BYTES, "big") for first, _ in parts_of(*EVERYWHERE)]


def shorts(joined: bytes) -> list[bytes]:
    return [joined[i : i + SHORT_BYTES] for i in range(0, len(joined), SHORT_BYTES)]


def lacking(envelopes: Sequence[bytes], parts: bytes, positions: bytes) -> list[bytes]:
    """Which envelopes a set may lack, by its summary EVERYWHERE: if that is true, all of them and perhaps some more."""
    ours = OrderedSet(envelopes)
    if not parts:
        held = set(shorts(positions))
        return [e for e in ours.envelopes if position(e)[:SHORT_BYTES] not in held]
    return [e for part in ours.differing(*EVERYWHERE, parts) for e in ours.between(*part)]


def lies_in(short: bytes, low: int, high: int) -> bool:
    """True if an envelope at this shortened position can be in the range."""
    first = int.from_bytes(short + bytes(POSITION_BYTES - SHORT_BYTES), "big")
    return first <= high and low < first + (1 << 8 * (POSITION_BYTES - SHORT_BYTES))


def cursor_before(short: bytes) -> bytes:
    """The cursor after which the envelope at this shortened position comes next, or nearly next."""
    return position_before(int.from_bytes(short + bytes(POSITION_BYTES - SHORT_BYTES), "big"))


def position_before(place: int) -> bytes:
    """The last position before one that is read as a number; empty: there is none."""
    return (place - 1).to_bytes(POSITION_BYTES, "big") if place else b""


def _listed(positions: Sequence[bytes]) -> Summary:
    return Summary(_digest_of(positions), b"", b"".join(p[:SHORT_BYTES] for p in positions))


def _digest_of(positions: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join(positions)).digest()[:POSITION_BYTES]


def stretches(cursor: bytes, most: int) -> list[tuple[bytes, bytes]]:
    """The positions after `cursor` cut into stretches `(after, up to)` that can be read at the same time.

    Positions are hashes, so how far the first page reached tells how many pages there are: one stretch for each,
    but at most `most`.
    """
    whole = 1 << 8 * POSITION_BYTES
    start = int.from_bytes(cursor, "big") if cursor else 0
    count = min(most, max(1, (whole - start) // start)) if start else most
    edges = [start + (whole - 1 - start) * i // count for i in range(count + 1)]
    cursors = [cursor, *(edge.to_bytes(POSITION_BYTES, "big") for edge in edges[1:])]
    return list(pairwise(cursors))


ENVELOPE_HEADER = 3
"""msgpack bytes before an envelope inside a list."""


def batches(envelopes: Iterable[bytes], budget: int) -> list[list[bytes]]:
    """Envelopes in lists that fit in `budget` bytes of msgpack each."""
    lists: list[list[bytes]] = []
    room = -1
    for envelope in envelopes:
        room -= len(envelope) + ENVELOPE_HEADER
        if room < 0:
            lists.append([])
            room = budget - len(envelope) - ENVELOPE_HEADER
        lists[-1].append(envelope)
    return lists
