"""Commands that keep a node running until SIGINT or SIGTERM: `up` and `seed`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import uvloop

from bootstrap import has_root_key
from client import ControllerClient
from dht.swarm.traffic import ContentStats
from node.cli.output import facts, short_digest, size, styled
from node.cli.session import Session
from node.config import NodeConfig
from node.running import Running
from node.runtime import Node, running_node
from protocol.instances import ServiceView
from protocol.problems import NoMatchingService
from protocol.records import ServiceRecord, Signed

SHOW_EVERY_S = 1.0
CONTROLLER_WAIT_S = 10.0
LOOK_EVERY_S = 0.2
MAX_OPEN_FILES = 65_536


def open_file_limit(soft: int, hard: int) -> int:
    """How many files a node's process allows itself. Each connection is one: the usual 1,024 are taken by one careless
    client, and then phones wait."""
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    return soft if soft == resource.RLIM_INFINITY else max(soft, wanted)


def allow_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_file_limit(soft, hard), hard))


def set_imports_aside() -> None:
    """Take all that is there by now, which is the program itself, out of the collector's sight.

    It stays until the process ends, and walking through it is most of what a full collection does: some 60 ms in which
    nobody is answered, against less than 10 ms for what a node with 10,000 services adds. To be called before the node
    is made: what is of the node must be found when it is garbage.
    """
    gc.collect()
    gc.freeze()


def serve_node(session: Session) -> None:
    """`up`: the node that config.toml describes. Logs to stderr, says on stdout where it is reached."""
    allow_connections()
    session.configure_logging(logging.DEBUG if session.debug else logging.INFO)
    config = NodeConfig.load(session.data_dir)
    set_imports_aside()

    async def work() -> None:
        stop = stop_signal()
        async with running_node(config, session.data_dir) as node:
            founder = has_root_key(session.data_dir)
            session.output.give(node.running, *_welcome(config, node.running, founder=founder))
            if node.agent is not None and node.agent.link is not None and not node.running.rest:
                session.output.note(await _controller_note(node.agent.link, config.region, stop))
            await stop.wait()

    uvloop.run(work())


def seed_files(session: Session, signed: Sequence[tuple[Path, Signed]]) -> None:
    """`seed`: through this machine's own controller if it runs, else as a store node that serves until stopped."""
    local = session.local_node
    if local is not None and local.rest:
        _publish_through(session, local.rest, signed)
        return
    config = msgspec.structs.replace(NodeConfig.load(session.data_dir), roles=("store",))
    allow_connections()
    set_imports_aside()

    async def work() -> None:
        stop = stop_signal()
        async with running_node(config, session.data_dir) as node:
            for path, record in signed:
                digest = await node.content.add(path, pin="seeded")
                publisher = await publisher_of(node.directory, digest)
                if publisher is None:
                    await node.directory.publish(record)
                session.output.give(
                    {"file": str(path), "digest": digest, "published": publisher is None},
                    styled(f"{path} is served as {digest}", "bold"),
                )
                session.output.note(_record_note(publisher))
            session.output.note("This machine serves it until Ctrl-C.")
            await _show_fetches(session, node, stop)

    uvloop.run(work())


def stop_signal() -> asyncio.Event:
    """Set at the first SIGINT or SIGTERM; a second one ends the process as usual."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask_to_stop() -> None:
        stop.set()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, ask_to_stop)
    return stop


def fetched_since(before: Mapping[str, int], stats: ContentStats) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """Bytes of chunks sent to each peer by now, and what was added for whom since `before`."""
    now: dict[str, int] = {}
    for (peer, cause), sent in stats.sent.items():
        if cause == "chunk":
            now[peer] = now.get(peer, 0) + sent
    return now, [(peer, sent - before.get(peer, 0)) for peer, sent in now.items() if sent > before.get(peer, 0)]


async def _show_fetches(session: Session, node: Node, stop: asyncio.Event) -> None:
    sent: dict[str, int] = {}
    while not stop.is_set():
        sent, added = fetched_since(sent, node.content.stats())
        for peer, count in added:
            session.output.give({"peer": peer, "bytes": count}, f"node {peer[:8]} fetched {size(count)}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), SHOW_EVERY_S)


class Services(Protocol):
    """Of a directory, the one question that is asked here."""

    async def services(self, name: str) -> list[Signed]: ...


async def publisher_of(directory: Services, digest: str) -> str | None:
    """Whose key published the archive already, if one did: a second record would only be a twin of the first."""
    now = time.time()
    for found in await directory.services(f"service:{digest}"):
        record = found.record
        if isinstance(record, ServiceRecord) and not record.withdrawn and record.expiry > now:
            return record.publisher.hex()
    return None


def _record_note(publisher: str | None) -> str:
    if publisher is not None:
        return f"It is published already, by key {publisher[:8]}; no second record was made."
    return "Its record stays in the mesh when seeding ends; `cornerstore withdraw` takes it off."


def _publish_through(session: Session, url: str, signed: Sequence[tuple[Path, Signed]]) -> None:
    async def work() -> list[tuple[ServiceView, str | None]]:
        async with session.connected(url) as client:
            return [await _seed_through(client, path, record) for path, record in signed]

    seeded = asyncio.run(work())
    session.output.give(
        [view for view, _ in seeded],
        *(styled(f"{view.id} ({view.name}) is served as {short_digest(view.digest)}", "bold") for view, _ in seeded),
    )
    for _, publisher in seeded:
        session.output.note(_record_note(publisher))
    session.output.note(f"This machine's node at {url} keeps it and serves it for as long as it runs.")


async def _seed_through(client: ControllerClient, path: Path, record: Signed) -> tuple[ServiceView, str | None]:
    """What the controller serves now, and whose key had published it before, if any."""
    assert isinstance(record.record, ServiceRecord)
    try:
        before = await client.service(record.record.digest)
    except NoMatchingService:
        return await client.publish(path, record.envelope), None
    return await client.publish(path), before.publisher


def _welcome(config: NodeConfig, running: Running, *, founder: bool) -> list[Any]:
    lines = {
        "region": config.region,
        "mesh": config.mesh,
        "roles": ", ".join(config.roles),
        "node": running.node,
        "phones": running.rest,
        "peers": running.peer,
    }
    return [
        styled("This node is up. Ctrl-C stops it.", "bold green"),
        facts(lines),
        styled(next_steps(founder=founder, rest=running.rest), "dim"),
    ]


def next_steps(*, founder: bool, rest: str) -> str:
    """What makes sense on this node: only the founder invites, only a controller has a page."""
    steps = ["cornerstore status"]
    if founder:
        steps.insert(0, "cornerstore bootstrap invite --region REGION (another machine joins)")
    if rest:
        steps.append(f"open {rest}/ in a browser")
    return f"Next: {'; '.join(steps)}."


class Link(Protocol):
    """Of an agent's link: `controller` is the address of the one that it is linked to now."""

    controller: str | None


async def _controller_note(link: Link, region: str, stop: asyncio.Event) -> str:
    """Whether the agent has found its controller within CONTROLLER_WAIT_S."""
    ends = asyncio.get_running_loop().time() + CONTROLLER_WAIT_S
    while link.controller is None and not stop.is_set() and asyncio.get_running_loop().time() < ends:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOOK_EVERY_S)
    return controller_note(link.controller, region)


def controller_note(controller: str | None, region: str) -> str:
    if controller is not None:
        return f"The agent is linked to the controller at {controller}."
    return (
        f"No controller of {region}, or of a region above it, has been found yet; the agent goes on looking. "
        "If multicast is blocked here, name one: `controller` under [agent] in config.toml."
    )
