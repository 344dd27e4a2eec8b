"""Asking the controller of another region to host (`POST /peer/handoff`), and working its leases from here.

Mutual TLS says who asks; only controllers may. A repeated `request_key` of one peer is the same request. The receiver
reserves the memory before it answers, so an answer is a promise kept already. Until then it tells how the start goes
on: the answer may be a stream of server-sent events, `progress` ... and one `result` or `problem`, as a phone gets it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import structlog
from msgspec import Meta, Struct

from client.sse import Event, EventParser
from dht.contracts import Directory
from dht.peer_http import PeerHttp, broke_off
from protocol.bounded import read_bounded
from protocol.instances import (
    PHASES,
    RELAY_S,
    RESTART_S,
    AliveTime,
    InstanceLog,
    InstanceView,
    OnProgress,
    Progress,
    StartAnswer,
    StartRequest,
)
from protocol.problems import Problem, TooLarge, Unavailable
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
MAX_STREAM = 16 << 20
MAX_MESSAGE = 300
PROGRESS_EVERY_S = 0.25
SILENT_S = 30.0
"""Who has nothing to tell says so every 10 s."""
VERB_TIMEOUT_S = 30.0
VIEW_TIMEOUT_S = 3.0
OPERATOR_HEADER = "Cornerstore-Operator"
"""`1`: an operator of the region that handed the instance off asks. Counts for that region's own instances only."""

A = TypeVar("A", StartAnswer, InstanceView, InstanceLog)
D = TypeVar("D")
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

    async def ask(self, hop: Hop, body: HandoffRequest, progress: OnProgress) -> tuple[StartAnswer, str]:
        """The answer, and the address that gave it; `progress` hears how the start goes on there.

        Raises the peer's Problem, or Unavailable.

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
                return await self._started(hop, address, body, left, progress), address
            except Unavailable as problem:
                if type(problem) is not Unavailable or "causes" in problem.extra:  # it was reached, and answered
                    raise
                failure = problem
                if broke_off(problem) and address not in again:
                    again.add(address)
                    left_to_ask.appendleft(address)
        raise failure or Unavailable(f"region {hop.region} gives no address")

    async def _started(
        self, hop: Hop, address: str, body: HandoffRequest, left_s: float, progress: OnProgress
    ) -> StartAnswer:
        data, accepted = msgspec.json.encode(body), {"Accept": "text/event-stream"}
        async with self._http.request(
            "POST", address, "/peer/handoff", timeout_s=left_s, idle_s=SILENT_S, data=data, headers=accepted
        ) as response:
            parts = response.content.iter_any()
            if response.content_type != "text/event-stream":
                return _decoded(await read_bounded(parts, MAX_ANSWER, "the answer"), StartAnswer, address)
            async with aclosing(_events(parts)) as events:
                async for event in events:
                    if event.name == "progress":
                        if (step := relayed(_decoded(event.data, Progress, address), hop.region)) is not None:
                            progress(step)
                    elif event.name == "problem":
                        raise Problem.from_dict(_decoded(event.data, dict[str, Any], address))
                    elif event.name == "result":
                        return _decoded(event.data, StartAnswer, address)
        raise Unavailable(f"controller {address} ended its answer early")

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
        return _decoded(body, kind, address)


def relayed(step: Progress, region: str) -> Progress | None:
    """A step of a start in `region`, or one that it was told of, for our own clients. None for what is none of theirs.

    It comes from the network: bounded here, before it is passed on.
    """
    if step.phase not in PHASES[1:-1]:
        return None
    return Progress(
        step.phase,
        step.message[:MAX_MESSAGE],
        max(0, step.done),
        max(0, step.total),
        step.region[:MAX_MESSAGE] or region,
    )


class Paced:
    """Passes steps on to another controller, no faster than people read: each phase at once, and then one each
    `PROGRESS_EVERY_S`. Which service is meant the other one knows."""

    def __init__(self, tell: OnProgress) -> None:
        self._tell = tell
        self._phase = ""
        self._next_at = 0.0

    def __call__(self, step: Progress) -> None:
        now = loop_time()
        if step.phase == PHASES[0] or (step.phase == self._phase and now < self._next_at):
            return
        self._phase, self._next_at = step.phase, now + PROGRESS_EVERY_S
        self._tell(step)


async def _events(parts: AsyncIterable[bytes]) -> AsyncGenerator[Event, None]:
    """Raises TooLarge beyond `MAX_STREAM` bytes, or for one event that is too large."""
    parser, read = EventParser(), 0
    async for part in parts:
        if (read := read + len(part)) > MAX_STREAM:
            raise TooLarge(f"the answer has more than {MAX_STREAM} bytes")
        for event in parser.feed(part):
            yield event


def _decoded(data: bytes, kind: type[D], address: str) -> D:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"controller {address} answered something else: {error}") from None


def on_behalf(token: str | None, *, operator: bool) -> dict[str, str]:
    """Headers that say for whom this controller asks."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return headers | {OPERATOR_HEADER: "1"} if operator else headers
