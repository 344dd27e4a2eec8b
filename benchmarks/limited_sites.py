"""Sites in network namespaces with limited uplinks: a mesh of ours and a plain registry on the same links.

    seed.node --- router == uplink, tbf == wan == router --- s1.node
                                             \\== router --- s2.node ...

The limit is the kernel's token bucket on each router's way out to the WAN (netem does not exist on every kernel), so a
site's uplink is `rate_mbit`, its downlink as fast as the machine. What a site sent is read from that interface's own
counter: it includes headers, TLS, handshakes, records, and repeated segments. Needs root.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from node.config import NodeConfig
from node.local_mesh import Site, up
from tests.multihost.testbed import Host, TestBed, running_testbed

SERVICE = Path(__file__).resolve().parent.parent / "services" / "word_count"
SEED = "seed"
JOINS_AT_ONCE = 4


@dataclass
class LimitedSites:
    """`sites[SEED]` publishes; the others, `s1` and on, ask."""

    bed: TestBed
    sites: dict[str, Site]

    @property
    def askers(self) -> list[str]:
        return [name for name in self.sites if name != SEED]

    def host(self, name: str) -> Host:
        return self.bed.host(name, "node")

    async def limit(self, rate_mbit: float) -> None:
        """Limit every site's uplink, in place of the limit before."""
        for name in self.sites:
            gateway = self.bed.sites[name].gateway
            rate = f"{rate_mbit:g}mbit"
            await self.bed.run(
                gateway, *f"tc qdisc replace dev wan0 root tbf rate {rate} burst 128kb latency 100ms".split()
            )

    async def sent_bytes(self, name: str) -> int:
        """All bytes that left the site so far, as its uplink counts them."""
        shown = await self.bed.run(self.bed.sites[name].gateway, "ip", "-s", "-j", "link", "show", "dev", "wan0")
        return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])

    def node_cpu_s(self) -> float:
        """Processor time of all nodes so far."""
        ticks = 0
        for site in self.sites.values():
            fields = Path(f"/proc/{site.running.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    async def overlay_counts(self, names: Sequence[str]) -> dict[str, float]:
        """Lookups with a question, and requests sent in them and otherwise, by these sites together so far."""
        counts = {"lookups_count": 0.0, "datagrams_calls": 0.0}
        for name in names:
            shown = await self.bed.run(self.host(name), "curl", "-sS", f"{self.sites[name].running.rest}/metrics")
            for count in counts:
                (line,) = [one for one in shown.splitlines() if one.startswith(f'cornerstore_dht{{name="{count}"}}')]
                counts[count] += float(line.split()[1])
        return counts

    async def publish(self, size: int) -> tuple[str, int]:
        """A new service with `size` incompressible bytes, published at the seed: its digest, its archive's size."""
        seed = self.sites[SEED]
        folder = self.bed.folder / f"service-{random.getrandbits(32):08x}"
        await asyncio.to_thread(shutil.copytree, SERVICE, folder)
        await asyncio.to_thread((folder / "wordcount" / "model.bin").write_bytes, os.urandom(size))
        answer = json.loads(await seed.cornerstore("--json", "--controller", seed.running.rest, "publish", str(folder)))
        await asyncio.to_thread(shutil.rmtree, folder)
        return str(answer["digest"]), int(answer["size"])


@asynccontextmanager
async def limited_sites(askers: int) -> AsyncIterator[LimitedSites]:
    """A running mesh: the seed, which founded it, and `askers` sites that joined. Uplinks are not limited yet."""
    names = [SEED, *(f"s{n}" for n in range(1, askers + 1))]
    async with running_testbed({name: ["node"] for name in names}) as bed, AsyncExitStack() as stack:
        there = LimitedSites(bed, {name: _site(bed, name) for name in names})
        seed = there.sites[SEED]
        await seed.found("bench")
        _without_mdns(seed)
        await stack.enter_async_context(up(seed))
        slots = asyncio.Semaphore(JOINS_AT_ONCE)

        async def join(site: Site) -> None:
            async with slots:
                await site.join(await seed.invite(site))
                _without_mdns(site)

        await asyncio.gather(*(join(there.sites[name]) for name in there.askers))
        for name in there.askers:
            await stack.enter_async_context(up(there.sites[name]))
        yield there


def _site(bed: TestBed, name: str) -> Site:
    return Site(
        name,
        f"eu/{name}",
        bed.folder / name,
        roles=("controller", "store"),
        host="",
        enter=("nsenter", f"--net={bed.host(name, 'node').path}"),
    )


def _without_mdns(site: Site) -> None:
    config = NodeConfig.load(site.data_dir)
    msgspec.structs.replace(config, network=msgspec.structs.replace(config.network, mdns=False)).save(site.data_dir)


async def downloaded(bed: TestBed, host: Host, url: str, target: Path, digest: str) -> float:
    """curl on the host; the seconds it took, as curl tells. Raises RuntimeError if the file is not the digest's."""
    command = ["curl", "-sS", "--fail-with-body", "--max-time", "600", "-o", str(target), "-w", "%{time_total}", url]
    try:
        seconds = float(await bed.run(host, *command, timeout_s=610))
    except RuntimeError as error:
        said = target.read_bytes()[:1000].decode(errors="replace") if target.exists() else "nothing"
        raise RuntimeError(f"{error}; answered: {said}") from error
    found = (await bed.run(host, "sha256sum", str(target), timeout_s=60)).split()[0]
    target.unlink()
    if f"sha256:{found}" != digest:
        raise RuntimeError(f"{url} answered sha256:{found}")
    return seconds


async def all_at_once(there: LimitedSites, names: Sequence[str], urls: Sequence[str], digest: str) -> list[float]:
    """The sites download at the same moment; seconds from then until each has all bytes, in order."""
    target = there.bed.folder
    return sorted(
        await asyncio.gather(
            *(
                downloaded(there.bed, there.host(name), url, target / f"got-{name}", digest)
                for name, url in zip(names, urls, strict=True)
            )
        )
    )


def content_url(site: Site, digest: str) -> str:
    """Where a site's phones and developers get an archive; the node fetches it through the mesh first."""
    return f"{site.running.rest}/v1/content/{digest}"
