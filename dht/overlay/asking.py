"""Questions to other nodes, each with its consequences for the routing table.

Who answers, or asks and is proven, is alive; who keeps silent is suspect; whom nobody vouches for is checked in the
background before it may become a contact. A peer never makes a question raise: its failure is the answer None.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from kademlia.node import Node

from dht.overlay.datagrams import Address
from dht.overlay.endpoint import Endpoint, Peer
from dht.overlay.messages import A, Ping, Pong, Request
from dht.overlay.routing import SUSPICIOUS_SHARE, Routing, address_of
from dht.tasks import OwnedTasks

MAX_CHECKS = 64
"""Nodes whose claimed id is being checked at one time."""


class Asking:
    """`on_newcomer` hears the id of every node that enters the routing table; `on_back`, without argument, that a lost
    member showed itself while suspiciously many were lost."""

    def __init__(
        self,
        endpoint: Endpoint,
        routing: Routing,
        tasks: OwnedTasks,
        *,
        on_newcomer: Callable[[bytes], None],
        on_back: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._routing = routing
        self._tasks = tasks
        self._on_newcomer = on_newcomer
        self._on_back = on_back
        self._checking: set[bytes] = set()

    async def ask(self, node: Node, request: type[Request], answer: type[A], *args: Any) -> A | None:
        """None if the node did not answer in time, or not with `answer`."""
        return await self.call(Peer(node.id, address_of(node)), request, answer, *args)

    async def ask_any(self, nodes: Sequence[Node], request: type[Request], answer: type[A], *args: Any) -> A | None:
        """The first answer of nodes that would all answer alike. The next is asked when one fails, or is slow."""
        asked: set[asyncio.Task[A | None]] = set()
        for node in nodes:
            asked.add(self._tasks.run(self.ask(node, request, answer, *args)))
            done, asked = await asyncio.wait(asked, timeout=self.patience(node), return_when=asyncio.FIRST_COMPLETED)
            if found := next((a for task in done if (a := task.result()) is not None), None):
                return found
        while asked:
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            if found := next((a for task in done if (a := task.result()) is not None), None):
                return found
        return None

    def patience(self, node: Node) -> float:
        """After how many seconds a node counts as slow."""
        return self._endpoint.round_trips.timeout(address_of(node)) / 2

    async def call(self, peer: Peer, request: type[Request], answer: type[A], *args: Any) -> A | None:
        """One question to an address, whoever is there if `peer` names no node."""
        now = asyncio.get_running_loop().time()
        known = peer.node is not None and self._routing.is_proven(peer.node, peer.address, now)
        found = await self._endpoint.call(peer, request, answer, *args, prove=not known)
        if found is not None:
            if not known:
                self._routing.proved(found.sender, peer.address, asyncio.get_running_loop().time())
            self.heard(Peer(found.sender, peer.address))
        elif peer.node is not None:
            self._routing.failed(peer.node, peer.address, asyncio.get_running_loop().time())
        return found

    def heard(self, peer: Peer) -> None:
        """A proven peer showed that it is alive."""
        assert peer.node is not None
        if self._routing.is_lost(peer.node) and self._routing.lost_share >= SUSPICIOUS_SHARE:
            self._on_back()
        is_new = self._routing.table.get(peer.node) is None
        doubtful = self._routing.alive(peer.node, peer.address)
        if doubtful is not None:
            self.check(doubtful.id, address_of(doubtful))
        elif is_new:
            self._on_newcomer(peer.node)

    def asked_by(self, node_id: bytes, address: Address) -> bool:
        """Somebody who says it is this node sent a request. True if it is proven to be; else it is checked."""
        proven = self._routing.is_proven(node_id, address, asyncio.get_running_loop().time())
        if proven:
            self.heard(Peer(node_id, address))
        else:
            self.check(node_id, address)
        return proven

    def check(self, node_id: bytes, address: Address) -> None:
        """Ping a node in the background, once at a time."""
        if node_id not in self._checking and len(self._checking) < MAX_CHECKS:
            self._checking.add(node_id)
            self._tasks.run(self._checked(Peer(node_id, address)))

    async def _checked(self, peer: Peer) -> None:
        assert peer.node is not None
        try:
            await self.call(peer, Ping, Pong)
        finally:
            self._checking.discard(peer.node)
