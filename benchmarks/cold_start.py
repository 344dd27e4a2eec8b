"""Cold start, from the request to the first answered byte, beside `docker run` of the same image until it answers.

Ours: `POST /v1/instances` at the controller, then `GET /` of the service until it answers, a new instance each time.
Reference: `docker run -d` of the same image, then `GET /` at the container's own address until it answers.

`minimal` (busybox httpd), `word_count`, `flask`: the image is present. `from_pause`: the Flask service is frozen, the
reference is its `docker run`. `from_archive`: nothing is present but a local CSAR with an image archive; the reference
is `docker load` and `docker run`. `thin_bytes`: the Flask service's image archive without the layers of a base image
that is present, over the whole one.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import aiohttp

from benchmarks.cold_start_services import archived, flask, minimal
from benchmarks.containers import PATIENCE_S, docker, measured, until_answered
from benchmarks.one_site import one_site
from benchmarks.report import finish, median_ratio, summary
from client.controller import ControllerClient
from csar import pack
from node.local_mesh import BASE_IMAGE, Site
from protocol.instances import StartAnswer, StartRequest, State

RUNS = 6
ARCHIVE_RUNS = 3
PAUSE_AFTER_S = 0.4
SETTLE_S = 1.5
"""Between two measurements: what the one before left to be done (a sandbox to be made) is done."""

PHASES = ("resolve", "place", "fetch", "verify", "build", "start", "ready", "total")


class Bench:
    """The samples, by scenario, in ms; `phases` of our starts."""

    def __init__(self, site: Site, client: ControllerClient, session: aiohttp.ClientSession, folder: Path) -> None:
        self.site, self.client, self.session, self.folder = site, client, session, folder
        self.ours: dict[str, list[float]] = {}
        self.reference: dict[str, list[float]] = {}
        self.phases: dict[str, dict[str, list[float]]] = {}

    async def publish(self, folder: Path) -> None:
        await self.site.cornerstore("--controller", self.site.running.rest, "publish", str(folder))

    async def with_image(self, name: str, service: str, *, paused: bool = False) -> str:
        """Measure a service whose image is present, and from a pause too if asked. Returns the image."""
        first = await self.client.start(StartRequest(service=service))
        print(f"{name}, building the image: {first.timings_ms}", file=sys.stderr)
        await self.client.remove(first.instance, first.lease.token)
        image = f"cornerstore/svc:{first.service.digest.removeprefix('sha256:')[:32]}"
        for _ in range(RUNS):
            await asyncio.sleep(SETTLE_S)
            answer = await self.measure(name, service)
            if paused:
                await self.measure_paused(service, answer)
            await self.client.remove(answer.instance, answer.lease.token)
            await asyncio.sleep(SETTLE_S)
            await self.measure_docker_run(name, image)
            self.tell(name)
        if paused:
            self.reference["from_pause"] = self.reference[name]
        return image

    async def from_archive(self, packed: Path, image: str) -> None:
        """`packed` is `docker save` of `image`, of which nothing is in the engine."""
        for run in range(ARCHIVE_RUNS):
            service = f"archived{run}"
            await self.publish(archived(self.folder / service, service, packed))
            await asyncio.sleep(SETTLE_S)
            answer = await self.measure("from_archive", service)
            await self.client.remove(answer.instance, answer.lease.token)
            docker("rmi", f"cornerstore/svc:{answer.service.digest.removeprefix('sha256:')[:32]}")
            await asyncio.sleep(SETTLE_S)
            await self.measure_docker_run("from_archive", image, load=packed)
            docker("rmi", image)
            self.tell("from_archive")

    async def measure(self, name: str, service: str) -> StartAnswer:
        answers: list[StartAnswer] = []

        async def start() -> None:
            answer = await self.client.start(StartRequest(service=service, wait_s=PATIENCE_S))
            await until_answered(self.session, f"http://{answer.host}:{answer.port}/")
            answers.append(answer)

        self.ours.setdefault(name, []).append(await measured(start))
        if answers[0].start != "cold":
            raise RuntimeError(f"a {answers[0].start} start was measured")
        for phase in PHASES:
            self.phases.setdefault(name, {}).setdefault(phase, []).append(answers[0].timings_ms.get(phase, 0.0))
        return answers[0]

    async def measure_paused(self, service: str, running: StartAnswer) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (await self.client.instance(running.instance)).state != State.PAUSED:
                await asyncio.sleep(0.05)
        await asyncio.sleep(SETTLE_S / 4)

        async def wake() -> None:
            answer = await self.client.start(StartRequest(service=service))
            await until_answered(self.session, f"http://{answer.host}:{answer.port}/")
            if answer.instance != running.instance:
                raise RuntimeError("another instance was started")
            answers.append(answer)

        answers: list[StartAnswer] = []
        self.ours.setdefault("from_pause", []).append(await measured(wake))
        await self.client.remove(running.instance, answers[0].lease.token)  # this lease; the first one holds on

    async def measure_docker_run(self, name: str, image: str, *, load: Path | None = None) -> None:
        started: list[str] = []

        async def run() -> None:
            if load is not None:
                await asyncio.to_thread(docker, "load", "-i", str(load))
            command = ["run", "-d", "--init", "--memory", "64m", "-e", "name=reference", image]
            started.append(await asyncio.to_thread(docker, *command))
            address = await asyncio.to_thread(
                docker, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", started[0]
            )
            await until_answered(self.session, f"http://{address}:8080/")

        self.reference.setdefault(name, []).append(await measured(run))
        docker("rm", "-f", started[0])

    async def thin(self, image: str) -> float:
        """Start the service from a thin archive over the base that is present; its bytes over the whole one's."""
        sizes = []
        whole, base = self.folder / "whole.tar", self.folder / "base.tar"
        await asyncio.to_thread(docker, "save", "-o", str(whole), image)
        await asyncio.to_thread(docker, "save", "-o", str(base), BASE_IMAGE)
        for service, over in (("whole", None), ("thin", base)):
            packed = self.folder / f"{service}.csar"
            await asyncio.to_thread(pack, archived(self.folder / service, service, whole), packed, over=over)
            sizes.append(packed.stat().st_size)
            await self.publish(packed)
        answer = await self.client.start(StartRequest(service="thin", wait_s=PATIENCE_S))
        await until_answered(self.session, f"http://{answer.host}:{answer.port}/")
        await self.client.remove(answer.instance, answer.lease.token)
        print(f"whole and thin archive: {sizes} bytes", file=sys.stderr)
        return round(sizes[1] / sizes[0], 4)

    def tell(self, name: str) -> None:
        print(f"{name}: ours {self.ours[name][-1]:.0f} ms, docker {self.reference[name][-1]:.0f} ms", file=sys.stderr)


