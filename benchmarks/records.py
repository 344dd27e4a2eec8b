"""Records with 30% of the nodes killed, and a mesh whose founders all die: ours beside OpenDHT and plain kademlia.

200 nodes on loopback in ten processes, the same for each system, in turn.

Kill: 80 records are put and read; three processes are killed with SIGKILL, and at once operations arrive at a steady
pace at random survivors: gets of those records and puts of new ones; in the end the new ones are read too. Nobody is
asked for what it put itself. What takes longer than 20 s counts as failed after 20 s; what was not put is not read.
Cohort: 40 nodes, then 160 that all join through one of them; the 40 put 80 records and are killed; those records, and
80 that survivors put afterwards, are read at random survivors.

Two rounds; plain kademlia, whose figures are multiples of its timeout of 5 s, and the cohorts of the others in one.

`opendht_p99`, `kademlia_p99`: the smaller of their put and get p99 over ours, with 30% killed. `get_success`: gets of
ours that found their record, under the kill; `cohort_success`: the same in the cohort. `full_key`: what records and
questions cost one node of ours at a key that is full; see `benchmarks.full_key`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks import full_key
from benchmarks.report import finish, summary

WORKER = Path(__file__).with_name("record_peers.py")
DEBIAN_PYTHON = "/usr/bin/python3"
SYSTEMS = ("cornerstore", "opendht", "kademlia")
ROUNDS = 2
WAVES = (1, 1, 4, 4)
"""Processes that start at the same time."""
NODES_EACH = 20
KILLED = 3
OLD_PROCESSES = 2
RECORDS = 80
PACE_S = 0.1
"""Between two operations: the same load for each system, however long its operations take."""
CALM_PACE_S = 0.05
PATIENCE_S = 20.0
SETTLE_S = 17.0
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
        await asyncio.wait([answered], timeout=PATIENCE_S)
        return answered.result() if answered.done() else {"ok": False, "ms": PATIENCE_S * 1e3}

    @property
    def processor_s(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def running_mesh(system: str, *, cohort: bool) -> AsyncIterator[list[Worker]]:
    """All processes, in waves. With `cohort`, all but the old ones know only the very first node."""
    workers: list[Worker] = []
    listeners: list[asyncio.Task[None]] = []
    chance = random.Random(7)
    try:
        for wave in WAVES:
            ports = [port for worker in workers for port in worker.ports]
            for _ in range(wave):
                known = [str(ports[0] if cohort else chance.choice(ports))] if ports else []
                workers.append(await started(system, len(workers) * NODES_EACH, known))
            for worker in workers[-wave:]:
                await worker.ready()
                listeners.append(asyncio.create_task(worker.listen()))
        await asyncio.sleep(SETTLE_S)
        yield workers
    finally:
        for worker in workers:
            await worker.kill()
        await asyncio.gather(*listeners, return_exceptions=True)


async def started(system: str, first_number: int, known: Sequence[str]) -> Worker:
    interpreter = DEBIAN_PYTHON if system == "opendht" else sys.executable
    command = [interpreter, str(WORKER), system, str(NODES_EACH), str(first_number), *known]
    return Worker(
        await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    )


class Load:
    """Operations at random nodes; a record is never read where it was put, for that needs no network."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self._put_at: dict[str, tuple[Worker, int]] = {}

    async def paced(
        self, workers: Sequence[Worker], asks: Sequence[tuple[str, str]], *, pace_s: float = PACE_S
    ) -> list[Any]:
        """One each `pace_s`, whether or not the earlier ones have ended. Each answer tells the processor time that all
        processes together spent per operation meanwhile."""
        before = sum(worker.processor_s for worker in workers)
        running = []
        for op, name in asks:
            place = self._place(workers, op, name)
            running.append(asyncio.create_task(place[0].ask(op, place[1], name)))
            await asyncio.sleep(pace_s)
        answers = await asyncio.gather(*running)
        spent_ms = (sum(worker.processor_s for worker in workers) - before) / max(1, len(asks)) * 1e3
        return [{**answer, "processor_ms": spent_ms} for answer in answers]

    def _place(self, workers: Sequence[Worker], op: str, name: str) -> tuple[Worker, int]:
        while True:
            place = self.chance.choice(workers), self.chance.randrange(NODES_EACH)
            if op == "put":
                self._put_at[name] = place
                return place
            if place != self._put_at[name]:
                return place


def of(answers: Sequence[dict[str, Any]], field: str = "ms") -> list[float]:
    return [answer[field] for answer in answers if field in answer]


