"""The controller's end of the agent links: one WebSocket per agent, commands out, reports in (see `protocol.link`).

A link that is refused is closed with code 4000 + HTTP status and the problem in the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence

import structlog
from aiohttp import WSMsgType, web
from msgspec import Struct

from dht.peer_http import PEER, PEER_UNTIL
from protocol.instances import InstanceReport, OnProgress, Progress
from protocol.link import (
    HEARTBEAT_S,
    LINK_VERSION,
    MAX_FRAME,
    Command,
    Done,
    FromController,
    Heartbeat,
    Hello,
    InstanceChanged,
    OnInstance,
    Prepare,
    Prepared,
    ProgressMade,
    Refused,
    Welcome,
    decode_from_agent,
    encode,
)
from protocol.peers import PeerIdentity
from protocol.problems import BadRequest, Conflict, DeadlineExceeded, Forbidden, Problem, Unavailable
from protocol.service import Allowed
from region_controller.members import Members
from region_controller.round_trips import round_trip_ms

log = structlog.get_logger(__name__)

HELLO_WITHIN_S = 5.0
SILENT_S = 5 * HEARTBEAT_S
"""A link without a frame for so long is closed: the agent dials again if it lives."""
MAX_QUEUED = 4_096
"""Commands that wait for an agent to read."""
MAX_CLOSE_REASON = 123


class _Pending(Struct):
    done: asyncio.Future[Done | Prepared | Problem]
    on_progress: OnProgress | None


class AgentLink:
    """One connected agent."""

    def __init__(self, node: str, socket: web.WebSocketResponse) -> None:
        self.node = node
        self._socket = socket
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue(MAX_QUEUED)
        self._pending: dict[str, _Pending] = {}
        self._down: Problem | None = None

    def post(self, message: FromController) -> None:
        """Send without waiting for the answer. Raises Unavailable if the link is down or the agent does not read."""
        if self._down is not None:
            raise self._down
        try:
            self._outgoing.put_nowait(encode(message))
        except asyncio.QueueFull:
            raise Unavailable(f"agent {self.node[:8]} does not read its commands") from None

    async def call(self, command: OnInstance, *, timeout_s: float, on_progress: OnProgress | None = None) -> Done:
        """Send and wait. Raises the agent's Problem, Unavailable (the link dropped), DeadlineExceeded."""
        done = await self._answer(command, timeout_s, on_progress)
        if not isinstance(done, Done):
            raise Unavailable(f"agent {self.node[:8]} answered something else")
        return done

    async def prepare(self, command: Prepare, *, timeout_s: float, on_progress: OnProgress | None = None) -> Prepared:
        """Like `call`, for what concerns no instance."""
        prepared = await self._answer(command, timeout_s, on_progress)
        if not isinstance(prepared, Prepared):
            raise Unavailable(f"agent {self.node[:8]} answered something else")
        return prepared

    async def _answer(self, command: Command, timeout_s: float, on_progress: OnProgress | None) -> Done | Prepared:
        pending = _Pending(asyncio.get_running_loop().create_future(), on_progress)
        self._pending[command.command] = pending
        try:
            self.post(command)
            async with asyncio.timeout(timeout_s):
                outcome = await pending.done
        except TimeoutError:
            raise DeadlineExceeded(f"agent {self.node[:8]} did not finish within {timeout_s:.0f} s") from None
        finally:
            del self._pending[command.command]
        if isinstance(outcome, Problem):
            raise outcome
        return outcome

    def settle(self, command: str, outcome: Done | Prepared | Problem) -> None:
        if (pending := self._pending.get(command)) and not pending.done.done():
            pending.done.set_result(outcome)

    def progress(self, command: str, step: Progress) -> None:
        if (pending := self._pending.get(command)) and pending.on_progress:
            pending.on_progress(step)

    def fail(self, problem: Problem) -> None:
        """The link is down: every command under way fails."""
        self._down = problem
        for command in list(self._pending):
            self.settle(command, problem)

    async def write(self) -> None:
        with contextlib.suppress(ConnectionError):  # the reader sees the end of the link too, and cleans up
            while True:
                await self._socket.send_bytes(await self._outgoing.get())

    async def close(self, code: int, reason: str) -> None:
        await self._socket.close(code=code, message=reason.encode("ascii", "replace")[:MAX_CLOSE_REASON])


