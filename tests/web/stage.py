"""A phone before a region: Chromium as a touch screen of 390 x 844, a real controller, services that tests play."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page, async_playwright, expect

from dht.tasks import OwnedTasks
from node.config import NodeConfig
from node.page import page_routes
from node.web import bind, serving
from protocol.instances import PortBinding
from region_controller import client_routes
from tests.fake_agent import FakeAgent
from tests.one_region import Site, node_of, running_site

CHROMIUM = shutil.which("chromium") or "chromium"
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
    "locale": "en-GB",
}
QUIET = ("--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update")
"""Chromium asks for nothing but the page."""
DOG_AND_BICYCLE = {
    "width": 640,
    "height": 480,
    "detections": [
        {"label": "dog", "confidence": 0.87, "box": [80, 120, 200, 300]},
        {"label": "bicycle", "confidence": 0.61, "box": [240, 60, 340, 330]},
    ],
}

PATIENCE_MS = 20_000
"""A machine that runs other tests beside this one is slow."""
expect.set_options(timeout=PATIENCE_MS)

# --- the phone --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running_browser(*options: str, executable: str = CHROMIUM) -> AsyncIterator[Browser]:
    """Headless; without a sandbox of its own where the tests run as root."""
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=[*QUIET, *sandbox, *options])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def a_phone(browser: Browser, **settings: Any) -> AsyncIterator[Page]:
    """A fresh page. No script of it may fail, its policy must let all of it pass, and it asks one origin only."""
    context = await browser.new_context(**{**PHONE, **settings})
    page = await context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    faults: list[str] = []
    origins: set[str] = set()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
    page.on("request", lambda request: origins.add(request.url.split("/")[2]) if request.url[:4] == "http" else None)
    try:
        yield page
    finally:
        await context.close()
    assert not faults
    assert len(origins) <= 1, "the page works without anybody else"


def camera_file(folder: Path) -> Path:
    """What a fake camera sees, as Y4M: grey, brighter to the right."""
    width, height = 640, 480
    row = bytes(16 + x * 219 // width for x in range(width))
    frame = row * height + b"\x80" * (width * height // 2)
    path = folder / "camera.y4m"
    path.write_bytes(f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\n".encode() + (b"FRAME\n" + frame) * 2)
    return path


def png(width: int, height: int) -> bytes:
    """A grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x99" * width) * height, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# --- the region -------------------------------------------------------------------------------------------------------


@dataclass
class Service:
    """What runs in every instance: no idea of CORS. `reply` answers a request; `calls` are (path, media type, body)."""

    reply: Callable[[], web.Response]
    calls: list[tuple[str, str, bytes]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.calls.append((request.path, request.content_type, await request.read()))
        return self.reply()


@dataclass
class Region:
    """`site` is the real controller behind the page at `url`; `agent` starts nothing and says so at once."""

    site: Site
    agent: FakeAgent
    service: Service
    port: int = 0
    _listening: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def listen(self) -> None:
        """Serve phones: for the first time at any port, then always at the same one."""
        sock = bind("127.0.0.1", self.port, self.port)
        self.port = sock.getsockname()[1]
        config = NodeConfig(mesh="corner", region=self.site.controller.config.region)
        routes = [*client_routes(self.site.controller), *page_routes(config, self.url)]
        await self._listening.enter_async_context(serving(sock, routes, drain_s=0.1))

    async def go_away(self) -> None:
        await self._listening.aclose()


async def beat_forever(agent: FakeAgent) -> None:
    """However slow the machine is: a silent agent would be given up."""
    while True:
        await asyncio.sleep(1)
        await agent.beat()


@asynccontextmanager
async def a_region(folder: Path, **settings: Any) -> AsyncIterator[Region]:
    service = Service(lambda: web.json_response(DOG_AND_BICYCLE))
    app = web.Application(client_max_size=1 << 28)
    app.router.add_post("/{path:.*}", service.answer)
    agent = FakeAgent(node_of("agent"), "eu/de")
    async with TestServer(app, host="127.0.0.1") as server, running_site(folder, **settings) as site:
        agent.service = PortBinding(8080, server.port or 0, description="POST /see")
        region = Region(site, agent, service)
        async with agent.linked(site.peer), OwnedTasks() as tasks:
            tasks.run(beat_forever(agent), name="beat")
            await region.listen()
            try:
                yield region
            finally:
                agent.gate.set()
                await region.go_away()
                await asyncio.sleep(0)
