"""What a key that is full costs a node that holds it: records and questions, as its datagrams bring them.

16,384 records of 24 members, each with a publisher of its own, in a database on disk, three in a datagram. All figures
are processor time in microseconds: `new_us` a record while the key fills, its signature checked; `echo_us` one that is
held already; `newer_us` a new version; `refused_us` one for which there is no room; `page_us` and `compare_us` a
question about the key; `after_change_us` the first page after three new versions came; `absent_us` a page of one of 50
keys at which nothing stands. Part of `benchmarks.records`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from dht import ordering, rules
from dht.overlay.answering import Answering
from dht.overlay.messages import Compare, Records, Store
from dht.overlay.routing import Routing
from dht.records.replica import Replica
from dht.records.storage import Storage, opened_storage
from protocol.identifiers import record_key
from tests.dht_mesh import identity, service

CATEGORY = "/text"
KEY = record_key(f"category:{CATEGORY}")
MEMBERS = 24
SHARE = -(-rules.MAX_PER_KEY // MEMBERS)
OTHERS = 1500
"""Records beside those that fill the key, and questions of each kind."""
IN_A_DATAGRAM = 3
FOLDED_EVERY = 64
"""Datagrams, then the log is looked at, as a running node does every second."""
ID = b"question"
ME = b"m" * 20

T = TypeVar("T")


class Datagram(NamedTuple):
    member: bytes
    envelopes: tuple[bytes, ...]


def made(numbers: Sequence[int], seq: int) -> list[Datagram]:
    """Datagrams full of records; a higher `seq` makes new versions of the same."""
    envelopes = [
        service(
            f"svc{n}",
            seq=seq,
            category=CATEGORY,
            expiry=time.time() + 86_400,
            key=identity(200_000 + member_of(n)),
            description=f"service number {n} which does what its sisters do not",
        ).envelope
        for n in numbers
    ]
    return [
        Datagram(b"member %013d" % member_of(numbers[i]), tuple(envelopes[i : i + IN_A_DATAGRAM]))
        for i in range(0, len(numbers), IN_A_DATAGRAM)
    ]


def member_of(number: int) -> int:
    return number // SHARE % MEMBERS


def cost_us(act: Callable[[T], object], on: Sequence[T], *, each: int = 1) -> float:
    """Processor time of one of the `each` things that one call does."""
    began = time.process_time()
    for one in on:
        act(one)
    return round((time.process_time() - began) * 1e6 / len(on) / each, 1)


class Holder:
    """The shelf of one node and what it answers; it has no contacts to name."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._answering = Answering(ME, Routing(ME, 20), Replica(storage, time.time), k=20, door=0)
        self._came = 0

    def store(self, datagram: Datagram) -> None:
        self._answering.answer(Store(ID, datagram.member, False, KEY, datagram.envelopes), None, proven=True)
        self._came += 1
        if self._came % FOLDED_EVERY == 0 and self._storage.log_is_long:
            self._storage.checkpoint()

    def page(self, key: bytes = KEY) -> None:
        self._answering.answer(Records(ID, ME, False, key, None), None, proven=True)

    def compare(self, _: object = None) -> None:
        self._answering.answer(Compare(ID, ME, False, KEY, *ordering.EVERYWHERE), None, proven=True)


def measured() -> dict[str, float]:
    seq = int(time.time() * 1000)
    fill = made(range(rules.MAX_PER_KEY), seq)
    newer = made(range(0, rules.MAX_PER_KEY, rules.MAX_PER_KEY // OTHERS), seq + 1)
    newest = made(range(0, rules.MAX_PER_KEY, 5 * rules.MAX_PER_KEY // OTHERS), seq + 2)
    late = made(range(rules.MAX_PER_KEY, rules.MAX_PER_KEY + OTHERS), seq)
    absent = [record_key(f"id:absent{n % 50}") for n in range(OTHERS)]
    with tempfile.TemporaryDirectory() as folder, opened_storage(Path(folder) / "state.sqlite") as storage:
        holder = Holder(storage)
        found = {
            "new_us": cost_us(holder.store, fill, each=IN_A_DATAGRAM),
            "echo_us": cost_us(holder.store, fill[: len(late)], each=IN_A_DATAGRAM),
            "newer_us": cost_us(holder.store, newer, each=IN_A_DATAGRAM),
            "refused_us": cost_us(holder.store, late, each=IN_A_DATAGRAM),
        }
        holder.page()
        found["page_us"] = cost_us(holder.page, [KEY] * OTHERS)
        found["compare_us"] = cost_us(holder.compare, [None] * OTHERS)
        after: list[float] = []
        for datagram in newest:
            holder.store(datagram)
            after.append(cost_us(holder.page, [KEY]))
        found["after_change_us"] = round(statistics.mean(after), 1)
        found["absent_us"] = cost_us(holder.page, absent)
        assert len(storage.at(KEY)) == rules.MAX_PER_KEY
    return found


if __name__ == "__main__":
    print(json.dumps(measured()))
