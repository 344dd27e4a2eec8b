"""`cornerstore demo`: the main job on one machine, told as it happens.

Three sites as separate processes, joined by the real `invite` and `join`: A seeds, B has an agent, C has an agent
too small to host. A phone that knows nothing but mDNS finds them. Where no Docker engine answers, the same story is
told with the same service as a WebAssembly module.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agent.docker.runtime import DockerConfig, running_docker
from bootstrap import Identity
from client.controller import ControllerClient
from client.discovery import FoundController, discover
from node.cli.serving import stop_signal
from node.local_mesh import ALIASES, READY_S, Site, up
from protocol.instances import PHASES, InstanceView, Progress, StartAnswer, StartRequest, State
from protocol.problems import EngineUnavailable, Problem, UnknownInstance

SERVICES = Path(__file__).resolve().parent.parent / "services"
TEXT = b"A shop at every corner, and the bread is still warm."
WORDS = 11
SHORT_LIFE_S = 4

BYTE_PHASES = {"fetch", "verify"}


@dataclass(frozen=True)
class Cast:
    """The service that the story is about, and how much memory (MB) is too little for it."""

    folder: str
    service: str
    too_small_mb: int


CONTAINER = Cast("word_count", "wc01", 16)
MODULE = Cast("word_count_wasm", "wc02", 4)


@dataclass
class Story:
    """What is printed: a numbered line a step, and the timings for the table at the end."""

    console: Console
    began: float = field(default_factory=time.monotonic)
    rows: list[tuple[str, StartAnswer]] = field(default_factory=list)

    def tell(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/dim]  {text}", soft_wrap=True)

    def progress(self, step: Progress) -> None:
        unit = " B" if step.phase in BYTE_PHASES else ""
        amount = f" {step.done}/{step.total}{unit}" if step.total else ""
        self.console.print(
            f"[dim]          {step.phase:8} {step.message}{amount}[/dim]", highlight=False, soft_wrap=True
        )

    def started(self, what: str, answer: StartAnswer) -> None:
        self.rows.append((what, answer))
        way = f", handed off {' -> '.join([*answer.handoff, answer.region])}" if answer.handoff else ""
        self.tell(
            f"[bold]{answer.start}[/bold] start in {answer.timings_ms.get('total', 0):.0f} ms at {answer.url} "
            f"({answer.region}{way})"
        )
        if answer.why:
            self.console.print(f"          [dim]why: {answer.why}[/dim]", highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """Phases down, requests across: fits a terminal of 80 columns."""
        table = Table(title="Time by phase, in ms")
        table.add_column("phase")
        for what, answer in self.rows:
            table.add_column(f"{what}\n[dim]{answer.start}[/dim]", justify="right")
        for phase in PHASES:
            cells = (answer.timings_ms.get(phase) for _, answer in self.rows)
            table.add_row(phase, *(f"{c:.1f}" if c else "-" for c in cells))
        return table


async def demo(*, stay: bool, console: Console | None = None) -> None:
    """Run the story; with `stay`, leave the mesh up until SIGINT or SIGTERM. Raises the Problem that ends it early."""
    story = Story(console or Console())
    cast = await _cast(story)
    mesh = f"demo-{os.getpid()}"  # another demo on this network is another mesh
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cornerstore-demo-")))
        sites = (
            Site("demo-a", "demo/a", folder / "a", roles=("controller", "store")),
            Site("demo-b", "demo/b", folder / "b"),
            Site("demo-c", "demo/c", folder / "c", memory_mb=cast.too_small_mb),
        )
        a, b, c = sites
        archive = folder / "word_count.csar"
        await a.cornerstore("pack", str(SERVICES / cast.folder), "-o", str(archive))
        story.tell(f"packed {cast.folder} into a CSAR of {archive.stat().st_size:,} bytes")
        if cast is CONTAINER:
            for image, alias in ALIASES.items():
                story.tell(f"the sites read its Dockerfile's FROM {image} as {alias} (base_image_aliases)")
        await a.found(mesh)
        await stack.enter_async_context(up(a))
        story.tell(f"site A made the mesh: region {a.region}, controller at {a.running.rest}")
        for guest in (b, c):
            await guest.join(await a.invite(guest))
            await stack.enter_async_context(up(guest))
            story.tell(f"{guest.name} joined with an invitation: region {guest.region}, {guest.running.rest}")
        await a.cornerstore("--controller", a.running.rest, "publish", str(archive))
        story.tell("a developer published it at site A; A keeps the archive, the mesh knows the record")
        found = await _discover_all(mesh, {site.region for site in sites})
        story.tell("a phone that knows only mDNS found " + ", ".join(f"{f.region} at {f.url}" for f in found))
        at = {f.region: f.url for f in found}
        async with ControllerClient(at[b.region]) as near, ControllerClient(at[c.region]) as far:
            try:
                await _phone(near, far, cast.service, story)
                story.console.print(story.table())
                if stay:
                    await _stay(sites, cast.service, story)
            finally:
                await _clear_away(b)


async def _cast(story: Story) -> Cast:
    """The container where an engine answers, else the module, which needs none."""
    try:
        async with running_docker(DockerConfig(), "demo") as engine:
            version = (await engine.capabilities()).version
        story.tell(f"a Docker engine answers: {version}")
    except EngineUnavailable as problem:
        story.tell(f"{problem.detail}: the service runs as a WebAssembly module instead, inside the node")
        return MODULE
    return CONTAINER


async def _phone(near: ControllerClient, far: ControllerClient, service: str, story: Story) -> None:
    """What the phone does: `near` can host, `far` must hand off."""
    story.tell(f"the phone asks B for service {service}: B has no copy, so its agent fetches the archive from A")
    cold = await near.start(StartRequest(service=service), on_progress=story.progress)
    story.started("by id", cold)
    if not cold.timings_ms.get("build"):
        story.tell("(this engine had built the image before; `force_rebuild` below builds it anew)")
    await _count(near, cold, story)
    story.started("again", await near.start(StartRequest(service=service)))
    story.tell("now by meaning: anything in /text that takes text and gives an integer")
    meaning = StartRequest(category="/text", inputs=("text",), outputs=("integer",))
    story.started("by meaning", await near.start(meaning))
    story.tell("the same of C, whose agent is too small: C hands the request to a sibling region")
    handed = await far.start(StartRequest(service=service), on_progress=story.progress)
    story.started("from C", handed)
    await _count(far, handed, story)

    story.tell(f"a fresh build that may live {SHORT_LIFE_S} s")
    brief = StartRequest(service=service, force_rebuild=True, alive_time=SHORT_LIFE_S)
    short = await near.start(brief, on_progress=story.progress)
    story.started("rebuilt", short)
    extended = await near.alive(short.instance, short.lease.token)
    story.tell(f"the phone sent alive: it lives until {time.strftime('%T', time.localtime(extended.expires_at))}")
    view = await _until_state(near, short.instance, State.STOPPED)
    story.tell(f"nobody sent alive any more: {view.state}, reason {view.reason}")
    view = await near.restart(short.instance, short.lease.token)
    story.tell(f"restarted: {view.state} at the same address {view.url}")
    await _count(near, short, story)
    view = await near.stop(short.instance, short.lease.token)
    story.tell(f"stopped by the phone: {view.state}, reason {view.reason}")


async def _count(client: ControllerClient, answer: StartAnswer, story: Story) -> None:
    """Call the service. Raises Problem if it counts wrongly: a demo that lies is worse than one that fails."""
    reply = await client.invoke(answer, "/wordcount", TEXT)
    if int(reply) != WORDS:
        raise Problem(f"the word count said {reply!r}, but the text has {WORDS} words")
    story.tell(f"the service counted {int(reply)} words")


async def _until_state(client: ControllerClient, instance: str, state: State) -> InstanceView:
    async with asyncio.timeout(READY_S):
        while (view := await client.instance(instance)).state != state:
            await asyncio.sleep(0.2)
    return view


async def _clear_away(site: Site) -> None:
    """The mesh of the demo goes away for good, so its instances must, too."""
    async with ControllerClient(site.running.rest, token=Identity.load(site.data_dir).operator_token) as operator:
        for view in await operator.instances():
            with contextlib.suppress(UnknownInstance):  # it ended meanwhile, by itself or by its time
                await operator.remove(view.instance)


async def _discover_all(mesh: str, regions: set[str]) -> list[FoundController]:
    """Browse until every region has shown itself: announcements take a second or two."""
    async with asyncio.timeout(READY_S):
        while True:
            found = [f for f in await discover(timeout_s=3.0, mesh=mesh) if f.region in regions]
            if {f.region for f in found} == regions:
                return sorted(found, key=lambda f: f.region)


async def _stay(sites: Sequence[Site], service: str, story: Story) -> None:
    story.console.print("\nThe mesh stays up until Ctrl-C. Try, in another terminal:")
    for command in (
        f"export CORNERSTORE_DATA_DIR={sites[1].data_dir}  # site B; A and C lie beside it",
        ".venv/bin/cornerstore discover",
        ".venv/bin/cornerstore search --category /text",
        f".venv/bin/cornerstore start {service}",
        f".venv/bin/cornerstore invoke {service} /wordcount README.md",
        ".venv/bin/cornerstore ps",
        ".venv/bin/cornerstore regions",
    ):
        story.console.print(f"  {command}", highlight=False, soft_wrap=True)
    await stop_signal().wait()
    story.tell("stopping the three sites")
