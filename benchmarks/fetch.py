"""Fetching 256 MB over loopback, verified and written: nodes as shipped, curl from nginx, libtorrent.

`nginx`, `libtorrent`: our rate from one provider over that of curl from nginx (TLS 1.3), and of libtorrent without
encryption. `cpu_libtorrent`: our processor time per byte, both ends, over libtorrent's. The same with `_3`: from three
providers, in processes of their own. `plain_...`: without TLS on either side, content only. `memory_mb`: what a fetch
and an add of 2 GB add to the resident memory of a node.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.report import finish, median_ratio, summary
from node.config import NodeConfig
from node.local_mesh import Site, up
from node.web import bind

SIZE = 256_000_000
LARGE = 2_000_000_000
RUNS = int(os.environ.get("RUNS", "7"))


@dataclass
class Child:
    """A process that answers a line with a line."""

    process: asyncio.subprocess.Process
    hello: dict[str, Any]

    async def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        return await answer(self.process)


@asynccontextmanager
async def child(*arguments: str, log: Path) -> AsyncIterator[Child]:
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
    try:
        yield Child(process, await answer(process))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def answer(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a child of the benchmark ended early; see its log")
    return dict(json.loads(line))


@dataclass
class Series:
    """One way to fetch: MB/s and processor seconds per GB, a value a run."""

    rate: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, seconds: float, cpu_s: float) -> None:
        self.rate.append(SIZE / seconds / 1e6)
        self.cpu.append(cpu_s / SIZE * 1e9)

    def shown(self) -> dict[str, object]:
        return {"mb_s": summary(self.rate), "cpu_s_per_gb": summary(self.cpu)}


# --- ours -------------------------------------------------------------------------------------------------------------


@dataclass
class Ours:
    """`getter`: what to start; it is new for each run, because ext4 is slow to make files where many were removed."""

    getter: tuple[str, ...]
    store: Path
    providers: list[Child]
    log: Path

    async def share(self, path: Path) -> str:
        digests = [(await p.ask(add=str(path), pin=True))["digest"] for p in self.providers]
        return str(digests[0])

    async def fetch(self, digest: str) -> tuple[float, float]:
        """Seconds, processor seconds of all processes."""
        places = {f"{i:040x}": p.hello["address"] for i, p in enumerate(self.providers)}
        async with child("benchmarks.fetch_node", *self.getter, log=self.log) as getter:
            before = await cpu_s(getter, *self.providers)
            outcome = await getter.ask(fetch=digest, **{"from": places})
            spent = await cpu_s(getter, *self.providers) - before
        if sum(outcome["peers"].values()) < SIZE:
            raise RuntimeError(f"not everything was fetched: {outcome}")
        self.store.rename(self.store.with_name(f"old-{time.monotonic_ns()}"))
        return outcome["seconds"], spent


async def cpu_s(*children: Child) -> float:
    return float(sum([(await c.ask(weigh=True))["cpu_s"] for c in children]))


async def mesh_of(folder: Path, count: int) -> list[Site]:
    """Members of one mesh, made with the commands that an operator would type."""
    sites = [Site(f"s{i}", f"bench/s{i}", folder / f"s{i}", roles=("controller", "store")) for i in range(count)]
    await sites[0].found("bench")
    settle(sites[0])
    async with up(sites[0]):
        for site in sites[1:]:
            await site.join(await sites[0].invite(site))
            settle(site)
    return sites


def settle(site: Site) -> None:
    """Ports that stay, so that the nodes find each other again; no announcements on the LAN."""
    config = NodeConfig.load(site.data_dir)
    network = msgspec.structs.replace(config.network, peer_port=free_port(), rest_port=free_port(), mdns=False)
    network = msgspec.structs.replace(network, dht_port=network.peer_port)
    msgspec.structs.replace(config, network=network).save(site.data_dir)


def free_port() -> int:
    with bind("127.0.0.1", None, 0) as probe:
        return int(probe.getsockname()[1])


# --- references -------------------------------------------------------------------------------------------------------


class Nginx:
    """Debian's nginx on loopback, with sendfile, serving one folder over HTTP and over TLS 1.3."""

    def __init__(self, folder: Path, served: Path) -> None:
        self.http, self.https = free_port(), free_port()
        self._folder, self._out = folder, folder / "curl.out"
        certificate, key = folder / "nginx.crt", folder / "nginx.key"
        run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=localhost", "-days", "2", "-keyout", str(key), "-out", str(certificate)),
        )
        self._certificate = certificate
        (folder / "nginx.conf").write_text(
            f"""
            daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 2; user root;
            events {{ worker_connections 64; }}
            http {{
                access_log off; sendfile on; tcp_nopush on; root {served};
                server {{ listen 127.0.0.1:{self.http}; }}
                server {{ listen 127.0.0.1:{self.https} ssl; ssl_protocols TLSv1.3;
                          ssl_certificate {certificate}; ssl_certificate_key {key}; }}
            }}"""
        )
        self._process = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def fetch(self, name: str, *, tls: bool) -> tuple[float, float]:
        """Seconds of curl, processor seconds of curl and nginx."""
        url = f"https://localhost:{self.https}/{name}" if tls else f"http://localhost:{self.http}/{name}"
        self._out.unlink(missing_ok=True)
        trust = ["--cacert", str(self._certificate), "--tlsv1.3"] if tls else []
        before = self._cpu_s() + children_cpu_s()
        began = time.perf_counter()
        run("curl", "-sSf", "--noproxy", "*", "-4", *trust, "-o", str(self._out), url)
        seconds = time.perf_counter() - began
        return seconds, self._cpu_s() + children_cpu_s() - before

    def _cpu_s(self) -> float:
        master = self._process.pid
        workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        ticks = 0
        for pid in [str(master), *workers]:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