class AgentLinks:
    """All links of a region. Reports go to `members`; `on_hello` and `on_change` tell the controller afterwards.

    `on_change`: of which agent, and the report if one of its instances changed. `allowed`: what agents are told.
    """

    def __init__(
        self,
        members: Members,
        *,
        region: str,
        node: str,
        mesh: str,
        allowed: Allowed,
        clock: Callable[[], float],
        on_hello: Callable[[str, Sequence[InstanceReport], Sequence[str]], None],
        on_change: Callable[[str, InstanceReport | None], None],
    ) -> None:
        self._members = members
        self._region, self._node, self._mesh = region, node, mesh
        self._allowed = allowed
        self._clock = clock
        self._on_hello = on_hello
        self._on_change = on_change
        self._links: dict[str, AgentLink] = {}

    def link(self, node: str) -> AgentLink:
        """Raises Unavailable if the agent is not connected."""
        if link := self._links.get(node):
            return link
        raise Unavailable(f"agent {node[:8]} is not connected", fix="It dials again when it is back.", retry_after=5)

    def missing(self, node: str) -> bool:
        return node not in self._links

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """`GET /peer/agent-link`: lives as long as the link. Raises Forbidden before the upgrade for a wrong role."""
        peer: PeerIdentity | None = request.get(PEER)
        if peer is None or "agent" not in peer.roles:
            raise Forbidden("only agents dial here", fix="Join the machine with the role `agent`.")
        socket = web.WebSocketResponse(max_msg_size=MAX_FRAME, timeout=2.0, compress=False)
        await socket.prepare(request)
        try:
            hello = await self._await_hello(socket, peer)
        except Problem as problem:
            await _refuse(socket, peer, problem)
            return socket
        link = AgentLink(hello.node, socket)
        await self._take_over(link)
        self._welcome(link, hello)
        self._members.measured(link.node, round_trip_ms(request.transport))
        writer = asyncio.create_task(link.write())
        try:
            await self._read(link, socket, request.transport, until=request.get(PEER_UNTIL, math.inf))
        except Problem as problem:
            await _refuse(socket, peer, problem)
        finally:
            self._drop(link)  # first and without an await: the handler itself may be cancelled here
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            await socket.close()
        return socket

    async def close(self) -> None:
        """Say goodbye to every agent; they dial again when the controller is back."""
        await asyncio.gather(*(link.close(1001, "the controller stops") for link in list(self._links.values())))

    async def _take_over(self, link: AgentLink) -> None:
        """A second link of one agent replaces the first: the agent restarted, or its network changed."""
        if old := self._links.get(link.node):
            self._drop(old)
            await old.close(4409, "replaced by a newer link of the same agent")

    def _welcome(self, link: AgentLink, hello: Hello) -> None:
        self._links[link.node] = link
        gone = self._members.hello(hello, self._clock())
        link.post(Welcome(LINK_VERSION, self._node, self._region, allowed=self._allowed))
        log.info("agent-connected", agent=hello.node, host=hello.host, instances=len(hello.instances))
        self._on_hello(hello.node, hello.instances, gone)
        self._on_change(hello.node, None)

    def _drop(self, link: AgentLink) -> None:
        link.fail(Unavailable(f"the link to agent {link.node[:8]} dropped", retry_after=5))
        if self._links.get(link.node) is link:
            del self._links[link.node]
            self._members.lost(link.node, self._clock())
            log.info("agent-lost", agent=link.node)
            self._on_change(link.node, None)

    async def _await_hello(self, socket: web.WebSocketResponse, peer: PeerIdentity) -> Hello:
        frame = await _receive(socket, HELLO_WITHIN_S)
        hello = decode_from_agent(frame) if frame is not None else None
        if not isinstance(hello, Hello):
            raise BadRequest("an agent says hello first")
        if hello.version != LINK_VERSION:
            raise Conflict(f"the agent speaks link version {hello.version}, this controller {LINK_VERSION}")
        if hello.node != peer.node:
            raise Forbidden("the agent says it is another node than its certificate does")
        if hello.mesh != self._mesh or peer.mesh != self._mesh:
            raise Forbidden(f"the agent belongs to another mesh than {self._mesh}")
        if hello.region != self._region and not hello.region.startswith(self._region + "/"):
            raise Forbidden(f"this controller serves {self._region}, not {hello.region}")
        return hello

    async def _read(
        self, link: AgentLink, socket: web.WebSocketResponse, transport: asyncio.Transport | None, *, until: float
    ) -> None:
        """An agent says something every 2 s, so a link ends with the certificate that it began with."""
        while (frame := await _receive(socket, SILENT_S)) is not None:
            if self._clock() >= until:
                raise Forbidden("the certificate that the link began with has ended")
            self._members.heard(link.node, self._clock())
            match decode_from_agent(frame):
                case Heartbeat(resources):
                    self._members.heartbeat(link.node, resources, self._clock())
                    self._members.measured(link.node, round_trip_ms(transport))
                    self._on_change(link.node, None)
                case InstanceChanged(report):
                    self._report(link, report)
                case ProgressMade(command, step):
                    link.progress(command, step)
                case Done(command, report) as done:
                    self._report(link, report)
                    link.settle(command, done)
                case Prepared(command) as prepared:
                    link.settle(command, prepared)
                case Refused(command, problem):
                    link.settle(command, Problem.from_dict(problem))
                case Hello():
                    raise BadRequest("an agent says hello once per link")

    def _report(self, link: AgentLink, report: InstanceReport) -> None:
        if self._links.get(link.node) is not link:
            return
        if self._members.changed(link.node, report, self._clock()):
            self._on_change(link.node, report)
        else:
            log.warning("foreign-instance-reported", agent=link.node, instance=report.instance)


async def _receive(socket: web.WebSocketResponse, timeout_s: float) -> bytes | None:
    """The next frame, None at the end of the link. Raises BadRequest for text, Unavailable for silence."""
    try:
        message = await socket.receive(timeout=timeout_s)
    except TimeoutError:
        raise Unavailable(f"nothing heard for {timeout_s:.0f} s") from None
    if message.type is WSMsgType.BINARY:
        data: bytes = message.data
        return data
    if message.type is WSMsgType.TEXT:
        raise BadRequest("frames of an agent link are binary")
    return None


async def _refuse(socket: web.WebSocketResponse, peer: PeerIdentity, problem: Problem) -> None:
    log.warning("agent-refused", agent=peer.node, region=peer.region, problem=problem.detail)
    reason = f"{problem.slug}: {problem.detail}"
    await socket.close(code=4000 + problem.status, message=reason.encode("ascii", "replace")[:MAX_CLOSE_REASON])
