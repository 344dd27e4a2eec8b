"""What a transfer still wants, and who was asked for which part of it. State without rules.

Each piece is wanted until it is delivered, and meanwhile free or asked for in one or more requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass
class Request:
    """To `provider`, for `size` bytes. `open`: pieces that it may still deliver; `heard`: when bytes last came."""

    provider: str
    open: set[int]
    size: int
    started: float
    heard: float
    received: int = 0

    def is_late(self, now: float, rate: float, late_s: float) -> bool:
        """Silent for so long, or slower than `rate` over at least that time."""
        age = now - self.started
        return now - self.heard > late_s or (age > late_s and self.received < rate * age)

    def time_left(self, now: float, rate: float) -> float:
        """At the speed it has shown so far, or else at `rate`; one that is silent is as late as it is silent."""
        age = now - self.started
        shown = self.received / age if age > 0 and self.received else rate
        left = max(0, self.size - self.received)
        return max(now - self.heard, left / shown if shown else 0.0)


class Outstanding:
    """`lengths`: bytes of each wanted piece; `order`: all of them, in the order preferred."""

    def __init__(self, lengths: Mapping[int, int], order: Sequence[int]) -> None:
        self.lengths = dict(lengths)
        self.wanted = set(lengths)
        self.free = dict.fromkeys(order)
        """In the order preferred, then those that became free again."""
        self.requests: dict[int, Request] = {}
        self._asked: dict[int, set[int]] = {}
        self._positions = sorted(lengths)
        self._first_wanted = 0
        """All pieces before this place of `_positions` are delivered."""
        self._number = 0

    def ask(self, provider: str, pieces: Sequence[int], now: float) -> int:
        """The number of a new request."""
        self._number += 1
        size = sum(self.lengths[piece] for piece in pieces)
        self.requests[self._number] = Request(provider, set(pieces), size, now, now)
        for piece in pieces:
            self.free.pop(piece, None)
            self._asked.setdefault(piece, set()).add(self._number)
        return self._number

    def settle(self, number: int, piece: int) -> None:
        """The request delivered the piece, or will not: if nobody else is to bring it, it is free again."""
        self.requests[number].open.discard(piece)
        numbers = self._asked.get(piece)
        if numbers is not None:
            numbers.discard(number)
            if not numbers:
                del self._asked[piece]
                if piece in self.wanted:
                    self.free[piece] = None

    def end(self, number: int) -> None:
        """Forget a request; what it leaves open is free again."""
        for piece in list(self.requests[number].open):
            self.settle(number, piece)
        del self.requests[number]

    def deliver(self, piece: int) -> list[int]:
        """The piece is here, and wanted no more. Returns requests that have nothing else left to deliver."""
        self.wanted.discard(piece)
        self.free.pop(piece, None)
        numbers = self._asked.pop(piece, set())
        for number in numbers:
            self.requests[number].open.discard(piece)
        return [number for number in numbers if not self.requests[number].open]

    def asked_once(self) -> Iterator[tuple[int, Request]]:
        """Pieces that a single request is to bring, and that request."""
        for piece, numbers in self._asked.items():
            if len(numbers) == 1:
                yield piece, self.requests[next(iter(numbers))]

    def free_in_order(self) -> Iterator[int]:
        """Free pieces in the order of the blob."""
        while self._first_wanted < len(self._positions) and self._positions[self._first_wanted] not in self.wanted:
            self._first_wanted += 1
        return (piece for piece in islice(self._positions, self._first_wanted, None) if piece in self.free)
