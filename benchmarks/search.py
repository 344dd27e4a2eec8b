"""10,000 services in one mesh: how long a search takes at a controller, and how soon a new service is visible there.

12 nodes over UDP on loopback, in one process, 8 of them holding each key; the records lie in their databases before
they start. The controller is a node that holds little itself. 40 publishers, each at a node of its own, 50 categories.

`first_s`: the first search of everything, when the controller has seen nothing yet. `search_p99_ms`: the searches after
that, one every 0.3 s for a minute, while services are published elsewhere: a mix of text, types and categories of the
whole tree. `visible_s`: from the call that publishes at another node until a search here finds it, the slowest of 20.
`refresh_datagrams`: what one refresh of the whole tree costs while nothing changes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog
import uvloop

from benchmarks.report import finish, summary
from dht import rules
from dht.directory import NetworkDirectory
from dht.republish import distance
from dht.storage import Row, opened_storage
from dht.tasks import OwnedTasks
from protocol.identifiers import node_id, record_key
from protocol.problems import Unavailable
from protocol.records import ServiceRecord, Signed, raw_public_key
from region_controller.catalogue import Catalogue
from tests.dht_mesh import identity, node, service

SERVICES = 10_000
PUBLISHERS = 40
CATEGORIES = 50
NODES = 12
REPLICAS = 8
SEARCHES = 200
PACE_S = 0.3
PUBLISHED = 20
WARM_UP = 40
"""Searches at the beginning that may meet a category for the first time: not counted."""


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


def fill(folder: Path) -> None:
    """What 12 nodes would hold after all had been published."""
    now = time.time()
    by_id = {bytes.fromhex(node_id(raw_public_key(identity(n)))): n for n in range(NODES)}
    rows: dict[int, list[Row]] = defaultdict(list)
    holders: dict[bytes, list[int]] = {}
    for number in range(SERVICES):
        signed = made(number, seq=int(now * 1000) - SERVICES + number)
        place = rules.slot(signed.record)
        for name in signed.record.names[3:]:  # the categories: what is searched
            key = record_key(name)
            via, seq, expiry = signed.public_key[:20], signed.record.seq, signed.record.expiry
            row = Row(key, place, signed.public_key, via, seq, False, expiry, False, now, signed.envelope)
            if key not in holders:
                nearest = sorted(by_id, key=lambda node_id, k=key: distance(node_id, k))
                holders[key] = [by_id[node_id] for node_id in nearest[:REPLICAS]]
            for holder in holders[key]:
                rows[holder].append(row)
    for number in range(NODES):
        with opened_storage(folder / f"{number}.sqlite") as storage:
            storage.put(rows[number])


async def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    chance = random.Random(3)
    with tempfile.TemporaryDirectory(prefix="cornerstore-bench-") as text:
        folder = Path(text)
        fill(folder)
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(node(0, database=folder / "0.sqlite"))]
            for number in range(1, NODES):
                database, known = folder / f"{number}.sqlite", nodes[0].contacts()[:1]
                nodes.append(await stack.enter_async_context(node(number, database=database, bootstrap=known)))
            controller = await stack.enter_async_context(node(NODES, bootstrap=nodes[0].contacts()[:1]))
            tasks = await stack.enter_async_context(OwnedTasks())
            await measure(chance, nodes, controller, tasks)


async def first_search(catalogue: Catalogue) -> list[ServiceRecord]:
    """A read that came in part is unavailable, and the next one goes on from there."""
    while True:
        try:
            return await catalogue.search()
        except Unavailable as problem:
            print(f"first search: {problem.detail}", file=sys.stderr)


async def measure(
    chance: random.Random, nodes: list[NetworkDirectory], controller: NetworkDirectory, tasks: OwnedTasks
) -> None:
    def spawn(work: Coroutine[Any, Any, None]) -> None:
        tasks.run(work)

    catalogue = Catalogue(controller, spawn, clock=time.time)
    began = time.perf_counter()
    found = await first_search(catalogue)
    first_s = time.perf_counter() - began
    print(f"first search: {len(found)} in {first_s:.2f} s", file=sys.stderr)

    before = controller.stats()["datagrams_calls"]
    for _ in range(5):
        await controller.services("category:/")
    refresh = (controller.stats()["datagrams_calls"] - before) / 5

    visible: list[float] = []

    async def publishing() -> None:
        for i in range(PUBLISHED):
            signed = made(SERVICES + i, seq=int(time.time() * 1000))
            began = time.perf_counter()
            await chance.choice(nodes).publish(signed)
            while not await catalogue.search(text=f"svc{SERVICES + i} "):
                await asyncio.sleep(0.05)
            visible.append(time.perf_counter() - began)
            await asyncio.sleep(SEARCHES * PACE_S / PUBLISHED / 2)

    published = asyncio.create_task(publishing())
    times: list[float] = []
    for i in range(SEARCHES):
        query: dict[str, Any] = [
            {"text": f"number {chance.randrange(SERVICES)} "},
            {"category": "/field3", "inputs": ("text",), "outputs": ("number",)},
            {"category": f"/field1/kind{chance.randrange(10) * 5 + 1}"},
            {"inputs": ("text",), "text": "kind7"},
        ][i % 4]
        began = time.perf_counter()
        await catalogue.search(**query)
        if i >= WARM_UP:
            times.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(PACE_S)
    await published
    latency = summary(times)
    finish(
        "search",
        runs=len(times),
        ours={
            "services": len(found),
            "first_s": round(first_s, 3),
            "search_ms": latency,
            "visible_s": summary(visible),
            "refresh_calls": refresh,
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


if __name__ == "__main__":
    uvloop.run(main())
