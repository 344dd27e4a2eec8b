"""Records with 30% of the nodes killed, and a mesh whose founders all die: ours beside OpenDHT and plain kademlia.

200 nodes on loopback in ten processes, the same for each system, in turn.

Kill: 100 records are put, three processes are killed with SIGKILL, and at once operations arrive at a steady pace at
random survivors: gets of those records and puts of new ones; in the end the new ones are read too.
Cohort: 40 nodes, then 160 that all join through one of them; the 40 put 100 records and are killed; those records, and
100 that survivors put afterwards, are read at random survivors.

`opendht_p99`, `kademlia_p99`: the smaller of their put and get p99 over ours, with 30% killed. `get_success`: gets of
ours that found their record, under the kill; `cohort_success`: the same in the cohort.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import finish, summary

WORKER = Path(__file__).with_name("record_peers.py")
DEBIAN_PYTHON = "/usr/bin/python3"
SYSTEMS = ("cornerstore", "opendht", "kademlia")
ROUNDS = 2
PROCESSES = 10
NODES_EACH = 20
KILLED = 3
OLD_PROCESSES = 2
RECORDS = 100
PACE_S = 0.1
"""Between two operations: the same load for each system, however long its operations take."""
SETTLE_S = 20.0
"""After the last node joined: longer than our first refresh (15 s), so that nobody is caught half joined."""


class Worker:
    """One process of nodes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ports: list[int] = []
        self._asks: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._count = 0

    async def ready(self) -> None:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError("a worker ended before its nodes were up")
        self.ports = json.loads(line)

    async def listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            answer = json.loads(line)
            self._asks.pop(answer["ask"]).set_result(answer)

    async def ask(self, op: str, node: int, name: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self._count += 1
        self._asks[self._count] = asyncio.get_running_loop().create_future()
        answered = self._asks[self._count]
        order = {"ask": self._count, "op": op, "node": node, "name": name}
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        return await answered

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def running_mesh(system: str, *, cohort: bool) -> AsyncIterator[list[Worker]]:
    """All processes, joined one after the other. With `cohort`, all but the old ones know only the very first node."""
    workers: list[Worker] = []
    listeners: list[asyncio.Task[None]] = []
    chance = random.Random(7)
    try:
        for number in range(PROCESSES):
            known = [] if not workers else [str(workers[0].ports[0] if cohort else chance.choice(all_ports(workers)))]
            interpreter = DEBIAN_PYTHON if system == "opendht" else sys.executable
            process = await asyncio.create_subprocess_exec(
                interpreter,
                str(WORKER),
                system,
                str(NODES_EACH),
                str(number * NODES_EACH),
                *known,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            workers.append(Worker(process))
            await workers[-1].ready()
            listeners.append(asyncio.create_task(workers[-1].listen()))
        await asyncio.sleep(SETTLE_S)
        yield workers
    finally:
        for worker in workers:
            await worker.kill()
        await asyncio.gather(*listeners, return_exceptions=True)


def all_ports(workers: Iterable[Worker]) -> list[int]:
    return [port for worker in workers for port in worker.ports]


async def paced(chance: random.Random, workers: Sequence[Worker], asks: Sequence[tuple[str, str]]) -> list[Any]:
    """Operations at random nodes, one each PACE_S, whether or not the earlier ones have ended."""
    running = []
    for op, name in asks:
        running.append(asyncio.create_task(chance.choice(workers).ask(op, chance.randrange(NODES_EACH), name)))
        await asyncio.sleep(PACE_S)
    return await asyncio.gather(*running)


def of(answers: Sequence[dict[str, Any]], field: str = "ms") -> list[float]:
    return [answer[field] for answer in answers if field in answer]


async def measured_kill(system: str, round_number: int) -> dict[str, list[Any]]:
    """Answers by phase: `calm_put`, `calm_get`, `put`, `get`, and `reread` for what was put after the kill."""
    chance = random.Random(round_number)
    before = [f"{round_number}-old-{i}" for i in range(RECORDS)]
    after = [f"{round_number}-new-{i}" for i in range(RECORDS)]
    async with running_mesh(system, cohort=False) as workers:
        calm_put = await paced(chance, workers, [("put", name) for name in before])
        calm_get = await paced(chance, workers, [("get", name) for name in before])
        doomed = chance.sample(workers, KILLED)
        survivors = [w for w in workers if w not in doomed]
        await asyncio.gather(*(w.kill() for w in doomed))
        mixed = [ask for pair in zip(before, after, strict=True) for ask in (("get", pair[0]), ("put", pair[1]))]
        answers = await paced(chance, survivors, mixed)
        reread = await paced(chance, survivors, [("get", name) for name in after])
    return {"calm_put": calm_put, "calm_get": calm_get, "get": answers[::2], "put": answers[1::2], "reread": reread}


async def measured_cohort(system: str, round_number: int) -> float:
    """The share of gets that found their record."""
    chance = random.Random(100 + round_number)
    before = [f"{round_number}-before-{i}" for i in range(RECORDS)]
    after = [f"{round_number}-after-{i}" for i in range(RECORDS)]
    async with running_mesh(system, cohort=True) as workers:
        old, young = workers[:OLD_PROCESSES], workers[OLD_PROCESSES:]
        await paced(chance, old, [("put", name) for name in before])
        await asyncio.gather(*(w.kill() for w in old))
        await paced(chance, young, [("put", name) for name in after])
        return share_found(await paced(chance, young, [("get", name) for name in before + after]))


def share_found(answers: Sequence[dict[str, Any]]) -> float:
    return sum(a["ok"] for a in answers) / len(answers)


def require_opendht() -> None:
    """Debian's python3-opendht, installed here if it is missing and root may."""
    check = [DEBIAN_PYTHON, "-c", "import opendht"]
    if subprocess.run(check, capture_output=True, check=False).returncode:
        if shutil.which("apt-get") is None:
            raise SystemExit("OpenDHT is missing: this benchmark installs python3-opendht on Debian only")
        subprocess.run(["apt-get", "install", "-y", "python3-opendht"], check=True, stdout=sys.stderr)


async def main() -> None:
    require_opendht()
    kills: dict[str, list[dict[str, list[Any]]]] = {system: [] for system in SYSTEMS}
    cohorts: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    for round_number in range(ROUNDS):
        for system in SYSTEMS:
            result = await measured_kill(system, round_number)
            kills[system].append(result)
            seen = {phase: (summary(of(answers)), share_found(answers)) for phase, answers in result.items()}
            print(f"round {round_number} {system}: {seen}", file=sys.stderr)
        for system in SYSTEMS:
            cohorts[system].append(await measured_cohort(system, round_number))
            print(f"round {round_number} {system}: cohort {cohorts[system][-1]:.3f}", file=sys.stderr)

    def pooled(system: str, *phases: str, field: str = "ms") -> list[float]:
        return [ms for run in kills[system] for phase in phases for ms in of(run[phase], field)]

    def found(system: str) -> float:
        answers = [a for run in kills[system] for phase in ("get", "reread") for a in run[phase]]
        return round(share_found(answers), 4)

    def report(system: str) -> dict[str, object]:
        return {
            "put_ms": summary(pooled(system, "put")),
            "get_ms": summary(pooled(system, "get")),
            "calm_put_ms": summary(pooled(system, "calm_put")),
            "calm_get_ms": summary(pooled(system, "calm_get")),
            "get_success": found(system),
            "cohort_success": round(sum(cohorts[system]) / ROUNDS, 4),
        }

    def p99(system: str, phase: str, field: str = "ms") -> float:
        return summary(pooled(system, phase, field=field))["p99"]

    ratios = {"get_success": found("cornerstore"), "cohort_success": round(sum(cohorts["cornerstore"]) / ROUNDS, 4)}
    for system in ("opendht", "kademlia"):
        for phase in ("put", "get"):
            ratios[f"{system}_{phase}_p99"] = round(p99(system, phase) / p99("cornerstore", phase), 2)
        ratios[f"{system}_p99"] = min(ratios[f"{system}_put_p99"], ratios[f"{system}_get_p99"])
    ratios["opendht_first_value_p99"] = round(p99("opendht", "get", "first_ms") / p99("cornerstore", "get"), 2)
    finish(
        "records",
        runs=ROUNDS,
        ours=report("cornerstore"),
        reference={system: report(system) for system in ("opendht", "kademlia")},
        ratios=ratios,
    )


if __name__ == "__main__":
    asyncio.run(main())
