"""A soak: 100 services started, called and reaped, over and over for ten minutes; then everything is counted.

20 are containers (busybox httpd), 80 are WebAssembly modules. A third of the instances is removed by its client, a
third stopped first, a third left to expire (1 s). The counts are taken when nothing runs any more: after the first
rounds, half-way, and at the end.

`leaked`: containers, networks, images, descriptors, threads and tasks that are there at the end and were not after the
first rounds, and each whole megabyte by which the node has grown since half-way (before that, caches fill).

    DURATION_S=60 make bench-leaks
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import wasmtime

from benchmarks.cold_start_services import META, minimal
from benchmarks.containers import docker, until_answered
from benchmarks.one_site import one_site
from benchmarks.report import finish
from client.controller import ControllerClient
from csar import pack
from node.local_mesh import Site
from protocol.instances import StartRequest

DURATION_S = float(os.environ.get("DURATION_S", "600"))
CONTAINERS, MODULES = 20, 80
AT_ONCE = 8
FIRST_ROUNDS = 3
SETTLE_S = 60.0

MODULE = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "Content-Type: text/plain\\n\\n{name}")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const {length}))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""
MODULE_DESCRIPTION = """tosca_definitions_version: tosca_simple_profile_for_microservices_1_0_0
topology_template:
  node_templates:
    service:
      type: tosca.nodes.microservices.wasm_module
      properties:
        {{id: {name}, name: {name}, category: /benchmark, module: m.wasm, mem_requirement: 4}}
"""


def module(folder: Path, name: str) -> Path:
    length = len("Content-Type: text/plain\n\n") + len(name)
    (folder / "TOSCA-Metadata").mkdir(parents=True)
    (folder / "TOSCA-Metadata/TOSCA.meta").write_text(META)
    (folder / "service.yaml").write_text(MODULE_DESCRIPTION.format(name=name))
    (folder / "m.wasm").write_bytes(wasmtime.wat2wasm(MODULE.format(name=name, length=length)))
    return folder


class Soak:
    def __init__(self, site: Site, client: ControllerClient, session: aiohttp.ClientSession) -> None:
        self._site, self._client, self._session = site, client, session
        self._gate = asyncio.Semaphore(AT_ONCE)
        self.starts = 0

    async def publish(self, folder: Path) -> list[str]:
        made = [minimal(folder / f"c{n}", f"soak-c{n}") for n in range(CONTAINERS)]
        made += [module(folder / f"m{n}", f"soak-m{n}") for n in range(MODULES)]
        token = (self._site.data_dir / "identity/operator.token").read_text().strip()
        async with ControllerClient(self._client.url, token=token) as operator:
            for path in made:
                packed = path.with_suffix(".csar")
                await asyncio.to_thread(pack, path, packed)
                await operator.publish(packed)
        return [f"soak-{path.name}" for path in made]

    async def round(self, services: Sequence[str]) -> None:
        await asyncio.gather(*(self._life(service, number % 3) for number, service in enumerate(services)))

    async def _life(self, service: str, ending: int) -> None:
        async with self._gate:
            answer = await self._client.start(StartRequest(service=service, alive_time=1 if ending == 2 else 600))
            await until_answered(self._session, answer.url or "")
            self.starts += 1
            instance, token = answer.instance, answer.lease.token
            if ending == 1:
                await self._client.stop(instance, token)
            if ending == 2:
                while (await self._client.instance(instance)).state not in ("stopped", "failed"):
                    await asyncio.sleep(0.2)
            await self._client.remove(instance, token)

    async def counts(self) -> dict[str, float]:
        """When two looks in a row show the same, so that nothing is still on its way out."""
        before: dict[str, float] = {}
        async with asyncio.timeout(SETTLE_S):
            while (now := await self._look()) != before:
                before = now
                await asyncio.sleep(3.0)
        return now | {"megabytes": _resident_mb(self._site.running.pid)}

    async def _look(self) -> dict[str, float]:
        async with self._session.get(f"{self._site.running.rest}/metrics") as response:
            lines = (await response.text()).splitlines()
        metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        process = Path(f"/proc/{self._site.running.pid}")
        return {
            "containers": len(docker("ps", "-aq").split()),
            "networks": len(docker("network", "ls", "-q").split()),
            "images": len(set(docker("images", "-aq").split())),
            "descriptors": len(list((process / "fd").iterdir())),
            "threads": len(list((process / "task").iterdir())),
            "tasks": float(metrics["cornerstore_tasks"]),
        }


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cornerstore-bench-") as folder:
        async with one_site() as (site, client), aiohttp.ClientSession() as session:
            soak = Soak(site, client, session)
            services = await soak.publish(Path(folder))
            rounds, looks = 0, []
            began = time.monotonic()
            for until_s, least in ((0.0, FIRST_ROUNDS), (DURATION_S / 2, 1), (DURATION_S, 1)):
                ends = rounds + least
                while rounds < ends or time.monotonic() - began < until_s:
                    await soak.round(services)
                    rounds += 1
                looks.append(await soak.counts())
                print(f"{rounds} rounds, {soak.starts} starts: {looks[-1]}", file=sys.stderr, flush=True)
    first, middle, last = looks
    grown_mb = max(0.0, last["megabytes"] - middle["megabytes"])
    left = {name: max(0.0, last[name] - first[name]) for name in first if name != "megabytes"}
    finish(
        "leaks",
        runs=rounds,
        ours={"starts": soak.starts, "after_first_rounds": first, "half_way": middle, "end": last},
        reference={},
        ratios={"leaked": sum(left.values()) + int(grown_mb), **left, "megabytes": round(grown_mb, 2)},
    )


if __name__ == "__main__":
    asyncio.run(main())
