"""Asking the controller of another region to host (`POST /peer/handoff`), and working its leases from here.

Mutual TLS says who asks; only controllers may. A repeated `request_key` of one peer is the same request. The receiver
reserves the memory before it answers, so an answer is a promise kept already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import structlog
from msgspec import Meta, Struct

from dht.contracts import Directory
from dht.peer_http import PeerHttp, broke_off
from protocol.bounded import read_bounded
from protocol.instances import RELAY_S, RESTART_S, AliveTime, InstanceLog, InstanceView, StartAnswer, StartRequest
from protocol.problems import Unavailable
from protocol.records import Digest, NodeId
from region_controller.hierarchy import MAX_HOPS, Hop
from region_controller.leases import Held
from region_controller.wanted import loop_time

log = structlog.get_logger(__name__)

MAX_VISITED = 256
MAX_ANSWER = 2 << 20
"""A log of the longest lines, each character escaped."""
ANSWER_MARGIN_S = 0.3
"""A receiver that runs out of time must still be able to say so."""
VERB_TIMEOUT_S = 30.0
VIEW_TIMEOUT_S = 3.0
OPERATOR_HEADER = "Cornerstore-Operator"
"""`1`: an operator of the region that handed the instance off asks. Counts for that region's own instances only."""

A = TypeVar("A", StartAnswer, InstanceView, InstanceLog)
Verb = Literal["stop", "restart", "alive", "remove"]
VERBS: tuple[Verb, ...] = ("stop", "restart", "alive", "remove")


class HandoffRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`request` as the phone sent it; `digest`: what it was resolved to. `visited`: nodes that were or will be asked.

    `hops` counts this one, from 1. `deadline_s`: seconds left for the answer. `only_warm`: start nothing. `within_ms`:
    the longest round trip that the service allows between the receiver and the agent, None: as its record says.
    """

    request: StartRequest
    digest: Digest
    visited: Annotated[tuple[NodeId, ...], Meta(max_length=MAX_VISITED)]
    hops: Annotated[int, Meta(ge=1, le=MAX_HOPS)]
    deadline_s: Annotated[float, Meta(gt=0, le=3600)]
    request_key: Annotated[str, Meta(min_length=8, max_length=64)]
    only_warm: bool = False
    within_ms: Annotated[float, Meta(ge=0)] | None = None


class AliveRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Optional body of `POST .../alive`. `alive_time` in s from now; None: the instance's own; 0: until stopped."""

    alive_time: AliveTime | None = None


class RemoteRegions:
    """The other controllers, as this one calls them."""

    def __init__(self, http: PeerHttp, directory: Directory) -> None:
        self._http = http
        self._directory = directory

    async def ask(self, hop: Hop, body: HandoffRequest) -> tuple[StartAnswer, str]:
        """The answer, and the address that gave it. Raises the peer's Problem, or Unavailable.

        Only an address that cannot be reached is followed by the next, and one whose answer was lost is asked once
        more; the request key makes that safe.
        """
        failure: Unavailable | None = None
        ends = loop_time() + body.deadline_s + ANSWER_MARGIN_S
        left_to_ask = deque(hop.addresses)
        again: set[str] = set()
        while left_to_ask and (left := ends - loop_time()) > 0:
            address = left_to_ask.popleft()
            try:
                return await self._answer(
                    "POST",
                    address,
                    "/peer/handoff",
                    StartAnswer,
                    left,
                    data=msgspec.json.encode(body),
                ), address
            except Unavailable as problem:
                if type(problem) is not Unavailable or "causes" in problem.extra:  # it was reached, and answered
                    raise
                failure = problem
                if broke_off(problem) and address not in again:
                    again.add(address)
                    left_to_ask.appendleft(address)
        raise failure or Unavailable(f"region {hop.region} gives no address")

    async def command(
        self, held: Held, verb: Verb, *, token: str | None, operator: bool, body: AliveRequest
    ) -> InstanceView:
        data = msgspec.json.encode(body) if verb == "alive" else b""
        path = f"/peer/instances/{held.instance}/{verb}"
        headers = on_behalf(token, operator=operator)
        timeout_s = RESTART_S + 2 * RELAY_S if verb == "restart" else VERB_TIMEOUT_S
        return await self._at_holder(held, "POST", path, InstanceView, timeout_s, headers=headers, data=data)

    async def view(self, held: Held) -> InstanceView:
        return await self._at_holder(held, "GET", f"/peer/instances/{held.instance}", InstanceView, VIEW_TIMEOUT_S)

    async def log(self, held: Held, lines: int, *, token: str | None, operator: bool) -> InstanceLog:
        path = f"/peer/instances/{held.instance}/log?lines={lines}"
        headers = on_behalf(token, operator=operator)
        return await self._at_holder(held, "GET", path, InstanceLog, VERB_TIMEOUT_S, headers=headers)

    async def _at_holder(self, held: Held, method: str, path: str, kind: type[A], timeout_s: float, **kwargs: Any) -> A:
        """At the address known; if that is dead, at those its controller announces now."""
        try:
            return await self._answer(method, held.address, path, kind, timeout_s, **kwargs)
        except Unavailable as problem:
            for address in await self._announced(held):
                if address != held.address:
                    log.info("handoff-address-changed", region=held.region, address=address)
                    return await self._answer(method, address, path, kind, timeout_s, **kwargs)
            raise problem

    async def _announced(self, held: Held) -> Sequence[str]:
        try:
            records = await self._directory.regions(f"region:{held.region}")
        except Unavailable:
            return ()
        return [a for r in records if r.node == held.controller for a in r.addresses]

    async def _answer(self, method: str, address: str, path: str, kind: type[A], timeout_s: float, **kwargs: Any) -> A:
        async with self._http.request(method, address, path, timeout_s=timeout_s, **kwargs) as response:
            body = await read_bounded(response.content.iter_any(), MAX_ANSWER, "the answer")
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise Unavailable(f"controller {address} answered something else: {error}") from None


def on_behalf(token: str | None, *, operator: bool) -> dict[str, str]:
    """Headers that say for whom this controller asks."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return headers | {OPERATOR_HEADER: "1"} if operator else headers
