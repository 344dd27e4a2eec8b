"""The test bed is what it claims to be; tests of the mesh rely on it."""

from __future__ import annotations

import shutil
import sys
from asyncio.subprocess import Process
from pathlib import Path

import pytest

from tests.multihost.cable import Line
from tests.multihost.testbed import Host, TestBed, running_testbed
from tests.scripts import with_docker
from tests.waiting import until

pytestmark = pytest.mark.netns
TWO_SITES = {"a": ["controller", "phone"], "b": ["controller", "phone"]}
HEAR_ONE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5353))
group = socket.inet_aton("224.0.0.251") + socket.inet_aton(sys.argv[1])
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
print("listening", flush=True)
print("heard", s.recv(100).decode(), flush=True)
"""
SAY = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
s.sendto(sys.argv[2].encode(), ("224.0.0.251", 5353))
"""


async def listen(bed: TestBed, host: Host, log: Path) -> None:
    await bed.popen(host, [sys.executable, "-c", HEAR_ONE, host.address], log=log)
    await until(lambda: "listening" in log.read_text())


async def say(bed: TestBed, host: Host, text: str) -> None:
    await bed.run(host, sys.executable, "-c", SAY, host.address, text)


async def test_hosts_reach_each_other_inside_a_site_and_across() -> None:
    async with running_testbed(TWO_SITES) as bed:
        assert await bed.ping(bed.host("a", "phone"), bed.host("a", "controller"))
        assert await bed.ping(bed.host("a", "phone"), bed.host("b", "controller"))


async def test_a_cut_site_is_whole_inside_alone_outside_and_comes_back() -> None:
    async with running_testbed({**TWO_SITES, "c": ["phone"]}) as bed:
        await bed.cut_wan("a")
        assert not await bed.ping(bed.host("a", "phone"), bed.host("b", "phone"))
        assert not await bed.ping(bed.host("b", "phone"), bed.host("a", "phone"))
        assert await bed.ping(bed.host("a", "phone"), bed.host("a", "controller"))
        assert await bed.ping(bed.host("b", "phone"), bed.host("c", "phone"))
        await bed.heal("a")
        assert await bed.ping(bed.host("a", "phone"), bed.host("b", "phone"))


async def test_multicast_is_heard_in_its_site_only(tmp_path: Path) -> None:
    async with running_testbed(TWO_SITES) as bed:
        logs = {site: tmp_path / site for site in TWO_SITES}
        for site, log in logs.items():
            await listen(bed, bed.host(site, "phone"), log)
        await say(bed, bed.host("a", "controller"), "a")
        await until(lambda: "heard a" in logs["a"].read_text())
        await say(bed, bed.host("b", "controller"), "b")
        # The first thing b hears is its own: what a said before did not arrive.
        await until(lambda: "heard b" in logs["b"].read_text())


async def test_leaving_ends_processes_and_namespaces_even_after_a_failure(tmp_path: Path) -> None:
    log = tmp_path / "log"
    bed: TestBed | None = None
    process: Process | None = None
    try:
        async with running_testbed(TWO_SITES) as bed:
            nested = ["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"]
            process = await bed.popen(bed.host("a", "phone"), nested, log=log)
            grandchild = await until(lambda: log.read_text().strip())
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert bed is not None
        assert process is not None
    assert process.returncode is not None
    assert not bed.host("a", "phone").path.exists()
    assert not bed.folder.exists()
    stat = Path(f"/proc/{grandchild}/stat")
    await until(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")


@pytest.mark.docker
async def test_a_host_can_have_a_docker_engine_of_its_own() -> None:
    assert shutil.which("dockerd") is not None
    async with running_testbed(TWO_SITES) as bed:
        agent = bed.host("b", "controller")
        url = await bed.start_engine(agent)
        assert with_docker.answers(url)
        assert "docker0" in await bed.run(agent, "ip", "link")
        assert await bed.ping(bed.host("a", "phone"), agent)
        await bed.stop_engine(agent)
        assert not with_docker.answers(url)
    assert str(bed.folder) not in Path("/proc/mounts").read_text()


async def test_an_uplink_has_the_delay_it_was_given_both_ways() -> None:
    async with running_testbed(TWO_SITES, uplinks={"a": Line(delay_ms=20)}) as bed:
        phone, there = bed.host("a", "phone"), bed.host("b", "phone")
        assert await bed.ping(phone, there)  # addresses are resolved
        said = await bed.run(phone, "ping", "-n", "-c", "5", "-i", "0.05", "-W", "2", there.address)
        fastest = float(said.split("= ")[-1].split("/")[0])
        assert 40 <= fastest < 60, said
