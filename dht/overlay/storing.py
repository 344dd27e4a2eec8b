"""Handing records to nodes: a store is good when enough of them say that they hold what they were sent.

Each envelope goes to each node at most once, and of a large set only what the node seems to lack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from kademlia.node import Node

from dht import ordering, rules
from dht.overlay.asking import Asking
from dht.overlay.messages import Compare, Parts, Store, Stored
from dht.overlay.sealing import MAX_PLAINTEXT
from dht.tasks import OwnedTasks

HandOver: TypeAlias = asyncio.Task[list[int] | None]
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

    async def store_at(
        self,
        nodes: Sequence[Node],
        key: bytes,
        envelopes: Sequence[bytes],
        others: Coroutine[Any, Any, Sequence[Node]] | None = None,
    ) -> StoreOutcome:
        """Hand records to all these nodes, and to `others` when they are found. Returns at enough acks; who is slower,
        or not found yet, is told all the same."""
        waiting = self._told(nodes, key, envelopes)
        finding = None if others is None else self._tasks.run(self._told_later(others, key, envelopes))
        asked, acks, superseded = len(nodes), 0, False
        while (waiting or finding) and acks < self._acks:
            done, _ = await asyncio.wait(
                [*waiting, *([finding] if finding else [])], return_when=asyncio.FIRST_COMPLETED
            )
            verdicts = [v for task in waiting & done if (v := task.result()) is not None]
            acks += len(verdicts)
            superseded = superseded or any(rules.Verdict.SUPERSEDED in v for v in verdicts)
            waiting -= done
            if finding in done:
                asked += len(finding.result())
                waiting |= finding.result()
                finding = None
        enough = 0 < acks >= min(self._acks, asked)
        return StoreOutcome(asked, acks, enough, superseded)

    def _told(self, nodes: Sequence[Node], key: bytes, envelopes: Sequence[bytes]) -> set[HandOver]:
        return {self._tasks.run(self._hand_over(node, key, envelopes)) for node in nodes}

    async def _told_later(
        self, nodes: Coroutine[Any, Any, Sequence[Node]], key: bytes, envelopes: Sequence[bytes]
    ) -> set[HandOver]:
        return self._told(await nodes, key, envelopes)

    async def _hand_over(self, node: Node, key: bytes, envelopes: Sequence[bytes]) -> list[int] | None:
        """The verdicts, or None if the node went silent or refused everything."""
        verdicts: list[int] = []
        if len(envelopes) > COMPARE_FROM:
            told = await self._asking.ask(node, Compare, Parts, key, *ordering.EVERYWHERE)
            if told is None:
                return None
            lacking = ordering.lacking(envelopes, told.parts, told.positions)
            verdicts += [rules.Verdict.KEPT] * (len(envelopes) - len(lacking))
            envelopes = lacking
        for batch in ordering.batches(envelopes, MAX_PLAINTEXT - STORE_OVERHEAD):
            stored = await self._asking.ask(node, Store, Stored, key, tuple(batch))
            if stored is None:
                return None
            verdicts += stored.verdicts
        return verdicts if ACKNOWLEDGED.intersection(verdicts) else None
