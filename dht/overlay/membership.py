"""Staying a member: join through known addresses, keep the routing table fresh, notice the end of a cut.

When what is due is decided by `Schedule`, which is handed the time; `Membership` does it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import structlog

from dht.overlay.asking import Asking
from dht.overlay.datagrams import Address
from dht.overlay.endpoint import Peer
from dht.overlay.lookups import Lookups
from dht.overlay.messages import Ping, Pong
from dht.overlay.routing import SUSPICIOUS_SHARE, Routing, address_of, refresh_targets
from protocol.identifiers import KEY_BYTES

log = structlog.get_logger(__name__)

REFRESH_PREFIXES = 5
FIRST_REFRESH_S = 15.0
REFRESH_S = (600.0, 900.0)
"""Bounds of the random pause between two refreshes."""
REJOIN_S = (1.0, 15.0)
"""First and longest pause between attempts to join while nobody is known."""
TICK_S = 1.0
QUIET_TICK_S = 5.0
"""While nobody is lost, who next goes silent is found out by a question, not by the clock."""
PROBE_S = 5.0
"""While suspiciously many members are lost, PROBES of them are asked this often, however long they have been silent."""
PROBES = 2
NEIGHBOURS_S = 15.0
"""How often those who are said to be on this network, and have not proven themselves, are asked to."""
RETURN_S = 15.0
"""One return is told once: the others come back within this time."""
REFRESH_AFTER_RETURN_S = 2.0


class Schedule:
    """When the next attempt to join, probe and refresh are due. Times are the event loop's, in seconds."""

    def __init__(self) -> None:
        self.join_at = 0.0
        self.probe_at = 0.0
        self.refresh_at = 0.0
        self.neighbours_at = 0.0
        self._pause = REJOIN_S[0]
        self._returned_at = -RETURN_S

    def begin(self, now: float) -> None:
        self.join_at = now
        self.probe_at = now + PROBE_S
        self.refresh_at = now + FIRST_REFRESH_S

    def tried_to_join(self, now: float, *, joined: bool) -> None:
        """The pause doubles with each failure in a row."""
        self._pause = REJOIN_S[0] if joined else min(2 * self._pause, REJOIN_S[1])
        self.join_at = now + self._pause

    def member_came_back(self, now: float) -> bool:
        """True if a return begins with it: then a refresh is due soon. The others of the same return change nothing."""
        if now - self._returned_at < RETURN_S:
            return False
        self._returned_at = now
        self.refresh_at = min(self.refresh_at, now + REFRESH_AFTER_RETURN_S)
        return True


class Membership:
    """`on_return` hears of the end of a cut. `own_address`: where this node itself can be asked."""

    def __init__(
        self,
        own_id: bytes,
        routing: Routing,
        asking: Asking,
        lookups: Lookups,
        *,
        on_return: Callable[[], None],
        own_address: Callable[[], Address],
        chance: random.Random,
    ) -> None:
        self._own_id = own_id
        self._routing = routing
        self._asking = asking
        self._lookups = lookups
        self._on_return = on_return
        self._own_address = own_address
        self._chance = chance
        self._schedule = Schedule()
        self._bootstrap: list[tuple[str, int]] = []

    @property
    def alone(self) -> bool:
        """True if no other node is known to exist."""
        return not (len(self._routing) or self._bootstrap or self._routing.lost_members())

    @property
    def connected(self) -> bool:
        return len(self._routing) > 0

    def add_bootstrap(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Addresses at which members may be found, asked whenever this node knows nobody."""
        self._bootstrap += [a for a in addresses if a not in self._bootstrap]

    def meet(self, node_id: bytes, address: Address) -> None:
        """A member is said to be on our own network: it is asked to prove it, and from then on by every lookup that
        finds nobody nearer. So machines of one site have each other when the uplink is cut, however large the mesh."""
        if node_id != self._own_id:
            self._routing.meet(node_id, address)
            self._asking.check(node_id, address)

    def part(self, node_id: bytes) -> None:
        self._routing.part(node_id)

    async def join(self) -> bool:
        """Ask all bootstrap addresses at once, then fill the routing table. True if anybody answered."""
        numeric = await asyncio.gather(*(_resolved(host, port) for host, port in self._bootstrap))
        now = asyncio.get_running_loop().time()
        lost = [address_of(node) for node in [*self._routing.lost_members(), *self._routing.neighbours(now)]]
        addresses = dict.fromkeys([*(a for found in numeric for a in found), *lost])
        others = [a for a in addresses if a != self._own_address()]
        await asyncio.gather(*(self._asking.call(Peer(None, a), Ping, Pong) for a in others))
        if self.connected:
            await self.refresh()
        return self.connected

    async def refresh(self) -> None:
        """Look up the own id and one id in each far part of the id space."""
        targets = [self._own_id, *refresh_targets(self._own_id, REFRESH_PREFIXES, self._chance.randbytes(KEY_BYTES))]
        await asyncio.gather(*(self._lookups.find(target) for target in targets))

    async def maintain(self) -> None:
        """Rejoin when alone, ask lost members again, refresh the table. Runs until cancelled."""
        loop = asyncio.get_running_loop()
        due = self._schedule
        due.begin(loop.time())
        while True:
            now = loop.time()
            if not self.connected and now >= due.join_at:
                joined = await self.join()
                due.tried_to_join(loop.time(), joined=joined)
            for node in self._routing.to_ask_again(now):
                self._asking.check(node.id, address_of(node))
            if now >= due.probe_at:
                due.probe_at = now + PROBE_S
                self._probe_lost()
            if now >= due.neighbours_at:
                due.neighbours_at = now + NEIGHBOURS_S
                for stranger in self._routing.strangers(now):
                    self._asking.check(*stranger)
            if now >= due.refresh_at:
                due.refresh_at = now + self._chance.uniform(*REFRESH_S)
                await self.refresh()
            await asyncio.sleep(TICK_S if self._routing.anybody_lost or not self.connected else QUIET_TICK_S)

    def _probe_lost(self) -> None:
        """Ask a few lost members, so that the end of a cut is noticed within seconds even after hours."""
        if self._routing.lost_share < SUSPICIOUS_SHARE:
            return
        lost = self._routing.lost_members()
        for node in self._chance.sample(lost, min(PROBES, len(lost))):
            self._asking.check(node.id, address_of(node))

    def came_back(self) -> None:
        """A lost member answered while many were lost: this side, or that one, is reachable again."""
        now = asyncio.get_running_loop().time()
        if self._schedule.member_came_back(now):
            log.info("mesh-reached-again", lost=len(self._routing.lost_members()), contacts=len(self._routing))
            self._routing.end_rests(now)
            self._on_return()


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _resolved(host: str, port: int) -> list[Address]:
    """Numeric addresses of a host; none if its name cannot be resolved in time."""
    if _is_numeric(host):
        return [Address(host, port)]
    try:
        async with asyncio.timeout(2.0):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=2)
    except (OSError, UnicodeError) as error:
        log.warning("bootstrap-address-not-resolved", host=host, error=str(error) or "timeout")
        return []
    return [Address(str(sockaddr[0]), int(sockaddr[1])) for *_, sockaddr in found]
