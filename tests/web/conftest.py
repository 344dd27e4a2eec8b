"""One browser for the folder: its tests have one loop, and each a page of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.web.stage import camera_file, running_browser


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    """Its camera sees `camera_file`, and is always allowed."""
    camera = camera_file(tmp_path_factory.mktemp("camera"))
    async with running_browser(
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    ) as running:
        yield running