async def measured_kill(system: str, round_number: int) -> dict[str, list[Any]]:
    """Answers by phase: `calm_put`, `calm_get`, `put`, `get`, and `reread` for what was put after the kill."""
    load = Load(round_number)
    before = [f"{round_number}-old-{i}" for i in range(RECORDS)]
    after = [f"{round_number}-new-{i}" for i in range(RECORDS)]
    async with running_mesh(system, cohort=False) as workers:
        calm_put = await load.paced(workers, [("put", name) for name in before], pace_s=CALM_PACE_S)
        calm_get = await load.paced(workers, [("get", name) for name in before], pace_s=CALM_PACE_S)
        doomed = load.chance.sample(workers, KILLED)
        survivors = [w for w in workers if w not in doomed]
        await asyncio.gather(*(w.kill() for w in doomed))
        mixed = [ask for pair in zip(before, after, strict=True) for ask in (("get", pair[0]), ("put", pair[1]))]
        answers = await load.paced(survivors, mixed)
        reread = await load.paced(
            survivors, [("get", name) for name in those_put(after, answers[1::2])], pace_s=CALM_PACE_S
        )
    return {"calm_put": calm_put, "calm_get": calm_get, "get": answers[::2], "put": answers[1::2], "reread": reread}


async def measured_cohort(system: str, round_number: int) -> float:
    """The share of gets that found their record."""
    load = Load(100 + round_number)
    before = [f"{round_number}-before-{i}" for i in range(RECORDS)]
    after = [f"{round_number}-after-{i}" for i in range(RECORDS)]
    async with running_mesh(system, cohort=True) as workers:
        old, young = workers[:OLD_PROCESSES], workers[OLD_PROCESSES:]
        await load.paced(old, [("put", name) for name in before], pace_s=CALM_PACE_S)
        await asyncio.gather(*(w.kill() for w in old))
        puts = await load.paced(young, [("put", name) for name in after], pace_s=CALM_PACE_S)
        gets = [("get", name) for name in before + those_put(after, puts)]
        return share_found(await load.paced(young, gets, pace_s=CALM_PACE_S))


def those_put(names: Sequence[str], answers: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name, answer in zip(names, answers, strict=True) if answer["ok"]]


def mean(samples: Sequence[float]) -> float:
    return round(statistics.mean(samples), 4)


def share_found(answers: Sequence[dict[str, Any]]) -> float:
    return float(sum(a["ok"] for a in answers) / len(answers))


def require_opendht() -> None:
    """Debian's python3-opendht, installed here if it is missing and root may."""
    check = [DEBIAN_PYTHON, "-c", "import opendht"]
    if subprocess.run(check, capture_output=True, check=False).returncode:
        if shutil.which("apt-get") is None:
            raise SystemExit("OpenDHT is missing: this benchmark installs python3-opendht on Debian only")
        subprocess.run(["apt-get", "install", "-y", "python3-opendht"], check=True, stdout=sys.stderr)


async def main() -> None:
    require_opendht()
    held = full_key.measured()
    kills: dict[str, list[dict[str, list[Any]]]] = {system: [] for system in SYSTEMS}
    cohorts: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    for round_number in range(ROUNDS):
        for system in SYSTEMS if round_number == 0 else ("cornerstore", "opendht"):
            result = await measured_kill(system, round_number)
            kills[system].append(result)
            seen = {phase: (summary(of(answers)), share_found(answers)) for phase, answers in result.items() if answers}
            print(f"round {round_number} {system}: {seen}", file=sys.stderr)
        for system in SYSTEMS if round_number == 0 else ("cornerstore",):
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
            "calm_put_processor_ms": mean(pooled(system, "calm_put", field="processor_ms")),
            "calm_get_processor_ms": mean(pooled(system, "calm_get", field="processor_ms")),
            "killed_processor_ms": mean(pooled(system, "get", field="processor_ms")),
            "get_success": found(system),
            "cohort_success": mean(cohorts[system]),
        }

    def p99(system: str, phase: str, field: str = "ms") -> float:
        return summary(pooled(system, phase, field=field))["p99"]

    ratios = {"get_success": found("cornerstore"), "cohort_success": mean(cohorts["cornerstore"])}
    for system in ("opendht", "kademlia"):
        for phase in ("put", "get"):
            ratios[f"{system}_{phase}_p99"] = round(p99(system, phase) / p99("cornerstore", phase), 2)
        ratios[f"{system}_p99"] = min(ratios[f"{system}_put_p99"], ratios[f"{system}_get_p99"])
    ratios["opendht_first_value_p99"] = round(p99("opendht", "get", "first_ms") / p99("cornerstore", "get"), 2)
    finish(
        "records",
        runs=ROUNDS,
        ours={**report("cornerstore"), "full_key": held},
        reference={system: report(system) for system in ("opendht", "kademlia")},
        ratios=ratios,
    )


if __name__ == "__main__":
    asyncio.run(main())
