"""The overlay at 50 to 1,000 nodes on a simulated network and virtual time: the shipped code, one seed.

Each mesh passes through the same course, with 100 service records in it:

    calm        200 reads; then 15 minutes with nobody asking, in which the datagrams are counted
    loss        200 reads while a tenth of all datagrams is lost
    churn       5 minutes in which nodes die and join so that a node lives an hour on average, with 200 reads
    partition   a quarter of the nodes is cut off for 2 minutes; 200 reads, 30 s after the cut has ended
    liars       a fifth of the members take records and keep none, and name nodes that do not exist; half of the
                records are published anew among them, and 200 reads follow; then all are honest again
    dead30      30% die at one moment; 200 reads from that moment on
    dead50      half of the rest dies, 2 minutes later; 200 reads from that moment on

A read is a lookup by id at a random node; it succeeds if it finds the one record. Every datagram takes 10 to 30 ms.
`SIM_SIZES=50,100` and `SIM_SEED=n` give other runs; the same seed gives the same run, byte for byte.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import get_context

import structlog

from benchmarks.plots import Panel, over_sizes, require_matplotlib
from benchmarks.report import finish, summary
from dht.overlay.simulated import SimulatedNetwork
from protocol.identifiers import record_key
from protocol.problems import Unavailable
from tests.simulation import Simulation, address, simulation
from tests.virtual_time import in_virtual_time

SEED = int(os.environ.get("SIM_SEED", "20260711"))
SIZES = [int(size) for size in os.environ.get("SIM_SIZES", "50,100,200,500,1000").split(",")]
RECORDS = 100
READS = 200
LATENCY_S = 0.02
SETTLE_S = 60.0
IDLE_S = 900.0
CHURN_S = 300.0
CUT_S = 120.0
RETURN_S = 30.0
NOTICED_S = 120.0
LIFE_S = 3600.0
LIAR_SHARE = 0.2
PHASES = ("calm", "loss", "churn", "partition", "liars", "dead30", "dead50")


@dataclass
class Reads:
    """What the reads of one phase met. `gone`: no living node held the record any more. `missed`: one did."""

    found: int = 0
    gone: int = 0
    missed: int = 0
    unavailable: int = 0
    hops: list[float] = field(default_factory=list)
    questions: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    def report(self) -> dict[str, object]:
        total = self.found + self.gone + self.missed + self.unavailable
        return {
            "success": round(self.found / total, 4),
            "gone": self.gone,
            "falsely_missing": self.missed,
            "unavailable": self.unavailable,
            "hops": {**summary(self.hops), "mean": round(statistics.mean(self.hops), 3)},
            "answers": summary(self.questions),
            "ms": summary(self.ms),
        }


async def read(sim: Simulation, name: str, into: Reads) -> None:
    loop = asyncio.get_running_loop()
    reader = sim.anybody()
    before, began = reader.stats(), loop.time()
    try:
        if len(await reader.services(name)) == 1:
            into.found += 1
        elif sim.holders(record_key(name)):
            into.missed += 1
        else:
            into.gone += 1
    except Unavailable:
        into.unavailable += 1
    after = reader.stats()
    searches = after["lookups_count"] - before.get("lookups_count", 0)
    into.ms.append((loop.time() - began) * 1e3)
    into.hops.append((after["lookups_hops"] - before.get("lookups_hops", 0)) / searches)
    into.questions.append(after["lookups_answers"] - before.get("lookups_answers", 0))


async def reads(sim: Simulation, *, spread_s: float = 0.0) -> Reads:
    """One after the other, `spread_s` in all between them."""
    result = Reads()
    for i in range(READS):
        await read(sim, f"id:s{i % RECORDS}", result)
        if spread_s:
            await asyncio.sleep(spread_s / READS)
    return result


async def grown(sim: Simulation, size: int) -> None:
    """A mesh that joined in batches, a third of what is there at one moment, each through a random member; and the
    records."""
    await sim.add(0)
    while (count := len(sim.nodes)) < size:
        members = sorted(sim.nodes)
        batch = range(count, min(size, count + max(1, count // 3)))
        await asyncio.gather(*(sim.add(number, through=sim.chance.choice(members)) for number in batch))
    for i in range(RECORDS):
        await sim.anybody().publish(sim.service(f"s{i}", category=f"/c{i % 10}/s{i}"))
    await asyncio.sleep(SETTLE_S)


async def churn(sim: Simulation) -> Reads:
    async def coming_and_going() -> None:
        number = 1_000_000
        while True:
            await asyncio.sleep(sim.chance.expovariate(len(sim.nodes) / LIFE_S))
            await sim.kill(sim.chance.choice(list(sim.nodes)))
            number += 1
            await sim.add(number, through=sim.chance.choice(list(sim.nodes)))

    changes = asyncio.create_task(coming_and_going())
    try:
        return await reads(sim, spread_s=CHURN_S)
    finally:
        changes.cancel()
        await asyncio.gather(changes, return_exceptions=True)


async def partition(sim: Simulation) -> Reads:
    island = sim.chance.sample(sorted(sim.nodes), len(sim.nodes) // 4)
    sim.network.cut(address(number) for number in island)
    await asyncio.sleep(CUT_S)
    sim.network.heal()
    await asyncio.sleep(RETURN_S)
    return await reads(sim)


async def liars(sim: Simulation) -> Reads:
    """Half of the records read were published among liars."""
    turned = sim.chance.sample(sorted(sim.nodes), int(LIAR_SHARE * len(sim.nodes)))
    with sim.turned(turned):
        for i in range(RECORDS // 2):
            await sim.anybody().publish(sim.service(f"s{i}", category=f"/c{i % 10}/s{i}"))
        result = await reads(sim)
    await asyncio.sleep(SETTLE_S)
    return result


async def dead(sim: Simulation, share: float) -> Reads:
    for number in sim.chance.sample(sorted(sim.nodes), int(share * len(sim.nodes))):
        await sim.kill(number)
    return await reads(sim)


async def course(size: int) -> dict[str, object]:
    """All phases at one size."""
    result: dict[str, object] = {}
    began = time.process_time()
    network: SimulatedNetwork

    async def phase(name: str, work: Awaitable[Reads]) -> None:
        met = await work
        result[name] = met.report()
        seconds = time.process_time() - began
        print(f"{size} nodes, {seconds:.0f} s of processor time, {name}: {result[name]}", file=sys.stderr, flush=True)

    def per_node_hour(before: int, seconds: float) -> int:
        return round((network.counts["sent"] - before) * 3600 / seconds / size)

    async with simulation(seed=SEED + size) as sim:
        network = sim.network
        network.latency_s = LATENCY_S
        await grown(sim, size)
        await phase("calm", reads(sim))
        before = network.counts["sent"]
        await asyncio.sleep(IDLE_S)
        result["datagrams_per_node_hour"] = per_node_hour(before, IDLE_S)
        network.loss = 0.1
        await phase("loss", reads(sim))
        network.loss = 0.0
        before = network.counts["sent"]
        await phase("churn", churn(sim))
        result["datagrams_per_node_hour_churn"] = per_node_hour(before, CHURN_S)
        await phase("partition", partition(sim))
        await phase("liars", liars(sim))
        await phase("dead30", dead(sim, 0.3))
        await asyncio.sleep(NOTICED_S)
        await phase("dead50", dead(sim, 0.5))
        result["contacts"] = summary([n.stats()["contacts"] for n in sim.nodes.values()])
        result["crashes"] = sum(n.stats()["crashes"] for n in sim.nodes.values())
        result["largest_datagram"] = network.largest
        result["trace"] = f"{network.trace:08x}"
    return result


def plot(results: dict[int, dict[str, object]]) -> None:
    """`lookup-sim-*.svg` beside the results."""
    sizes = sorted(results)

    def of(phase: str, name: str, quantile: str | None = None) -> list[float]:
        values = [results[size][phase][name] for size in sizes]  # type: ignore[index]
        return [value[quantile] if quantile else value for value in values]

    panels: list[Panel] = [
        ("hops", "hops to the nearest node, mean", {p: of(p, "hops", "mean") for p in PHASES}),
        ("success", "reads that found the record, %", {p: [100 * s for s in of(p, "success")] for p in PHASES}),
        ("latency", "slowest read but 1%, ms of virtual time", {p: of(p, "ms", "p99") for p in PHASES}),
        (
            "traffic",
            "datagrams sent by a node in an hour",
            {
                name: [float(results[size][key]) for size in sizes]  # type: ignore[arg-type]
                for name, key in (
                    ("nobody asks", "datagrams_per_node_hour"),
                    ("churn and reads", "datagrams_per_node_hour_churn"),
                )
            },
        ),
    ]
    over_sizes("lookup-sim", "nodes", sizes, panels, least_percent=94.0)


def one_size(size: int) -> dict[str, object]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    began = time.monotonic()
    with redirect_stdout(sys.stderr):
        result = in_virtual_time(course(size))
    print(f"{size} nodes, {time.monotonic() - began:.0f} s: {result}", file=sys.stderr, flush=True)
    return result


def at_all_sizes(sizes: Sequence[int]) -> dict[int, dict[str, object]]:
    """The largest first, a process for each core."""
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context("spawn")) as pool:
        running = {size: pool.submit(one_size, size) for size in sorted(sizes, reverse=True)}
        return {size: running[size].result() for size in sizes}


def main() -> None:
    require_matplotlib()
    results = at_all_sizes(SIZES)
    plot(results)
    largest, smallest = results[max(results)], results[min(results)]
    ratios: dict[str, float] = {f"success_{phase}": largest[phase]["success"] for phase in PHASES}  # type: ignore[index]
    ratios["hops"] = largest["calm"]["hops"]["mean"]  # type: ignore[index]
    for traffic in ("datagrams_per_node_hour", "datagrams_per_node_hour_churn"):
        ratios[traffic] = float(largest[traffic])  # type: ignore[arg-type]
        ratios[f"{traffic}_over_smallest"] = round(ratios[traffic] / float(smallest[traffic]), 3)  # type: ignore[arg-type]
    finish(
        "lookup-sim",
        runs=1,
        ours={str(size): result for size, result in results.items()} | {"seed": SEED},
        reference={},
        ratios=ratios,
    )


if __name__ == "__main__":
    main()
