"""How many bytes a node may keep, who goes when they are not enough, and what is promised to files that come and go."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dht.blobs.index import BlobIndex, Gone
from dht.blobs.use_order import UseOrder
from protocol.problems import DiskFull

RESERVE = 16 << 20
"""Bytes of the file system that are left free for the database and for other programs."""


class Evicted(NamedTuple):
    """Blobs that went from the index, and what they left on the disk."""

    blobs: tuple[str, ...]
    left: list[Gone]


@dataclass
class Loan:
    """Bytes promised to a file that is no blob (yet), and how many of them are on the disk by now."""

    promised: int
    written: int = 0

    @property
    def rest(self) -> int:
        return self.promised - self.written


class Room:
    """The caller holds the store's lock around every call."""

    def __init__(self, root: Path, index: BlobIndex, use: UseOrder, quota_bytes: int) -> None:
        self._root = root
        self._index = index
        self._use = use
        self.quota_bytes = quota_bytes
        self._loans: list[Loan] = []

    def limit(self) -> int:
        """On a full disk the quota shrinks to what is given out and what is free."""
        taken = self._index.bytes_used() + sum(loan.written for loan in self._loans)
        return min(self.quota_bytes, taken + max(0, shutil.disk_usage(self._root).free - RESERVE))

    def free(self) -> int:
        """Bytes that may be lent without an eviction."""
        return max(0, self.limit() - self._index.bytes_used() - self._promised())

    def lend(self, size: int) -> Loan:
        loan = Loan(size)
        self._loans.append(loan)
        return loan

    def returned(self, loan: Loan) -> None:
        """The file has gone, or belongs to a blob now. May be said twice."""
        self._loans = [other for other in self._loans if other is not loan]

    def make(self, blob: str, limit: int, more: int = 0) -> Evicted:
        """Evicts by least recent use until all known blobs fit, and `more` bytes; in a transaction of the caller's.

        `limit` was taken before the blob was known. Partial blobs count with their full size: what is begun is
        reserved. Raises DiskFull if what must stay does not fit; then nothing is evicted.
        """
        allowed = limit - self._promised() - more
        self._index.set_order(self._use.order())
        stay = self._index.pinned() | {blob} | self._use.held()
        needed = self._index.bytes_used_by(stay)
        if needed > allowed:
            raise DiskFull(
                f"{needed + more} bytes are needed with what is pinned or in use; this node may keep {allowed + more}",
                fix="Raise the quota, free disk space, or withdraw services published here.",
            )
        return self._evict_to(allowed, stay)

    def shrink(self) -> Evicted:
        """Evicts, at a start, what is beyond the quota, which an operator may have lowered; what is pinned stays. In a
        transaction of the caller's."""
        return self._evict_to(self.quota_bytes, self._index.pinned())

    def _evict_to(self, allowed: int, stay: Collection[str]) -> Evicted:
        evicted: list[str] = []
        left: list[Gone] = []
        total = self._index.bytes_used()
        for victim in [digest for digest, _, _ in self._index.blobs() if digest not in stay]:
            if total <= allowed:
                break
            if gone := self._index.delete(victim):
                total -= sum(place.length for place in gone.places)
                left.append(gone)
                evicted.append(victim)
        return Evicted(tuple(evicted), left)

    def _promised(self) -> int:
        return sum(loan.promised for loan in self._loans)
