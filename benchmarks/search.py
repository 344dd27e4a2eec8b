"""10,000 services in one mesh: how long a search takes at a controller, and how soon a new service is visible there.

12 nodes in two processes and the controller in this one, all as `cornerstore up` runs them, over loopback with mutual
TLS. Each key lies at the 8 nearest of them, in their databases before they start; the controller does not hold the
root. 40 publishers, 50 categories.

`first_s`: the first search of everything, when the controller has seen nothing yet; `first_cpu_s`: its processor time
here. `new_category_ms`: the first search of a category of 200 or 2,000 services. `search_ms`: the searches of what was
seen before, with the first page of their answer, one every 0.3 s, while services are published elsewhere: a mix of
text, types and categories of the whole tree. `visible_s`: from the call that publishes at another node (which takes
`publish_s`) until a search here finds it. `first_pause_ms`, `later_pause_ms`: the longest that the controller's event
loop worked without a break (processor time), during the first read and after it. `refresh_calls`, `refresh_ms`,
`refresh_cpu_ms`: what one comparison of the whole tree costs while nothing changes. An argument names another number
of searches than 200.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.report import finish, summary
from bootstrap import Identity
from bootstrap.certificates import issue
from bootstrap.identity import save_identity
from bootstrap.mesh import create_mesh
from dht import rules
from dht.database import transaction
from dht.records.republish import distance
from dht.records.storage import Row, connected, opened_storage
from node.cli.serving import set_imports_aside
from node.config import Mesh, Network, NodeConfig
from node.runtime import Node, running_node
from protocol.identifiers import node_id, record_key
from protocol.problems import Unavailable
from protocol.records import ServiceRecord, Signed, raw_public_key
from region_controller.catalogue import Catalogue
from region_controller.paging import PageRequest
from tests.dht_mesh import identity, service
from tests.waiting import until

SERVICES = 10_000
PUBLISHERS = 40
CATEGORIES = 50
HOLDERS = 12
PROCESSES = 2
REPLICAS = 8
SEARCHES = int(sys.argv[1]) if len(sys.argv) > 1 else 200
PACE_S = 0.3
PUBLISHED = SEARCHES // 10
KINDS = range(1, CATEGORIES, 5)
"""Those of /field1."""
SETTLE_S = 5.0
"""Nodes that have just met compare what they hold; a mesh does that once."""
TICK_S = 0.005


def made(number: int, *, seq: int) -> Signed:
    key = identity(100_000 + number % PUBLISHERS)
    return service(
        f"svc{number}",
        seq=seq,
        content=str(number),
        category=f"/field{number % 5}/kind{number % CATEGORIES}",
        expiry=time.time() + 86_400,
        key=key,
        description=f"service number {number} which does what its {number % 97} sisters do not",
    )


def found_mesh(folders: Sequence[Path], founder: Path) -> list[Identity]:
    """Identities of one mesh. The first folder's is the controller's: farthest from the root category, so that it does
    not hold what it searches."""
    now = time.time()
    first = create_mesh(founder, mesh="bench", region="eu/bench", roles=["store"], now=now)
    assert first.root_key is not None
    root = record_key("category:/")
    keys = [Ed25519PrivateKey.generate() for _ in folders]
    keys.sort(key=lambda key: -distance(bytes.fromhex(node_id(raw_public_key(key))), root))
    members = []
    for folder, key in zip(folders, keys, strict=True):
        roles = ["controller", "store"] if folder == folders[0] else ["store"]
        certificate = issue(
            key.public_key(), root=first.root, root_key=first.root_key, region="eu/bench", roles=roles, now=now
        )
        members.append(save_identity(folder, key=key, certificate=certificate, root=first.root, keyring=first.keyring))
    return members


def configure(folder: Path, roles: Sequence[Any], bootstrap: Sequence[str]) -> None:
    network = Network(host="127.0.0.1", mdns=False)
    dht = Mesh(bootstrap=tuple(bootstrap))
    NodeConfig(mesh="bench", region="eu/bench", roles=tuple(roles), network=network, dht=dht).save(folder)


def fill(members: Sequence[Identity]) -> None:
    """What the members would have after all had been published: so there is nothing to hand over."""
    now = time.time()
    by_id = {bytes.fromhex(member.node): n for n, member in enumerate(members)}
    rows: dict[int, list[Row]] = defaultdict(list)
    at: dict[bytes, list[int]] = {}
    for number in range(SERVICES):
        signed = made(number, seq=int(now * 1000) - SERVICES + number)
        place = rules.slot(signed.record)
        for name in signed.record.names[3:]:  # the categories: what is searched
            key = record_key(name)
            via, seq, expiry = signed.public_key[:20], signed.record.seq, signed.record.expiry
            row = Row(key, place, signed.public_key, via, seq, False, expiry, False, now, signed.envelope)
            if key not in at:
                nearest = sorted(by_id, key=partial(distance, key))
                at[key] = [by_id[node_id] for node_id in nearest[:REPLICAS]]
            for holder in at[key]:
                rows[holder].append(row)
    for number, member in enumerate(members):
        database = member.directory.parent / "state.sqlite"
        with opened_storage(database), closing(connected(database)) as connection, transaction(connection):
            connection.executemany("INSERT INTO dht_held VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows[number])


class Nodes:
    """A process with some of the holders."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def said(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(await self._process.stdout.readline())

    async def publish(self, signed: Signed, at: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"publish": signed.envelope.hex(), "at": at}).encode() + b"\n")
        await self.said()


