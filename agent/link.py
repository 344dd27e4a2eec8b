"""The agent's side of the link: dial a controller, say what is here, carry out its commands, report every change.

A lost link never stops anything: instances run on, starts under way go on, and the next `Hello` tells the controller
what became of them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import aiohttp
import structlog

from agent.runner import Runner
from dht.peer_http import PeerHttp
from dht.quiet import Quiet
from dht.tasks import OwnedTasks
from protocol import link
from protocol.instances import InstanceReport, Progress
from protocol.problems import ControllerUnreachable, Problem, Unavailable
from protocol.tracing import step_of, within

log = structlog.get_logger(__name__)

PATH = "/peer/agent-link"
WELCOME_S = 5.0
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 5.0
MAX_LOGS_SENT = 256
OUTBOX = 1024
"""Frames waiting for a slow controller; when it is full the link is given up, and `Hello` makes good for it."""


class Locator(Protocol):
    """Where controllers may be, as `host:port` of their node-to-node listeners."""

    async def locate(self) -> Sequence[str]:
        """Candidates, best first. Raises a Problem if they cannot be looked for."""

    def failed(self, address: str) -> None:
        """Nobody answers at `address`: the next `locate` need not name it."""


class KnownControllers:
    """A Locator for addresses that somebody named: they are dialled again however often they fail."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def locate(self) -> Sequence[str]:
        return self._addresses

    def failed(self, address: str) -> None:
        log.debug("known-controller-failed", controller=address)


class AgentLink:
    """`hello` makes the current Hello, `resources` the current Resources."""

    def __init__(
        self,
        http: PeerHttp,
        locator: Locator,
        runner: Runner,
        *,
        hello: Callable[[], Awaitable[link.Hello]],
        resources: Callable[[], Awaitable[link.Resources]],
        reports: Callable[[], Sequence[InstanceReport]],
        subscribe: Callable[[Callable[[InstanceReport], None]], Callable[[], None]],
    ) -> None:
        self._http = http
        self._locator = locator
        self._runner = runner
        self._hello = hello
        self._resources = resources
        self._reports = reports
        self._subscribe = subscribe
        self._quiet = Quiet()
        self.controller: str | None = None
        """Address of the controller that the agent is linked to now."""

    async def run(self) -> None:
        """Keep a link open for ever, with jittered backoff between rounds of attempts."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            if await self._round():
                backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _round(self) -> bool:
        """Try each candidate in turn. True if one was linked to for a while."""
        try:
            candidates = await self._locator.locate()
        except Problem as problem:
            log.warning("controller-not-located", detail=problem.detail)
            return False
        for address in candidates:
            try:
                await self._session(address)
            except Problem as problem:
                if self.controller is not None or self._quiet.may_say(f"{address} {problem.detail}", time.monotonic()):
                    log.info("link-lost", controller=address, detail=problem.detail)
                if self.controller is None and isinstance(problem, Unavailable):  # a refusal is an answer
                    self._locator.failed(address)
            if self.controller is not None:
                self.controller = None
                return True
        return False

    async def _session(self, address: str) -> None:
        """One link from Hello to its end. Raises Unavailable or the controller's Problem."""
        async with self._http.websocket(address, PATH, max_frame=link.MAX_FRAME) as socket:
            session = _Session(socket, self._runner)
            # Subscribed before the Hello is made: a change in between is sent twice rather than never.
            unsubscribe = self._subscribe(session.report)
            try:
                await session.send_now(await self._hello())
                welcome = await session.welcome()
                self._runner.region_allows = welcome.allowed
                self.controller = address
                log.info("link-open", controller=address, node=welcome.node, region=welcome.region)
                for report in [r for r in self._reports() if r.log][:MAX_LOGS_SENT]:
                    session.report(report)  # a Hello has no room for logs
                await session.run(welcome.heartbeat_s, self._resources)
            finally:
                unsubscribe()