def flattened(image: str, folder: Path) -> tuple[Path, str]:
    """`docker save` of the image with all its files in one layer that the engine has nowhere else; and its name."""
    name = "cornerstore/bench:flat"
    container = docker("create", image)
    files, packed = folder / "files.tar", folder / "image.tar"
    try:
        docker("export", "-o", str(files), container)
        changes = ("-c", "EXPOSE 8080", "-c", 'CMD ["python3", "app.py"]')
        docker("import", *changes, str(files), name)
        docker("save", "-o", str(packed), name)
    finally:
        docker("rm", container)
        files.unlink(missing_ok=True)
        docker("rmi", name)
    return packed, name


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cornerstore-bench-") as scratch:
        folder = Path(scratch)
        async with one_site(pause_after_s=PAUSE_AFTER_S) as (site, client), aiohttp.ClientSession() as session:
            bench = Bench(site, client, session, folder)
            await bench.publish(minimal(folder / "minimal"))
            await bench.publish(flask(folder / "flask"))
            await bench.with_image("minimal", "minimal")
            await bench.with_image("word_count", "wc01")
            image = await bench.with_image("flask", "flask", paused=True)
            await bench.from_archive(*flattened(image, folder))
            thin_bytes = await bench.thin(image)
    finish(
        "cold-start",
        runs=RUNS,
        ours={
            "ms": {name: summary(samples) for name, samples in bench.ours.items()},
            "phases_ms": {
                name: {phase: summary(samples)["p50"] for phase, samples in phases.items()}
                for name, phases in bench.phases.items()
            },
        },
        reference={"docker_ms": {name: summary(samples) for name, samples in bench.reference.items()}},
        ratios={
            **{name: median_ratio(samples, bench.reference[name]) for name, samples in bench.ours.items()},
            "thin_bytes": thin_bytes,
        },
    )


if __name__ == "__main__":
    asyncio.run(main())
