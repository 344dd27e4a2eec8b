"""`cornerstore demo`: the main job on one machine, told as it happens.

Three sites as separate processes, joined by the real `invite` and `join`: A seeds, B has an agent, C has an agent
too small to host. A phone that knows nothing but mDNS finds them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from client.controller import ControllerClient
from client.discovery import FoundController, discover
from node.config import NodeConfig
from node.runtime import STATE_FILE, Running
from protocol.instances import InstanceView, Progress, StartAnswer, StartRequest, State
from protocol.peers import Role
from protocol.problems import Problem, Unavailable

SERVICE = Path(__file__).resolve().parent.parent / "services" / "word_count"
TEXT = b"A shop at every corner, and the bread is still warm."
WORDS = 11
BASE_IMAGE = "cornerstore/python:3.11"
READY_S = 30.0
SHORT_LIFE_S = 4

PHASES = ("resolve", "place", "fetch", "verify", "build", "start", "ready", "total")


@dataclass
class Site:
    """One site: its data directory and the `cornerstore up` that runs there."""

    name: str
    roles: tuple[Role, ...]
    memory_mb: int
    data_dir: Path
    process: asyncio.subprocess.Process | None = None

    @property
    def region(self) -> str:
        return f"demo/{self.name}"

    @property
    def running(self) -> Running:
        return msgspec.json.decode((self.data_dir / STATE_FILE).read_bytes(), type=Running)


@dataclass
class Story:
    """What is printed: a numbered line a step, and the timings for the table at the end."""

    console: Console
    began: float = field(default_factory=time.monotonic)
    rows: list[tuple[str, StartAnswer]] = field(default_factory=list)

    def tell(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/dim]  {text}")

    def progress(self, step: Progress) -> None:
        amount = f" {step.done}/{step.total} B" if step.total else ""
        self.console.print(f"[dim]          {step.phase:8} {step.message}{amount}[/dim]", highlight=False)

    def started(self, what: str, answer: StartAnswer) -> None:
        self.rows.append((what, answer))
        way = f", handed off {' -> '.join([*answer.handoff, answer.region])}" if answer.handoff else ""
        self.tell(
            f"[bold]{answer.start}[/bold] start in {answer.timings_ms.get('total', 0):.0f} ms at {answer.url} "
            f"({answer.region}{way})"
        )
        if answer.why:
            self.console.print(f"          [dim]why: {answer.why}[/dim]", highlight=False)

    def table(self) -> Table:
        table = Table(title="Time by phase, in ms")
        table.add_column("request")
        table.add_column("start")
        for phase in PHASES:
            table.add_column(phase, justify="right")
        for what, answer in self.rows:
            cells = (answer.timings_ms.get(phase) for phase in PHASES)
            table.add_row(what, answer.start, *("" if c is None else f"{c:.1f}" for c in cells))
        return table


async def demo(*, stay: bool, service: Path = SERVICE, console: Console | None = None) -> None:
    """Run the story; with `stay`, leave the mesh up until SIGINT or SIGTERM. Raises the Problem that ends it early."""
    story = Story(console or Console())
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cornerstore-demo-")))
        sites = (
            Site("a", ("controller", "store"), 0, folder / "a"),
            Site("b", ("controller", "agent", "store"), 1024, folder / "b"),
            Site("c", ("controller", "agent", "store"), 16, folder / "c"),
        )
        a, b, c = sites
        archive = folder / "word_count.csar"
        await _cornerstore("pack", str(service), "-o", str(archive))
        story.tell(f"packed {service.name} into a CSAR of {archive.stat().st_size:,} bytes")
        await _found_mesh(stack, a, story)
        for site in (b, c):
            await _join(stack, a, site, story)
        await _cornerstore("--data-dir", str(a.data_dir), "--controller", a.running.rest, "publish", str(archive))
        story.tell("a developer published it at site A; A keeps the archive, the mesh knows the record")
        found = await _discover_all({site.region for site in sites})
        story.tell("a phone that knows only mDNS found " + ", ".join(f"{f.region} at {f.url}" for f in found))
        at = {f.region: f.url for f in found}
        async with ControllerClient(at[b.region]) as near, ControllerClient(at[c.region]) as far:
            await _phone(near, far, story)
            story.console.print(story.table())
        if stay:
            await _stay(sites, story)


async def _phone(near: ControllerClient, far: ControllerClient, story: Story) -> None:
    """What the phone does: `near` can host, `far` must hand off."""
    story.tell("the phone asks B for service wc01: B has no copy, so its agent fetches the archive from A")
    cold = await near.start(StartRequest(service="wc01"), on_progress=story.progress)
    story.started("B, by id", cold)
    await _count(near, cold, story)
    story.started("B, by id again", await near.start(StartRequest(service="wc01")))
    story.tell("now by meaning: anything in /text that takes text and gives an integer")
    meaning = StartRequest(category="/text", inputs=("text",), outputs=("integer",))
    story.started("B, by meaning", await near.start(meaning))
    story.tell("the same of C, whose agent is too small: C hands the request to a sibling region")
    handed = await far.start(StartRequest(service="wc01"), on_progress=story.progress)
    story.started("C, handed off", handed)
    await _count(far, handed, story)

    story.tell(f"a fresh build that may live {SHORT_LIFE_S} s")
    brief = StartRequest(service="wc01", force_rebuild=True, alive_time=SHORT_LIFE_S)
    short = await near.start(brief, on_progress=story.progress)
    story.started("B, force_rebuild", short)
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


async def _found_mesh(stack: AsyncExitStack, site: Site, story: Story) -> None:
    await _cornerstore("--data-dir", str(site.data_dir), "bootstrap", "init", "--mesh", "demo", "--region", site.region)
    _settle_in(site)
    await stack.enter_async_context(_up(site))
    story.tell(f"site A made the mesh: region {site.region}, controller at {site.running.rest}")


async def _join(stack: AsyncExitStack, host: Site, guest: Site, story: Story) -> None:
    asked = await _cornerstore(
        "--json", "--data-dir", str(host.data_dir), "bootstrap", "invite", "--region", guest.region
    )
    token = json.loads(asked)["token"]
    await _cornerstore("--data-dir", str(guest.data_dir), "bootstrap", "join", token)
    _settle_in(guest)
    await stack.enter_async_context(_up(guest))
    story.tell(f"site {guest.name.upper()} joined with an invitation: region {guest.region}, {guest.running.rest}")


def _settle_in(site: Site) -> None:
    """What an operator would write into config.toml for three sites that share one machine."""
    config = NodeConfig.load(site.data_dir)
    config = msgspec.structs.replace(
        config,
        site=f"demo-{site.name}",
        roles=site.roles,
        network=msgspec.structs.replace(config.network, host="127.0.0.1"),
        agent=msgspec.structs.replace(
            config.agent,
            memory_mb=site.memory_mb,
            docker=msgspec.structs.replace(config.agent.docker, base_image_aliases={"python:3.6-alpine": BASE_IMAGE}),
        ),
    )
    config.save(site.data_dir)


@asynccontextmanager
async def _up(site: Site) -> AsyncIterator[None]:
    """`cornerstore up` as a process of its own, until it says it runs; ended by SIGTERM."""
    log_path = site.data_dir / "node.log"
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *_argv("--data-dir", str(site.data_dir), "up"), stdout=log, stderr=log, start_new_session=True
        )
    site.process = process
    try:
        async with asyncio.timeout(READY_S):
            while not (site.data_dir / STATE_FILE).exists():
                if process.returncode is not None:
                    raise Unavailable(f"site {site.name} ended: {_tail(log_path)}")
                await asyncio.sleep(0.05)
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 15.0)
        except TimeoutError:
            process.kill()
            await process.wait()


def _tail(path: Path, lines: int = 12) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def _argv(*arguments: str) -> Sequence[str]:
    return (sys.executable, "-m", "node", *arguments)


async def _cornerstore(*arguments: str) -> str:
    """Run one `cornerstore` command and return what it prints. Raises Problem with its error text."""
    process = await asyncio.create_subprocess_exec(
        *_argv(*arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ
    )
    out, error = await process.communicate()
    if process.returncode:
        raise Problem(f"cornerstore {' '.join(arguments[:4])} failed: {error.decode(errors='replace').strip()}")
    return out.decode()


async def _discover_all(regions: set[str]) -> list[FoundController]:
    """Browse until every region has shown itself: announcements take a second or two."""
    async with asyncio.timeout(READY_S):
        while True:
            found = [f for f in await discover(timeout_s=3.0, mesh="demo") if f.region in regions]
            if {f.region for f in found} == regions:
                return sorted(found, key=lambda f: f.region)


async def _stay(sites: Sequence[Site], story: Story) -> None:
    story.console.print("\nThe mesh stays up until Ctrl-C. Try, in another terminal:")
    rest = sites[1].running.rest
    for command in (
        "discover",
        f"--controller {rest} search --category /text",
        f"--controller {rest} start wc01",
        f"--controller {rest} invoke wc01 /wordcount README.md",
        f"--controller {sites[2].running.rest} regions",
    ):
        story.console.print(f"  .venv/bin/cornerstore {command}", highlight=False, soft_wrap=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    await stop.wait()
