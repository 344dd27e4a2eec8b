"""The stage: an edge site with an engine of its own, stores near and far, two phones, on links as `links` says."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from benchmarks.paper.archives import base_of, lean, variant
from benchmarks.paper.cases import Case, word_count
from benchmarks.paper.claims import CLOUD
from benchmarks.paper.links import LINES, Measured, limit_lan, measure
from benchmarks.paper.phone import Order, Phone, Report, running_phone
from benchmarks.paper.runs import Link, Mode, Run, Store
from csar.limits import DEFAULT_LIMITS
from csar.parser import describe_sync
from node.cli.publisher import digest_and_size, publisher_key, signed_archive
from node.config import NodeConfig
from node.local_mesh import BASE_IMAGE, Site, up
from tests.multihost.testbed import REPOSITORY, Host, TestBed, running_testbed
from tests.waiting import until

LAYOUT = {
    "wifi": ["phone"],
    "4g": ["phone"],
    "edge": ["node", "store"],
    "town": ["node"],
    "ireland": ["node"],
    "us-east": ["node"],
}
SHARES_CHUNKS = 128 << 10
"""Bytes of an archive from which on two variants of it may share chunks."""
ANNOUNCED_S = 1.0
"""A node announces what it fetched within this time."""
MEMORY_MB = 4096
BASE_WITH_WHEELS = "cornerstore/paper-base"


@dataclass(frozen=True)
class Variant:
    """An archive, and the service record that its developer signed before: signing is no part of any run."""

    archive: Path
    digest: str
    record: bytes


@dataclass
class Stage:
    """`phones` by link. `hands` are clients beside the nodes, who publish there and see to things between runs.

    `tiny`: a service for requests that are not measured.
    """

    bed: TestBed
    engine: str
    sites: Mapping[Store, Site]
    phones: Mapping[Link, Phone]
    hands: Mapping[Store, Phone]
    links: Mapping[str, Measured]
    archives: Mapping[str, Path]
    tiny: Case

    @property
    def edge(self) -> Site:
        return self.sites["colocated"]

    @asynccontextmanager
    async def far_sites(self) -> AsyncIterator[None]:
        """The sites of the town, Ireland and US East belong to the mesh for the time of the block.

        Not before they are needed: what is published is acknowledged by several nodes, wherever they are.
        """
        async with AsyncExitStack() as stack:
            for store in ("nearby", *CLOUD):
                await stack.enter_async_context(joined(self.sites[store], self.edge))
            yield

    async def publish(self, variant: Variant, store: Store) -> None:
        """Publish it there, and wait until the edge's controller finds it; nearby: see `runs.Store`."""
        await self._at("us-east" if store == "nearby" else store, "publish", variant)
        if store == "nearby":
            await self._at("nearby", "fetch", variant)
            await asyncio.sleep(ANNOUNCED_S)
        await until(lambda: self._finds(variant), timeout_s=20, every_s=0.05)

    async def _at(self, store: Store, do: Literal["publish", "fetch", "show"], variant: Variant) -> None:
        order = Order(
            do=do,
            controller=self.sites[store].running.rest,
            archive=str(variant.archive),
            record=variant.record,
            service=variant.digest,
            reply=str(self.bed.folder / "copy"),
        )
        await self.hands[store].do(order)

    async def _finds(self, variant: Variant) -> bool:
        try:
            await self._at("colocated", "show", variant)
        except RuntimeError:
            return False
        return True

    async def forget_content(self) -> None:
        """The edge loses its archives: it shares no chunk with what comes next. Images stay in the engine."""
        await self.edge.stop()
        await asyncio.to_thread(shutil.rmtree, self.edge.data_dir / "blobs")
        await self.edge.start()
        await until(self._agent_linked, timeout_s=20, every_s=0.2)

    async def _agent_linked(self) -> bool:
        said = await self.edge.cornerstore("--json", "--controller", self.edge.running.rest, "agents")
        return len(json.loads(said)) == 1

    def variant(self, case: Case) -> Variant:
        """The case's archive as nobody has it yet."""
        target = self.bed.folder / f"{case.name}-{secrets.token_hex(4)}.csar"
        variant(self.archives[case.name], target)
        signed = signed_archive(target, describe_sync(target, DEFAULT_LIMITS), publisher_key(self.bed.folder))
        return Variant(target, digest_and_size(target)[0], signed.envelope)

    def size(self, case: Case) -> int:
        return self.archives[case.name].stat().st_size

    async def run(self, case: Case, order: Order, mode: Mode, link: Link, store: Store) -> tuple[Run, Report]:
        """Carry out the order with the phone on `link`; raises RuntimeError if the service's reply is wrong."""
        report = await self.call(self.phones[link], case, replace(order, controller=self.edge.running.rest))
        expected = "warm" if mode == "warm" else "cold"
        if report.start != expected:
            raise RuntimeError(f"a {report.start} start was measured as {mode}")
        run = Run(
            service=case.name, mode=mode, link=link, store=store, phases=report.phases, edge_ms=dict(report.edge_ms)
        )
        return run, report

    async def call(self, phone: Phone, case: Case, order: Order) -> Report:
        reply = self.bed.folder / "reply"
        report = await phone.do(replace(order, path=case.path, body=str(self.body_of(case)), reply=str(reply)))
        case.check(reply.read_bytes())
        return report

    def body_of(self, case: Case) -> Path:
        """The file that is sent."""
        body = self.bed.folder / f"{case.name}.input"
        if not body.exists():
            body.write_bytes(case.body)
        return body

    async def remove(self, link: Link, report: Report) -> None:
        order = Order(do="remove", controller=self.edge.running.rest, instance=report.instance, token=report.token)
        await self.phones[link].do(order)


