"""The engine's event stream as an async iterator that outlives the engine.

The stream of the `docker` package ends silently when the engine goes, and only then. So: connect, say BACK (whoever
listens looks at everything), pass events on, say AWAY when the stream ends, and dial until an engine answers again.
With systemd's socket the next dial may just wait for the successor: that the engine went shows nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import structlog
from msgspec import Struct

from agent.docker.containers import INSTANCE_LABEL, NODE_LABEL, SANDBOX_LABEL
from agent.docker.engine import DockerEngine, StreamingClient
from agent.runtime import EventKind, RuntimeEvent
from protocol.problems import EngineUnavailable

log = structlog.get_logger(__name__)

RETRY_S = 0.5
WATCHED = ["die", "oom", "pause", "unpause", "destroy", "tag", "untag", "delete", "load", "import"]
"""The last five happen to images."""


class SandboxEnded(Struct, frozen=True):
    """Something happened to a sandbox, whose container has this id: whatever it was, it is not as it should be."""

    id: str


class ImagesChanged(Struct, frozen=True):
    """An image came, went or was named, whoever did it."""


AnyEvent = RuntimeEvent | SandboxEnded | ImagesChanged


async def engine_events(engine: DockerEngine, node: str) -> AsyncGenerator[AnyEvent, None]:
    """Events of this node's containers, and of all images; never ends by itself."""
    away = told = False
    while True:
        try:
            await engine.ping()
            stream = _Stream(engine, node)
        except EngineUnavailable as problem:
            if not told:
                told = True
                log.warning("no-docker", detail=problem.detail, fix=problem.fix)
            if not away:
                away = True
                yield RuntimeEvent(EventKind.AWAY)
            await asyncio.sleep(RETRY_S)
            continue
        reading = asyncio.create_task(engine.long_call(stream.read, cancel=stream.close), name="docker events")
        try:
            while (event := await stream.queue.get()) is not None:
                away = told = False
                yield event
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if away:  # it did not even begin
            await asyncio.sleep(RETRY_S)
        else:
            away = True
            yield RuntimeEvent(EventKind.AWAY)


class _Stream:
    """One connection's events, read on a thread. The queue ends with None."""

    def __init__(self, engine: DockerEngine, node: str) -> None:
        self.queue: asyncio.Queue[AnyEvent | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._engine = engine
        self._node = node
        self._client: StreamingClient | None = None
        self._closed = False

    def read(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - whatever ended the stream, the engine is asked next
            log.debug("event-stream-ended", error=str(error))
        finally:
            self._engine.ends += 1
            self._put(None)

    def close(self) -> None:
        """From the loop's thread: end `read`."""
        self._closed = True
        if self._client is not None:
            self._client.cut()

    def _read(self) -> None:
        filters = {"type": ["container", "image"], "event": WATCHED}
        with StreamingClient(base_url=self._engine.url, version="auto") as client:
            events = iter(client.events(decode=True, filters=filters))
            self._client = client
            if self._closed:
                return
            self._put(RuntimeEvent(EventKind.BACK))
            for event in events:
                actor = event.get("Actor", {})
                attributes = actor.get("Attributes", {})
                if event.get("Type") == "image":
                    self._put(ImagesChanged())
                elif attributes.get(NODE_LABEL) != self._node:
                    continue  # the engine does not pick by label and take images as well
                elif instance := attributes.get(INSTANCE_LABEL):
                    self._put(RuntimeEvent(EventKind.CHANGED, instance))
                elif SANDBOX_LABEL in attributes:
                    self._put(SandboxEnded(actor.get("ID", "")))

    def _put(self, event: AnyEvent | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.queue.put_nowait, event)
