"""A small web service for tests that need containers: busybox's httpd, which is in the base image."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.docker.images import BuildSettings
from agent.docker.runtime import DockerConfig, DockerRuntime, running_docker
from tests.conftest import BASE_IMAGE
from tests.waiting import until

ALIASES = {"busybox:*": BASE_IMAGE, "python:3.*": BASE_IMAGE}
"""What an operator writes where no registry is in reach."""

DOCKERFILE = 'FROM busybox\nCOPY www /www\nCMD ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]\n'
WEB_FILES = {"src/Dockerfile": DOCKERFILE, "src/www/index.html": "hello"}


@asynccontextmanager
async def clean_docker(
    node: str, *, sandboxes: int = 0, build: BuildSettings | None = None
) -> AsyncIterator[DockerRuntime]:
    """A runtime whose containers and networks are gone afterwards; `sandboxes` wait when the block begins."""
    config = DockerConfig(base_image_aliases=ALIASES, sandboxes=sandboxes, build=build or BuildSettings())
    async with running_docker(config, node) as runtime:
        try:
            runtime.sandboxes.refill_soon()
            await until(lambda: runtime.sandboxes.waiting == sandboxes)
            yield runtime
        finally:
            for instance in await runtime.adopt():
                await runtime.remove(instance.instance)