@asynccontextmanager
async def joined(site: Site, edge: Site) -> AsyncIterator[None]:
    await site.join(await edge.invite(site))
    async with up(site):
        yield


@asynccontextmanager
async def running_stage(cases: Sequence[Case]) -> AsyncIterator[Stage]:
    """The edge and the store of its LAN run; `far_sites` adds the others."""
    async with running_testbed(LAYOUT, uplinks=LINES) as bed, AsyncExitStack() as stack:
        hosts: dict[Store, Host] = {
            "colocated": bed.host("edge", "node"),
            "lan": bed.host("edge", "store"),
            "nearby": bed.host("town", "node"),
            "ireland": bed.host("ireland", "node"),
            "us-east": bed.host("us-east", "node"),
        }
        engine = await _engine(bed, hosts["colocated"])
        tiny = word_count()
        archives = {case.name: bed.folder / f"{case.name}.csar" for case in (tiny, *cases)}
        for case in (tiny, *cases):
            await asyncio.to_thread(lean, case.packed, archives[case.name])
        aliases = await _base_images(bed, hosts["colocated"], engine, cases)
        sites = {store: _site(bed, host, store, engine) for store, host in hosts.items()}
        for store in ("colocated", "lan"):
            await limit_lan(bed, hosts[store])
        links = await _measured_links(bed)
        edge = sites["colocated"]
        await edge.found("paper")
        _configure(edge, aliases)
        await stack.enter_async_context(up(edge))
        await stack.enter_async_context(joined(sites["lan"], edge))
        phones: dict[Link, Phone] = {
            link: await stack.enter_async_context(running_phone(bed.host(link, "phone"))) for link in ("wifi", "4g")
        }
        hands: dict[Store, Phone] = {
            store: await stack.enter_async_context(running_phone(host)) for store, host in hosts.items()
        }
        there = Stage(bed, engine, sites, phones, hands, links, archives, tiny)
        await until(there._agent_linked, timeout_s=20, every_s=0.2)
        yield there


async def _engine(bed: TestBed, host: Host) -> str:
    """An engine in the host's namespace that has the base image, and reaches nothing outside."""
    image = bed.folder / "base.tar"
    await bed.run(host, sys.executable, str(REPOSITORY / "scripts/base-image"), "--save", str(image), timeout_s=120)
    engine = await bed.start_engine(host)
    await bed.run(host, "docker", "-H", engine, "load", "-i", str(image), timeout_s=120)
    image.unlink()
    return engine


async def _base_images(bed: TestBed, host: Host, engine: str, cases: Sequence[Case]) -> dict[str, str]:
    """Aliases of the images that have what the lean archives lack. One is enough: all photo services have one lock."""
    for case in cases:
        folder = bed.folder / "base"
        if (replaced := await asyncio.to_thread(base_of, case.packed, folder, BASE_IMAGE)) is not None:
            await bed.run(
                host, "docker", "-H", engine, "build", "-q", "-t", BASE_WITH_WHEELS, str(folder), timeout_s=300
            )
            await asyncio.to_thread(shutil.rmtree, folder)
            return {replaced: BASE_WITH_WHEELS}
    return {}


def _site(bed: TestBed, host: Host, store: Store, engine: str) -> Site:
    """Only the edge runs services."""
    runs_services = store == "colocated"
    return Site(
        store,
        f"eu/{store}",
        bed.folder / store,
        roles=("controller", "agent", "store") if runs_services else ("controller", "store"),
        memory_mb=MEMORY_MB,
        host="",
        enter=("nsenter", f"--net={host.path}"),
        environment={"DOCKER_HOST": engine} if runs_services else {},
    )


def _configure(site: Site, aliases: Mapping[str, str]) -> None:
    """Any number of starts from one client, and what a Dockerfile's FROM is read as."""
    config = NodeConfig.load(site.data_dir)
    docker = replace(config.agent.docker, base_image_aliases={**config.agent.docker.base_image_aliases, **aliases})
    agent, controller = replace(config.agent, docker=docker), replace(config.controller, starts_per_client_s=0.0)
    replace(config, agent=agent, controller=controller).save(site.data_dir)


async def _measured_links(bed: TestBed) -> dict[str, Measured]:
    """Of an idle stage, one after the other."""
    edge = bed.host("edge", "node")
    log = bed.folder / "probe.log"
    server = await bed.popen(edge, [sys.executable, "-m", "benchmarks.paper.links"], log=log)
    await until(lambda: "ready" in log.read_text())
    ends = {
        "wifi": bed.host("wifi", "phone"),
        "4g": bed.host("4g", "phone"),
        "lan": bed.host("edge", "store"),
        **{name: bed.host(name, "node") for name in ("town", "ireland", "us-east")},
    }
    measured = {name: await measure(bed, name, host, edge) for name, host in ends.items()}
    await bed.stop(server)
    return measured
