"""A phone with a camera in a site's LAN, its uplink cut: node, engine, service and browser are real, on two hosts."""

from __future__ import annotations

import asyncio
import io
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from playwright.async_api import Page, expect

import csar
from node.local_mesh import Site, up
from tests.local_sites import ask
from tests.multihost.testbed import Host, running_testbed
from tests.samples import packages_or_skip, photo
from tests.scripts import pack_service
from tests.waiting import until
from tests.web.stage import CHROMIUM, a_phone, running_browser

pytestmark = [pytest.mark.netns, pytest.mark.docker, pytest.mark.browser, pytest.mark.timeout(240)]

SERVICES = Path(__file__).parents[2] / "services"
BUILT_MS = 90_000
"""An engine that has nothing but the base image installs a hundred megabytes first."""


def browser_on(host: Host, folder: Path) -> str:
    """A Chromium that lives on the host."""
    script = folder / "chromium-there"
    script.write_text(f'#!/bin/sh\nexec nsenter --net={host.path} {CHROMIUM} "$@"\n')
    script.chmod(0o755)
    return str(script)


def camera_of(folder: Path, picture: bytes) -> tuple[str, ...]:
    """Chromium's options for a camera that sees this photo (a film of two frames, as Y4M), and is always allowed."""
    seen = Image.open(io.BytesIO(picture)).convert("YCbCr")
    half = seen.width // 2, seen.height // 2
    luma, *chroma = seen.split()
    frame = luma.tobytes() + b"".join(plane.resize(half).tobytes() for plane in chroma)
    film = folder / "camera.y4m"
    head = f"YUV4MPEG2 W{seen.width} H{seen.height} F10:1 Ip A1:1 C420jpeg\n"
    film.write_bytes(head.encode() + (b"FRAME\n" + frame) * 2)
    return (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    )


async def object_detection(folder: Path) -> Path:
    with packages_or_skip():
        source = await asyncio.to_thread(pack_service.assemble, SERVICES / "object_detection", folder / "source")
    archive = folder / "object_detection.csar"
    await asyncio.to_thread(csar.pack, source, archive)
    return archive


async def test_what_the_camera_sees_is_found_while_the_site_is_cut_off(
    base_image_archive: Path, tmp_path: Path
) -> None:
    picture, archive = photo("dog.jpg"), await object_detection(tmp_path)
    async with running_testbed({"a": ["node", "phone"]}) as bed:
        node, phone = bed.host("a", "node"), bed.host("a", "phone")
        engine = await bed.start_engine(node)
        subprocess.run(["docker", "-H", engine, "load", "-i", str(base_image_archive)], check=True, capture_output=True)
        enter = ("nsenter", f"--net={node.path}")
        site = Site("a", "eu/a", bed.folder / "a", host="", enter=enter, environment={"DOCKER_HOST": engine})
        await site.found("corner")
        async with up(site):
            await ask(site, "publish", str(archive))
            await until(lambda: _offers_docker(site))
            await bed.cut_wan("a")
            url = f"http://{site.running.rest.rpartition('/')[2]}/"
            assert node.address in url
            camera = camera_of(tmp_path, picture)
            # Browsers give cameras to secure origins only; here, this stands for HTTPS.
            secure = f"--unsafely-treat-insecure-origin-as-secure={url[:-1]}"
            async with (
                running_browser(*camera, secure, executable=browser_on(phone, tmp_path)) as browser,
                a_phone(browser) as page,
            ):
                await page.goto(url)
                await page.get_by_text("Another phone does not find").tap()
                await expect(page.get_by_role("img", name=f"QR code of {url[:-1]}")).to_be_visible()
                await look_around(page)
                assert {"dog", "bicycle"} <= set(await page.locator(".found li > span:nth-child(2)").all_inner_texts())
                await framed_where_it_stands(page)
                how = page.locator("#how")
                await expect(how).to_contain_text("Cold")
                await expect(how).to_contain_text("Accurate")
                await expect(how).to_contain_text(f"On {node.address} in eu/a")
                await expect(how).to_contain_text("Without the store it would have uploaded the service too: 100\xa0MB")
                await page.get_by_role("button", name="Stop it").tap()
                await expect(page.locator("#lease")).to_contain_text("The service is stopped")


async def look_around(page: Page) -> None:
    """From the front page to the result, with the live camera and the slower, better variant."""
    await page.get_by_role("link", name="Find objects in a photo").tap()
    await page.get_by_text("Accurate", exact=True).tap()
    await expect(page.get_by_role("radio", name="Accurate")).to_be_checked()
    await page.get_by_role("button", name="Take a photo").tap()
    await page.wait_for_function("() => document.querySelector('video').currentTime > 0.5")  # one looks, then shoots
    await page.get_by_role("button", name="Take it").tap()
    await expect(page.locator(".steps .now")).to_be_visible()
    await expect(page.get_by_role("heading", name="things found")).to_be_visible(timeout=BUILT_MS)


async def framed_where_it_stands(page: Page) -> None:
    """The dog is in the lower left of darknet's photo."""
    picture = await page.locator(".framed img").bounding_box()
    dog = await page.locator(".frame", has_text="dog").bounding_box()
    assert picture is not None
    assert dog is not None
    assert dog["x"] < picture["x"] + picture["width"] / 4
    assert dog["y"] > picture["y"] + picture["height"] / 3
    assert dog["x"] + dog["width"] < picture["x"] + picture["width"] / 2


async def _offers_docker(site: Site) -> bool:
    return any("docker" in agent["runtimes"] for agent in await ask(site, "agents"))