@asynccontextmanager
async def nodes_of(folders: Sequence[Path]) -> AsyncIterator[Nodes]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.search_nodes", *map(str, folders)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Nodes(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def mesh(folder: Path) -> AsyncIterator[tuple[Node, list[Nodes]]]:
    """The controller, and the processes of the holders."""
    folders = [folder / str(n) for n in range(HOLDERS + 1)]
    for one in folders:
        one.mkdir()
    fill(found_mesh(folders, folder / "founder"))
    async with AsyncExitStack() as stack:
        processes: list[Nodes] = []
        known: list[str] = []
        for n in range(PROCESSES):
            share = folders[1 + n :: PROCESSES]
            for one in share:
                configure(one, ["store"], known)
            processes.append(await stack.enter_async_context(nodes_of(share)))
            known = (await processes[-1].said())["dht"][:1]
        configure(folders[0], ["controller", "store"], known)
        controller = await stack.enter_async_context(running_node(NodeConfig.load(folders[0]), folders[0]))
        await until(lambda: controller.directory.stats()["contacts"] == HOLDERS, timeout_s=60)
        await asyncio.sleep(SETTLE_S)
        yield controller, processes


class Pauses:
    """The longest that the event loop worked between two turns of a timer, in ms of processor time."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.thread_time()
            self.longest = max(self.longest, (now - before) * 1e3)
            before = now

    def taken(self) -> float:
        longest, self.longest = self.longest, 0.0
        return round(longest, 1)


async def first_search(catalogue: Catalogue) -> Sequence[ServiceRecord]:
    """A read that came in part is unavailable, and the next one goes on from there."""
    while True:
        try:
            return await catalogue.search()
        except Unavailable as problem:
            print(f"first search: {problem.detail}", file=sys.stderr)


async def measure(chance: random.Random, controller: Node, holders: Sequence[Nodes]) -> None:
    assert controller.controller is not None
    catalogue, directory = controller.controller.catalogue, controller.directory
    pauses = Pauses()
    watching = asyncio.create_task(pauses.watch())
    began, began_cpu = time.perf_counter(), time.process_time()
    found = await first_search(catalogue)
    first_s, first_cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    first_pause = pauses.taken()
    print(f"first search: {len(found)} in {first_s:.2f} s, {first_cpu_s:.2f} s here", file=sys.stderr)

    new: list[float] = []
    for category in ["/field3", *(f"/field1/kind{kind}" for kind in KINDS)]:
        began = time.perf_counter()
        await catalogue.search(category=category)
        new.append((time.perf_counter() - began) * 1e3)
    visible: list[float] = []
    published_in: list[float] = []

    async def publishing() -> None:
        for i in range(PUBLISHED):
            signed = made(SERVICES + i, seq=int(time.time() * 1000))
            began = time.perf_counter()
            await holders[i % PROCESSES].publish(signed, chance.randrange(HOLDERS // PROCESSES))
            published_in.append(time.perf_counter() - began)
            while not await catalogue.search(text=f"svc{SERVICES + i} "):
                await asyncio.sleep(0.05)
            visible.append(time.perf_counter() - began)
            await asyncio.sleep(SEARCHES * PACE_S / PUBLISHED / 2)

    pauses.taken()
    published = asyncio.create_task(publishing())
    times: list[float] = []
    began_cpu = time.process_time()
    for i in range(SEARCHES):
        queries: list[dict[str, Any]] = [
            {"text": f"number {chance.randrange(SERVICES)} "},
            {"category": "/field3", "inputs": ("text",), "outputs": ("number",)},
            {"category": f"/field1/kind{chance.choice(KINDS)}"},
            {"inputs": ("text",), "text": "kind7"},
        ]
        query = queries[i % 4]
        began = time.perf_counter()
        catalogue.page(await catalogue.search(**query), PageRequest())
        times.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(PACE_S)
    await published
    later_cpu_s = time.process_time() - began_cpu
    watching.cancel()
    later_pause = pauses.taken()

    before, began, began_cpu = directory.stats()["datagrams_calls"], time.perf_counter(), time.process_time()
    for _ in range(5):
        await directory.services("category:/")
    refresh = (directory.stats()["datagrams_calls"] - before) / 5
    refresh_ms = (time.perf_counter() - began) / 5 * 1e3
    refresh_cpu_ms = (time.process_time() - began_cpu) / 5 * 1e3
    print(f"refresh: {refresh} calls, {refresh_ms:.1f} ms, {refresh_cpu_ms:.1f} ms here", file=sys.stderr)

    latency = summary(times)
    finish(
        "search",
        runs=len(times),
        ours={
            "services": len(found),
            "first_s": round(first_s, 3),
            "first_cpu_s": round(first_cpu_s, 3),
            "first_pause_ms": first_pause,
            "new_category_ms": summary(new),
            "search_ms": latency,
            "publish_s": summary(published_in),
            "visible_s": summary(visible),
            "later_pause_ms": later_pause,
            "later_cpu_s": round(later_cpu_s, 2),
            "refresh_calls": refresh,
            "refresh_ms": round(refresh_ms, 1),
            "refresh_cpu_ms": round(refresh_cpu_ms, 1),
        },
        reference={},
        ratios={
            "first_s": round(first_s, 3),
            "search_p50_ms": latency["p50"],
            "search_p99_ms": latency["p99"],
            "visible_s": round(max(visible), 3),
            "refresh_datagrams": 2 * refresh,
        },
    )


async def main() -> None:
    set_imports_aside()
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    with tempfile.TemporaryDirectory(prefix="cornerstore-bench-") as text:
        async with mesh(Path(text)) as (controller, holders):
            await measure(random.Random(3), controller, holders)


if __name__ == "__main__":
    uvloop.run(main())
