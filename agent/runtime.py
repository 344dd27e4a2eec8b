"""The one interface to whatever runs services: Docker, Wasm, the in-process fake, a cluster's scheduler.

Guarantees that every runtime keeps (`tests/contract/test_runtime.py` checks them):

- An instance is named by its instance id. Every call is idempotent: stopping a stopped one or removing an absent
  one succeeds.
- `start` makes the workload run and returns where it answers. It restarts a stopped instance of the same id and
  makes it anew if it is gone. If it raises, nothing of a *new* instance is left behind.
- `stop` keeps what is needed to `start` again; `remove` leaves nothing.
- What runs goes on running when the agent goes away; `adopt` finds it again, and nothing that another node started.
  A runtime inside the node's own process has what ran run again by the time it is asked.
- Events are hints: one may come late, twice or never. `inspect` tells the truth.
- A runtime whose engine is away raises EngineUnavailable, quickly. An engine that ends, and ends what it runs, is away
  from then on: such an end is not told as the instance's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from protocol.instances import OnProgress as OnProgress
from protocol.instances import Progress
from protocol.service import BridgeNetwork, ContainerPort, Kind, Relaxations, ServiceDescriptor, Transport

IMAGE_GONE = "image-gone"
PORT_TAKEN = "port-taken"
"""Reasons of a StartFailed that can be made good: by `prepare`, and by another number to publish at."""

LOG_LINES = 20
MAX_LOG_LINE = 500


class Condition(StrEnum):
    """What the engine says of an instance, as opposed to `protocol.instances.State`, which the agent decides."""

    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"
    GONE = "gone"


class Publication(Struct, frozen=True):
    """The engine forwards `host:port` to `container_port`: UDP and SCTP only, TCP goes through the port proxy."""

    container_port: int
    protocol: Transport
    host: str
    port: int


class Workload(Struct, frozen=True, kw_only=True):
    """What to run. `image` is what `prepare` returned, `mem` the limit in MB (10^6 bytes)."""

    instance: str
    digest: str
    image: str
    mem: int
    ports: tuple[ContainerPort, ...] = ()
    published: tuple[Publication, ...] = ()
    environment: dict[str, str] = {}
    networks: tuple[BridgeNetwork, ...] = ()
    relaxations: Relaxations = Relaxations()


class Attachment(Struct, frozen=True):
    """The instance has `address` on `network`; `gateway` is this host's own address there."""

    network: str
    address: str
    gateway: str


class RuntimeInstance(Struct, frozen=True, kw_only=True):
    """An instance as the engine sees it. A TCP port answers where `forwards` says, else at the first attachment."""

    instance: str
    digest: str
    condition: Condition
    attachments: tuple[Attachment, ...] = ()
    forwards: dict[int, tuple[str, int]] = {}
    exit_code: int | None = None
    out_of_memory: bool = False

    def upstream(self, container_port: int) -> tuple[str, int] | None:
        """Host and port that the agent reaches this TCP port at; None while there is none."""
        if container_port in self.forwards:
            return self.forwards[container_port]
        return (self.attachments[0].address, container_port) if self.attachments else None


class EventKind(StrEnum):
    CHANGED = "changed"
    AWAY = "away"
    BACK = "back"


class RuntimeEvent(Struct, frozen=True):
    """`instance` changed and wants to be inspected; or the engine went away; or it is back and all want to be."""

    kind: EventKind
    instance: str = ""


class Capabilities(Struct, frozen=True):
    """`kinds` of services that run here; `version` of the engine."""

    kinds: frozenset[Kind]
    version: str


class Source(Struct, frozen=True, kw_only=True):
    """The archive that an image is made of. `archive` is a readable file for the time of `prepare` only."""

    descriptor: ServiceDescriptor
    digest: str
    archive: Path
    variant: str | None = None


class Runtime(Protocol):
    @property
    def name(self) -> str:
        """Short and stable, such as `docker`: instances in the journal refer to it."""

    async def capabilities(self) -> Capabilities:
        """Raises EngineUnavailable, whose `fix` says how to get an engine."""

    async def prepare(
        self, source: Source, *, force_rebuild: bool = False, on_progress: OnProgress | None = None
    ) -> str:
        """Make the image of an archive present and return its name for `Workload.image`.

        What is built already is not built again unless `force_rebuild`. Raises BuildFailed with `log`, DiskFull.
        """

    async def built(self, digests: Collection[str]) -> frozenset[str]:
        """Those of `digests` whose default variant needs no `prepare` work."""

    async def image_of(self, digest: str, artifact: str | None) -> str | None:
        """The image that `prepare` made of an archive (and of one artifact of it), if it is still there."""

    async def gateways(self, workload: Workload) -> tuple[str, ...]:
        """Make the workload's networks present; returns this host's own addresses on them.

        The agent listens there before `start`, so that the first alive message finds it.
        """

    async def start(self, workload: Workload) -> RuntimeInstance:
        """Run it; returns when the process was started, not when it answers.

        Raises StartFailed: with the reason IMAGE_GONE if somebody deleted the image (from then on `image_of` does not
        know it either), with PORT_TAKEN if somebody has a port that is to be published.
        """

    async def pause(self, instance: str) -> None:
        """Freeze a running instance: it keeps its memory and uses no processor."""

    async def resume(self, instance: str) -> None: ...

    async def stop(self, instance: str) -> None: ...

    async def remove(self, instance: str) -> None: ...

    async def inspect(self, instance: str) -> RuntimeInstance | None:
        """None if there is no such instance."""

    async def adopt(self) -> list[RuntimeInstance]:
        """Every instance that this node ever started here and did not remove."""

    def events(self) -> AsyncIterator[RuntimeEvent]:
        """Never ends by itself. The first event is BACK (or AWAY): whoever listens begins with a full look."""

    async def logs(self, instance: str, lines: int = LOG_LINES) -> tuple[str, ...]:
        """The last lines that the instance wrote, oldest first; empty if there is none."""


def unheard(_step: Progress) -> None:
    """For work of which nobody wants to hear how it goes on."""


def last_lines(text: str, lines: int = LOG_LINES) -> tuple[str, ...]:
    """The last non-empty lines, each bounded in length: a hostile service's log travels in reports."""
    kept = [line.rstrip()[:MAX_LOG_LINE] for line in text.splitlines() if line.strip()]
    return tuple(kept[-lines:])


def artifact_of(descriptor: ServiceDescriptor, variant: str | None) -> str | None:
    """Name of the artifact that the variant asks for, if it asks for one."""
    return descriptor.variants[variant].artifact if variant is not None else None
