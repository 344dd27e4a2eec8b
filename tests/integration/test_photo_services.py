"""The photo services in the container that an agent makes of their archives, while the site is cut off."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

import csar
from agent.docker.images import BuildSettings
from tests.agent_stage import Shelf, an_agent, start_command
from tests.docker_stage import clean_docker
from tests.samples import packages_or_skip, photo
from tests.scripts import pack_service
from tests.service_stage import SERVICES, Answer, call

pytestmark = pytest.mark.docker


@asynccontextmanager
async def started(service: str, folder: Path, **start: object) -> AsyncIterator[int]:
    """The port of the service: packed, built without a network (unless the engine knows it), ready by its own word."""
    with packages_or_skip():
        source = await asyncio.to_thread(pack_service.assemble, SERVICES / service, folder / "source")
    archive, shelf = folder / "service.csar", Shelf(folder)
    digest = shelf.hold(archive, await asyncio.to_thread(csar.pack, source, archive))
    node = os.urandom(20).hex()
    async with (
        clean_docker(node, build=BuildSettings(network="none")) as runtime,
        an_agent(folder, shelf, runtime, node=node, alive_port=5001) as agent,
    ):
        running = await agent.runner.start(start_command("photos", digest, deadline_s=110.0, **start))
        yield running.report.ports[0].port


async def detect(port: int, body: bytes) -> Answer:
    return await asyncio.to_thread(call, port, "POST", "/detect", body, Accept="application/json")


def grey(mode: str, side: int, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side), "grey").save(file, kind, **options)
    return file.getvalue()


def largest() -> Iterator[bytes]:
    """As many pixels as are taken, in the forms that need most memory."""
    yield grey("RGBA", 3500, "PNG")
    yield grey("RGB", 5000, "JPEG", progressive=True, subsampling=0)


@pytest.mark.parametrize(
    ("service", "start", "name", "expected"),
    [
        ("face_detection", {}, "astronaut.png", ["face"]),
        ("object_detection", {"variant": "accurate"}, "dog.jpg", ["bicycle", "car", "dog"]),
    ],
)
async def test_a_site_without_internet_builds_it_and_it_keeps_within_its_memory(
    base_image: str,
    tmp_path: Path,
    service: str,
    start: dict[str, str],
    name: str,
    expected: list[str],
) -> None:
    async with started(service, tmp_path, **start) as port:
        for body in largest():
            crowd = await asyncio.gather(*(detect(port, body) for _ in range(2)))
            assert [(answer.status, answer.json["detections"]) for answer in crowd] == [(200, [])] * 2
        assert (await detect(port, b"a text")).status == 415
        answer = await detect(port, photo(name))
        assert sorted(found["label"] for found in answer.json["detections"]) == expected
        assert (await asyncio.to_thread(call, port, "GET", "/")).status == 200
