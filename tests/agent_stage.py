"""What tests of the agent need around it: archives in a dictionary instead of a mesh, and descriptions beside them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from agent.agent import Agent, AgentConfig, running_agent
from agent.runtime import Runtime
from protocol import link
from protocol.identifiers import digest_of
from protocol.instances import OnProgress
from protocol.problems import ContentNotFound
from protocol.service import ContainerPort, ServiceDescriptor

SERVICE = ServiceDescriptor(
    id="web",
    name="web",
    kind="docker_container",
    category="/web",
    mem_requirement=16,
    entry="x",
    ports=(ContainerPort(80),),
)


class Shelf:
    """A `Content` whose blobs are files of a folder; what lies in `elsewhere` must be fetched first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.here: dict[str, Path] = {}
        self.elsewhere: dict[str, Path] = {}
        self.pins: dict[str, set[str]] = {}
        self.fetches = 0
        self.descriptors: dict[Path, ServiceDescriptor] = {}

    def put(
        self, descriptor: ServiceDescriptor, files: Mapping[str, str | bytes] | None = None, *, remote: bool = False
    ) -> str:
        """An archive with these files below the descriptor's directory; returns its digest."""
        path = self.folder / f"{len(self.descriptors)}.csar"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("id.txt", os.urandom(16))  # an engine remembers images of earlier runs
            for name, data in (files or {}).items():
                archive.writestr(name, data)
        digest = digest_of(path.read_bytes())
        self.descriptors[path] = descriptor
        (self.elsewhere if remote else self.here)[digest] = path
        return digest

    def hold(self, archive: Path, descriptor: ServiceDescriptor) -> str:
        """A packed archive; returns its digest."""
        self.descriptors[archive] = descriptor
        digest = digest_of(archive.read_bytes())
        self.here[digest] = archive
        return digest

    async def describe(self, archive: Path) -> ServiceDescriptor:
        return self.descriptors[archive]

    def has(self, digest: str) -> bool:
        return digest in self.here

    def held(self) -> Sequence[str]:
        return tuple(self.here)

    async def add(self, path: Path, *, pin: str | None = None, on_progress: OnProgress | None = None) -> str:
        digest = digest_of(path.read_bytes())
        self.here[digest] = path
        return digest

    async def fetch(
        self, digest: str, *, max_bytes: int, deadline_s: float, on_progress: OnProgress | None = None
    ) -> None:
        self.fetches += 1
        if digest not in self.elsewhere:
            raise ContentNotFound("nobody has it")
        self.here[digest] = self.elsewhere[digest]

    @asynccontextmanager
    async def materialized(self, digest: str) -> AsyncIterator[Path]:
        if digest not in self.here:
            raise ContentNotFound("it is not here")
        yield self.here[digest]

    async def pin(self, digest: str, why: str) -> None:
        self.pins.setdefault(digest, set()).add(why)

    async def unpin(self, digest: str, why: str) -> None:
        self.pins.get(digest, set()).discard(why)

    async def pinned(self) -> Collection[str]:
        return [digest for digest, reasons in self.pins.items() if reasons]

    async def remove(self, digest: str) -> None:
        self.here.pop(digest, None)


class Clock:
    """A clock that tests set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def start_command(instance: str, digest: str, **changes: object) -> link.Start:
    return link.Start(command=f"start-{instance}", instance=instance, digest=digest, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def an_agent(
    tmp_path: Path, shelf: Shelf, *runtimes: Runtime, node: str = "0" * 40, **settings: object
) -> AsyncIterator[Agent]:
    """An agent on loopback without a controller; `settings` go into its configuration, `clock` and `monotonic` into the
    agent: a `clock` alone is both, and time passes when it moves on."""
    clock = settings.pop("clock", None)
    monotonic = settings.pop("monotonic", clock)
    config = AgentConfig(
        **{"host": "127.0.0.1", "database": tmp_path / "agent.sqlite", "alive_port": 0, **settings}  # type: ignore[arg-type]
    )
    async with running_agent(
        config,
        node=node,
        mesh="test",
        region="eu/test",
        runtimes=runtimes,
        content=shelf,
        describe=shelf.describe,
        **({} if clock is None else {"clock": clock, "monotonic": monotonic}),  # type: ignore[arg-type]
    ) as agent:
        yield agent
