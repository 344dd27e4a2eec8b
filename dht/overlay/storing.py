"""Handing records to nodes: a store is good when enough of them say that they hold what they were sent.

Each envelope goes to each node at most once, and of a large set only what the node seems to lack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from kademlia.node import Node

from dht import rules
from dht.overlay.asking import Asking
from dht.overlay.messages import Compare, Parts, Store, Stored
from dht.sealing import MAX_PLAINTEXT
from dht.tasks import OwnedTasks

ACKNOWLEDGED = {rules.Verdict.KEPT, rules.Verdict.SUPERSEDED}
COMPARE_FROM = 16
"""Of a larger set only those records are sent that the receiver lacks: a question is cheaper than many stores."""
STORE_OVERHEAD = 64
"""Bytes of a store request beside its envelopes."""


@dataclass(frozen=True)
class StoreOutcome:
    """`asked` nodes were sent the records, `acks` answered that they hold them, or something newer (`superseded`).
    `enough`: as many as make a store good, or all of them in a small mesh."""

    asked: int
    acks: int
    enough: bool
    superseded: bool = False


class Storing:
    """`acks` make a store good."""

    def __init__(self, asking: Asking, acks: int, tasks: OwnedTasks) -> None:
        self._asking = asking
        self._acks = acks
        self._tasks = tasks

    async def store_at(self, nodes: Sequence[Node], key: bytes, envelopes: Sequence[bytes]) -> StoreOutcome:
        """Hand records to all these nodes. Returns at enough acks; the slower ones are told all the same."""
        waiting = {self._tasks.run(self._hand_over(node, key, envelopes)) for node in nodes}
        acks, superseded = 0, False
        while waiting and acks < self._acks:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            verdicts = [v for task in done if (v := task.result()) is not None]
            acks += len(verdicts)
            superseded = superseded or any(rules.Verdict.SUPERSEDED in v for v in verdicts)
        enough = 0 < acks >= min(self._acks, len(nodes))
        return StoreOutcome(len(nodes), acks, enough, superseded)

    async def _hand_over(self, node: Node, key: bytes, envelopes: Sequence[bytes]) -> list[int] | None:
        """The verdicts, or None if the node went silent or refused everything."""
        verdicts: list[int] = []
        if len(envelopes) > COMPARE_FROM:
            told = await self._asking.ask(node, Compare, Parts, key, *rules.EVERYWHERE)
            if told is None:
                return None
            lacking = rules.lacking(envelopes, told.parts, told.positions)
            verdicts += [rules.Verdict.KEPT] * (len(envelopes) - len(lacking))
            envelopes = lacking
        for batch in rules.batches(envelopes, MAX_PLAINTEXT - STORE_OVERHEAD):
            stored = await self._asking.ask(node, Store, Stored, key, tuple(batch))
            if stored is None:
                return None
            verdicts += stored.verdicts
        return verdicts if ACKNOWLEDGED.intersection(verdicts) else None
