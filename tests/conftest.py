"""What tests need of the machine: a Docker engine (`-m docker`), root and network namespaces (`-m netns`), Chromium.

Where something is missing, a test is skipped with a reason that names it and the way to get it. With CI=true or
CORNERSTORE_REQUIRE_ALL=1 it fails instead, as does every other skip.

`make test` runs several tests at the same time (pytest-xdist). Those that share the engine or the loopback
interface's multicast (`-m lan`) run one after the other, and so do those with several hosts, each a crowd of processes,
and those with a browser, which they share; any other test must be safe beside any other.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
import structlog
from hypothesis import settings

from tests.scripts import with_docker

REPOSITORY = Path(__file__).parents[1]
BASE_IMAGE = "cornerstore/python:3.11"
LOCAL_ENGINE = "unix:///var/run/docker.sock"
NETWORK_TOOLS = ("ip", "nft", "nsenter", "ping")

# A plugin asks for the current event loop around synchronous tests. Without this line the policy would make one that
# nobody closes, and its warning would fail some innocent test.
asyncio.set_event_loop(None)

settings.register_profile("cornerstore", deadline=None, print_blob=True)  # the blob replays a failure anywhere
settings.load_profile("cornerstore")


def everything_required() -> bool:
    return os.environ.get("CI") == "true" or os.environ.get("CORNERSTORE_REQUIRE_ALL") == "1"


@functools.cache
def missing_engine() -> str:
    """Why there is no Docker engine; empty when one answers."""
    if reason := os.environ.get("CORNERSTORE_NO_DOCKER"):
        return reason
    if not with_docker.answers(os.environ.get("DOCKER_HOST", LOCAL_ENGINE)):
        return "no Docker engine answers: run scripts/with-docker .venv/bin/pytest ..."
    return ""


@functools.cache
def missing_netns() -> str:
    """Why network namespaces cannot be made; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root: run make test as root"
    if absent := [tool for tool in NETWORK_TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(absent)} not found: run make setup as root"
    return ""


@functools.cache
def missing_browser() -> str:
    return "" if shutil.which("chromium") else "Chromium is missing: run make setup as root"


NEEDS: dict[str, Callable[[], str]] = {"docker": missing_engine, "netns": missing_netns, "browser": missing_browser}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whom `--dist loadgroup` keeps in one worker process."""
    for item in items:
        for marker, group in (("netns", "hosts"), ("docker", "machine"), ("lan", "machine"), ("browser", "phone")):
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.xdist_group(group))
                break


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, missing in NEEDS.items():
        if item.get_closest_marker(marker) is not None and (reason := missing()):
            if everything_required():
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if everything_required() and skipped and exitstatus == 0:
        reporter.write_line(f"\n{len(skipped)} skipped, and here nothing may be", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The command line sets up logging for its process; no test inherits that from another."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def engine_url() -> str:
    """The engine's address, for DOCKER_HOST. Use it, `engine` and `base_image` with the marker `docker`."""
    return os.environ.get("DOCKER_HOST", LOCAL_ENGINE)


@pytest.fixture(scope="session")
def engine(engine_url: str) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=engine_url, timeout=60)
    yield client
    client.close()


@pytest.fixture(scope="session")
def base_image(engine_url: str) -> str:
    """The tag of the Python base image, loaded into the engine."""
    command = [sys.executable, str(REPOSITORY / "scripts/base-image")]
    subprocess.run(command, check=True, env={**os.environ, "DOCKER_HOST": engine_url})
    return BASE_IMAGE


@pytest.fixture(scope="session")
def base_image_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base image as a file for `docker load`, for engines that tests start themselves."""
    file = tmp_path_factory.mktemp("base-image") / "python.tar"
    subprocess.run([sys.executable, str(REPOSITORY / "scripts/base-image"), "--save", str(file)], check=True)
    return file
