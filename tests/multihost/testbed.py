"""Several sites on one machine, each in network namespaces behind a router of its own.

    site a: 10.1.0.0/24                                    site b: 10.2.0.0/24
    host .10 --+                                           +-- host .10
    host .11 --+-- br0 [gateway .1] --- [wan] --- [gateway .1] br0 --+-- host .11

Multicast stays on a site's bridge, as it does behind real routers; there is no address translation. Everything of one
bed has a random prefix, and leaving it ends every process in its namespaces and removes them, whatever the test did.
Needs root, iproute2, nftables and ping; `start_engine` also dockerd.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.multihost.cable import Line, inside
from tests.scripts import with_docker
from tests.waiting import until

REPOSITORY = Path(__file__).parents[2]
STOP_S = 10.0
FIRST_HOST = 10
_FORWARD = "add chain inet {0} forward {{ type filter hook forward priority -10; }}"


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface, `eth0`, and a default route through its gateway."""

    namespace: str
    address: str

    @property
    def path(self) -> Path:
        return Path("/run/netns") / self.namespace


@dataclass(frozen=True)
class Site:
    name: str
    number: int
    gateway: Host
    hosts: Mapping[str, Host]


class TestBed:
    """Made by `running_testbed()`. Processes and engines started here end with it."""

    __test__ = False  # not a test class, whatever pytest reads into the name

    def __init__(
        self, prefix: str, layout: Mapping[str, Sequence[str]], folder: Path, uplinks: Mapping[str, Line]
    ) -> None:
        self.folder = folder
        self.uplinks = uplinks
        self.wan = Host(f"{prefix}-wan", "100.64.0.1")
        self.sites = {name: _site(prefix, n, name, hosts) for n, (name, hosts) in enumerate(layout.items(), start=1)}
        self._processes: list[Process] = []
        self._engines: dict[str, Any] = {}

    def host(self, site: str, name: str) -> Host:
        return self.sites[site].hosts[name]

    # --- processes

    async def popen(
        self, host: Host, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> Process:
        """Starts `argv` on the host; its pid is the real one. It runs in the repository's folder.

        Output goes to `log`; `env` adds to our environment.
        """
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *_enter(host, argv),
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
                env={**os.environ, **(env or {})},
                cwd=REPOSITORY,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    async def stop(self, process: Process) -> int:
        """SIGTERM, after STOP_S SIGKILL. The exit status."""
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    async def run(self, host: Host, *argv: str, timeout_s: float = 30.0) -> str:
        """The output of a command on the host. Raises RuntimeError with it when the command fails."""
        async with asyncio.timeout(timeout_s):
            return await _run(*_enter(host, argv))

    # --- engines

    async def start_engine(self, host: Host) -> str:
        """The DOCKER_HOST of an engine of the host's own."""
        folder = self.folder / "engines" / host.namespace
        folder.mkdir(parents=True, exist_ok=True)
        engine = with_docker.Engine(folder, host.path)
        self._engines[host.namespace] = engine
        await asyncio.to_thread(engine.start)
        return str(engine.url)

    async def stop_engine(self, host: Host) -> None:
        await asyncio.to_thread(self._engines.pop(host.namespace).stop)

    # --- faults

    async def ping(self, source: Host, target: Host) -> bool:
        """Whether one echo comes back within a second."""
        try:
            await self.run(source, "ping", "-n", "-c", "1", "-W", "1", target.address)
        except RuntimeError:
            return False
        return True

    async def cut_wan(self, site: str) -> None:
        """Nothing passes between the site and the world; inside it all goes on. Packets vanish, as in a real cut."""
        rules = (
            f"add table inet cut; {_FORWARD.format('cut')}; "
            'add rule inet cut forward iifname "wan0" drop; add rule inet cut forward oifname "wan0" drop'
        )
        await self.run(self.sites[site].gateway, "nft", rules)

    async def heal(self, site: str) -> None:
        await self.run(self.sites[site].gateway, "nft", "delete table inet cut")

    async def part(self, one: str, other: str) -> None:
        """Nothing passes between the two sites; all else goes on."""
        nets = [f"10.{self.sites[name].number}.0.0/24" for name in (one, other)]
        drops = [f"add rule inet part forward ip saddr {a} ip daddr {b} drop" for a, b in (nets, nets[::-1])]
        await self.run(self.wan, "nft", "; ".join(["add table inet part", _FORWARD.format("part"), *drops]))

    async def reunite(self) -> None:
        """What was parted."""
        await self.run(self.wan, "nft", "delete table inet part")

    async def shut_out(self, site: str, host: str) -> None:
        """From outside of the site nobody opens a connection to the host, as behind a router without a port forward."""
        opening = f"iifname wan0 ip daddr {self.host(site, host).address} tcp flags & (syn | ack) == syn"
        rules = f"add table inet shut; {_FORWARD.format('shut')}; add rule inet shut forward {opening} drop"
        await self.run(self.sites[site].gateway, "nft", rules)

    async def let_in(self, site: str) -> None:
        await self.run(self.sites[site].gateway, "nft", "delete table inet shut")

    # --- building and removing

    @property
    def _everyone(self) -> list[Host]:
        inside = [host for site in self.sites.values() for host in (site.gateway, *site.hosts.values())]
        return [self.wan, *inside]

    async def build(self) -> None:
        await _ip(*(f"netns add {host.namespace}" for host in self._everyone))
        await _ip(*_links(self.wan, self.sites.values(), self.uplinks))
        for name, line in self.uplinks.items():
            await self._lay_cable(self.sites[name], line)
        for host, commands in _addresses(self.wan, self.sites.values()):
            await _ip(*commands, namespace=host.namespace)
        for router in (self.wan, *(site.gateway for site in self.sites.values())):
            await self.run(router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    async def _lay_cable(self, site: Site, line: Line) -> None:
        ends = f"{site.gateway.namespace}:wan0", f"{self.wan.namespace}:site{site.number}"
        terms = [f"--delay-ms={line.delay_ms}", f"--rate-mbit={line.rate_mbit}"]
        terms += [f"--loss={line.loss}", f"--queue-ms={line.queue_ms}"]
        if line.back_mbit is not None:
            terms.append(f"--back-mbit={line.back_mbit}")
        log = self.folder / f"cable-{site.name}.log"
        await self.popen(self.wan, [sys.executable, "-m", "tests.multihost.cable", *ends, *terms], log=log)
        await until(lambda: "ready" in log.read_text())

    async def remove(self) -> None:
        await asyncio.gather(*(self.stop(process) for process in self._processes))
        for engine in self._engines.values():
            await asyncio.to_thread(engine.stop)
        present = [host for host in self._everyone if host.path.exists()]
        for host in present:  # what the processes left behind: containers' shims, grandchildren
            for pid in (await _run("ip", "netns", "pids", host.namespace)).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        await _ip(*(f"netns del {host.namespace}" for host in present))


@asynccontextmanager
async def running_testbed(
    layout: Mapping[str, Sequence[str]], *, uplinks: Mapping[str, Line] | None = None
) -> AsyncIterator[TestBed]:
    """`{"a": ["node"], "b": ["controller", "agent", "phone"]}` makes two sites; `bed.host("b", "phone")` is a host.

    `uplinks` gives sites a line to the WAN with delay, rate and loss; the others' is as fast as the machine.
    """
    folder = Path(tempfile.mkdtemp(prefix="cornerstore-bed-"))
    bed = TestBed(f"cs{secrets.token_hex(2)}", layout, folder, uplinks or {})
    try:
        await bed.build()
        yield bed
    finally:
        await asyncio.shield(bed.remove())
        await asyncio.to_thread(shutil.rmtree, folder)


def socket_on(host: Host, info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket of the host's network, which is usable from here: for a connector of aiohttp (`socket_factory`)."""
    family, kind, protocol, _, _ = info
    with inside(host.path):
        return socket.socket(family, kind, protocol)


def _site(prefix: str, number: int, name: str, hosts: Sequence[str]) -> Site:
    def host(label: str, last: int) -> Host:
        return Host(f"{prefix}-{name}-{label}", f"10.{number}.0.{last}")

    inside = {label: host(label, last) for last, label in enumerate(hosts, start=FIRST_HOST)}
    return Site(name, number, host("gw", 1), inside)


def _links(wan: Host, sites: Iterable[Site], cabled: Container[str]) -> Iterator[str]:
    for site in sites:
        gateway = site.gateway.namespace
        if site.name not in cabled:
            yield f"link add wan0 netns {gateway} type veth peer name site{site.number} netns {wan.namespace}"
        for n, host in enumerate(site.hosts.values()):
            yield f"link add eth0 netns {host.namespace} type veth peer name port{n} netns {gateway}"


def _addresses(wan: Host, sites: Iterable[Site]) -> Iterator[tuple[Host, list[str]]]:
    """The `ip` commands to run inside each namespace. 100.64.<site>.0/30 joins a gateway to the WAN."""
    wan_commands = ["link set lo up"]
    for site in sites:
        n = site.number
        wan_commands += [
            f"addr add 100.64.{n}.1/30 dev site{n}",
            f"link set site{n} up",
            f"route add 10.{n}.0.0/24 via 100.64.{n}.2",
        ]
        ports = [f"link set port{i} master br0 up" for i in range(len(site.hosts))]
        yield (
            site.gateway,
            [
                "link set lo up",
                "link add br0 type bridge mcast_snooping 0",
                *ports,
                f"addr add {site.gateway.address}/24 dev br0",
                "link set br0 up",
                f"addr add 100.64.{n}.2/30 dev wan0",
                "link set wan0 up",
                f"route add default via 100.64.{n}.1",
            ],
        )
        for host in site.hosts.values():
            yield (
                host,
                [
                    "link set lo up",
                    f"addr add {host.address}/24 dev eth0",
                    "link set eth0 up",
                    f"route add default via {site.gateway.address}",
                ],
            )
    yield wan, wan_commands


def _enter(host: Host, argv: Sequence[str]) -> list[str]:
    return ["nsenter", f"--net={host.path}", *argv]


async def _ip(*commands: str, namespace: str | None = None) -> None:
    where = [] if namespace is None else ["-n", namespace]
    await _run("ip", *where, "-batch", "-", feed="\n".join(commands))


async def _run(*argv: str, feed: str = "") -> str:
    process = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE, stderr=STDOUT)
    try:
        output, _ = await process.communicate(feed.encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: status {process.returncode}: {output.decode(errors='replace').strip()}")
    return output.decode(errors="replace")