async def torrent(folder: Path, blob: Path, seeders: Sequence[Child]) -> tuple[float, float]:
    target = folder / "torrent"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    before = sum([(await s.ask())["cpu_s"] for s in seeders])
    ports = [str(s.hello["port"]) for s in seeders]
    getter = child("benchmarks.fetch_torrent", "get", str(blob), str(target), *ports, log=folder / "torrent.log")
    async with getter as got:
        after = sum([(await s.ask())["cpu_s"] for s in seeders])
    return got.hello["seconds"], got.hello["cpu_s"] + after - before


def children_cpu_s() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


def run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True)


def install() -> None:
    """What only this benchmark needs."""
    if shutil.which("nginx") is None or shutil.which("curl") is None:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(
            ["apt-get", "install", "-qy", "--no-install-recommends", "nginx-light", "curl"],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
    try:
        import libtorrent  # noqa: F401
    except ImportError:
        run(sys.executable, "-m", "pip", "install", "-q", "libtorrent>=2.0.9")


# --- the benchmark ----------------------------------------------------------------------------------------------------


def write_noise(path: Path, size: int, seed: int) -> Path:
    source = random.Random(seed)
    with path.open("wb") as file:
        while size > 0:
            file.write(source.randbytes(min(size, 1 << 20)))
            size -= 1 << 20
    return path


async def memory(folder: Path, getter: Child, provider: Child) -> dict[str, float]:
    """MB that a fetch, and an add, of 2 GB add to what the process weighs idle."""
    blob = write_noise(folder / "large", LARGE, 9)
    idle = (await provider.ask(weigh=True))["resident_mb"]
    digest = (await provider.ask(add=str(blob)))["digest"]
    added = (await provider.ask(weigh=True))["peak_mb"] - idle
    blob.unlink()
    idle, idle_provider = [(await c.ask(weigh=True))["resident_mb"] for c in (getter, provider)]
    await getter.ask(fetch=digest)
    fetched = (await getter.ask(weigh=True))["peak_mb"] - idle
    served = (await provider.ask(weigh=True))["peak_mb"] - idle_provider
    for node in (getter, provider):
        await node.ask(remove=digest)
    return {"add": round(added, 1), "fetch": round(fetched, 1), "serve": round(served, 1)}


async def main() -> None:
    await asyncio.to_thread(install)
    names = ["ours", "ours_3", "plain", "plain_3", "nginx", "nginx_plain", "libtorrent", "libtorrent_3"]
    series = {name: Series() for name in names}
    with tempfile.TemporaryDirectory(prefix="cornerstore-bench-") as temporary:
        folder = Path(temporary)
        blobs = [write_noise(folder / f"blob{i}", SIZE, i) for i in range(2)]
        async with AsyncExitStack() as stack:
            nginx = Nginx(folder, folder)
            stack.callback(nginx.close)
            sites = await mesh_of(folder, 4)
            starts = [(str(site.data_dir),) for site in sites]
            plain_starts = [("--plain", str(folder / f"plain{i}")) for i in range(4)]
            log = folder / "nodes.log"
            nodes, plain = [
                [
                    await stack.enter_async_context(child("benchmarks.fetch_node", *start, log=log))
                    for start in several[:3]
                ]
                for several in (starts, plain_starts)
            ]
            seeders = [
                await stack.enter_async_context(
                    child("benchmarks.fetch_torrent", "seed", str(blobs[0]), log=folder / "torrent.log")
                )
                for _ in range(3)
            ]
            # The first blob is with all three providers, the second with one.
            ways = {
                "ours": Ours(starts[3], sites[3].data_dir / "blobs", nodes[:1], log),
                "ours_3": Ours(starts[3], sites[3].data_dir / "blobs", nodes, log),
                "plain": Ours(plain_starts[3], folder / "plain3", plain[:1], log),
                "plain_3": Ours(plain_starts[3], folder / "plain3", plain, log),
            }
            digests = {name: await way.share(blobs[0 if name.endswith("_3") else 1]) for name, way in ways.items()}
            for number in range(-1, RUNS):  # the first, for warming up, does not count
                took = {}
                for name, way in ways.items():
                    os.sync()
                    took[name] = await way.fetch(digests[name])
                for name, tls in (("nginx", True), ("nginx_plain", False)):
                    os.sync()
                    took[name] = await asyncio.to_thread(nginx.fetch, "blob1", tls=tls)
                for name, some in (("libtorrent", seeders[:1]), ("libtorrent_3", seeders)):
                    os.sync()
                    took[name] = await torrent(folder, blobs[0], some)
                print(
                    number,
                    {
                        name: f"{SIZE / seconds / 1e6:.0f} MB/s {cpu / SIZE * 1e9:.1f} s/GB"
                        for name, (seconds, cpu) in took.items()
                    },
                    file=sys.stderr,
                )
                if number >= 0:
                    for name, (seconds, cpu) in took.items():
                        series[name].add(seconds, cpu)
            async with child("benchmarks.fetch_node", *starts[3], log=log) as getter:
                weights = await memory(folder, getter, nodes[0])
    report(series, weights)


def report(series: dict[str, Series], weights: dict[str, float]) -> None:
    def rate(ours: str, reference: str) -> float:
        return median_ratio(series[ours].rate, series[reference].rate)

    def cpu(ours: str, reference: str) -> float:
        return median_ratio(series[ours].cpu, series[reference].cpu)

    finish(
        "fetch",
        runs=RUNS,
        ours={name: s.shown() for name, s in series.items() if name.startswith(("ours", "plain"))}
        | {"memory_mb_for_2_gb": weights},
        reference={name: s.shown() for name, s in series.items() if name.startswith(("nginx", "lib"))},
        ratios={
            "nginx": rate("ours", "nginx"),
            "libtorrent": rate("ours", "libtorrent"),
            "cpu_libtorrent": cpu("ours", "libtorrent"),
            "nginx_3": rate("ours_3", "nginx"),
            "libtorrent_3": rate("ours_3", "libtorrent_3"),
            "cpu_libtorrent_3": cpu("ours_3", "libtorrent_3"),
            "plain_nginx": rate("plain", "nginx_plain"),
            "plain_nginx_3": rate("plain_3", "nginx_plain"),
            "plain_libtorrent": rate("plain", "libtorrent"),
            "plain_libtorrent_3": rate("plain_3", "libtorrent_3"),
            "plain_cpu_libtorrent": cpu("plain", "libtorrent"),
            "memory_mb": max(weights.values()),
        },
    )


if __name__ == "__main__":
    asyncio.run(main())