class _Session:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse, runner: Runner) -> None:
        self._socket = socket
        self._runner = runner
        self._outbox: asyncio.Queue[link.FromAgent] = asyncio.Queue(OUTBOX)
        self._overflow = asyncio.Event()

    async def send_now(self, message: link.FromAgent) -> None:
        try:
            await self._socket.send_bytes(link.encode(message))
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"the link broke: {error}") from error

    async def welcome(self) -> link.Welcome:
        try:
            async with asyncio.timeout(WELCOME_S):
                message = await self._receive()
        except TimeoutError:
            raise Unavailable(f"no Welcome within {WELCOME_S:g} s") from None
        if not isinstance(message, link.Welcome):
            raise ControllerUnreachable("the controller sent a command before its Welcome")
        return message

    async def run(self, heartbeat_s: float, resources: Callable[[], Awaitable[link.Resources]]) -> None:
        """Until the link ends. Commands under way are left to the runner; only their answers are lost."""
        async with OwnedTasks() as tasks:
            ends = [
                tasks.run(self._write(), name="link write"),
                tasks.run(self._beat(heartbeat_s, resources), name="link heartbeat"),
                tasks.run(self._read(tasks), name="link read"),
                tasks.run(self._watch_overflow(), name="link overflow"),
            ]
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    def report(self, report: InstanceReport) -> None:
        self._post(link.InstanceChanged(report))

    def _post(self, message: link.FromAgent) -> None:
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull:
            self._overflow.set()

    async def _watch_overflow(self) -> None:
        await self._overflow.wait()
        raise Unavailable(f"the controller does not read: {OUTBOX} frames wait for it")

    async def _write(self) -> None:
        while True:
            await self.send_now(await self._outbox.get())

    async def _beat(self, heartbeat_s: float, resources: Callable[[], Awaitable[link.Resources]]) -> None:
        while True:
            await asyncio.sleep(heartbeat_s)
            self._post(link.Heartbeat(await resources()))

    async def _read(self, tasks: OwnedTasks) -> None:
        while True:
            message = await self._receive()
            if isinstance(message, link.Welcome):
                continue
            tasks.run(self._carry_out(message), name=f"command {message.command}")

    async def _receive(self) -> link.FromController:
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return link.decode_from_controller(message.data)
        if message.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED}:
            said = message.extra if isinstance(message.extra, str) and message.extra else f"code {message.data}"
            raise ControllerUnreachable(f"the controller closed the link: {said}")
        raise ControllerUnreachable(f"the link ended with {message.type.name}: {message.data!r:.80}")

    async def _carry_out(self, command: link.Command) -> None:
        step = step_of(command.trace if isinstance(command, link.Start) else "")
        with within(step), structlog.contextvars.bound_contextvars(trace=step.trace):
            await self._answer(command)

    async def _answer(self, command: link.Command) -> None:
        try:
            self._post(await self._execute(command))
        except Problem as problem:
            self._post(link.Refused(command.command, problem.to_dict()))
        except Exception as error:
            # The controller must hear of it, or the client waits for its whole deadline.
            log.exception("command-failed", command=type(command).__name__)
            self._post(link.Refused(command.command, Problem(f"{type(error).__name__} on the agent").to_dict()))
            raise

    async def _execute(self, command: link.Command) -> link.Done | link.Prepared:
        if isinstance(command, link.Start):
            started = await self._runner.start(command, lambda step: self._progress(command.command, step))
            return link.Done(command.command, started.report, started.timings_ms, started.warm)
        if isinstance(command, link.Restart):
            started = await self._runner.restart(command)
            return link.Done(command.command, started.report, started.timings_ms)
        if isinstance(command, link.Stop):
            return link.Done(command.command, await self._runner.stop(command))
        if isinstance(command, link.Remove):
            return link.Done(command.command, await self._runner.remove(command))
        if isinstance(command, link.Prepare):
            timings = await self._runner.prepare(command, lambda step: self._progress(command.command, step))
            return link.Prepared(command.command, timings)
        if isinstance(command, link.Keep):
            return link.Done(command.command, await self._runner.keep(command))
        if isinstance(command, link.Wake):
            return link.Done(command.command, await self._runner.wake(command))
        if isinstance(command, link.ReadLog):
            report, lines = await self._runner.log(command)
            return link.Done(command.command, report, lines=lines)
        return link.Done(command.command, await self._runner.extend(command))

    def _progress(self, command: str, step: Progress) -> None:
        """Progress is the first to go when the controller is slow."""
        if self._outbox.qsize() < OUTBOX // 2:
            self._post(link.ProgressMade(command, step))
