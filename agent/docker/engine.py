"""Calls to the Docker Engine off the event loop, and the translation of what goes wrong there.

The `docker` package blocks; its calls run on threads of their own, so that a slow build or a hanging engine never
takes threads from the rest of the node. `docker.errors.APIError` reaches the other `docker_*` modules, which know what
was attempted; connection trouble and full disks are translated here.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import docker.errors
import requests
import structlog
import urllib3
from docker import APIClient
from docker.errors import StreamParseError
from docker.types import CancellableStream

from protocol.problems import DiskFull, EngineUnavailable, Problem

log = structlog.get_logger(__name__)

CALL_S = 30.0
KNOCK_S = 3
CALLS = 8
"""Ordinary calls at once."""

LONG_CALLS = 4
"""Builds, image loads and event streams at once; each holds a thread for as long as it takes."""

FIX = (
    "Install and start Docker (Debian: apt-get install docker.io && systemctl start docker), or set `url` under "
    "[agent.docker] in config.toml to its socket. Until then the node runs without containers."
)

DEFAULT_URL = "unix:///var/run/docker.sock"

Api = Any
"""A `docker.APIClient`, whose type stubs cover it only in part."""

T = TypeVar("T")


class DockerEngine:
    """One engine, which need not answer yet: it is dialled at the first call, and again until it is there."""

    def __init__(self, url: str, calls: ThreadPoolExecutor, long: ThreadPoolExecutor):
        self.url = url
        self.ends = 0
        """How often its event stream ended: with each, what was asked before may have been answered by a successor."""
        self._client: Api | None = None
        self._id: tuple[int, str] = (-1, "")
        self._dialling = threading.Lock()
        self._calls = calls
        self._long = long

    async def call(self, work: Callable[[Api], T]) -> T:
        """`work` on a thread. Not interruptible: a cancelled caller waits for its end, so nothing is half done.

        Raises EngineUnavailable, DiskFull, and docker.errors.APIError for the rest.
        """
        return await self._on(self._calls, lambda: work(self._connected()))

    async def ping(self) -> None:
        """Raises EngineUnavailable unless the engine answers."""
        await self.call(lambda api: _ping(self.url, api))

    async def identity(self) -> str:
        """The engine's own id, which it keeps for as long as its data. Raises EngineUnavailable."""
        ends, known = self._id
        if ends != self.ends:
            ends, known = self.ends, str((await self.call(lambda api: api.info()))["ID"])
            self._id = ends, known
        return known

    async def stayed(self, ends: int) -> None:
        """Raises EngineUnavailable unless one engine answers since `ends` was read, and goes on.

        One that ends closes its door first, then ends its containers, and may go on answering where it is connected.
        With systemd's socket a new connection is let in all the same, and waits for the successor.
        """
        await self.call(lambda api: _knock(self.url, api.api_version))
        if self.ends != ends:
            raise EngineUnavailable("the Docker engine was started anew meanwhile", fix="Ask again.")

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _connected(self) -> Api:
        """From a thread. Raises EngineUnavailable."""
        with self._dialling:
            if self._client is None:
                self._client = _connect(self.url)
            return self._client

    async def long_call(self, work: Callable[[], T], *, cancel: Callable[[], None]) -> T:
        """`work` on a thread for long work; `cancel` makes it end early when the caller is cancelled."""
        return await self._on(self._long, work, cancel)

    async def _on(self, pool: ThreadPoolExecutor, work: Callable[[], T], cancel: Callable[[], None] | None = None) -> T:
        job = pool.submit(work)
        future = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not job.cancel():  # the asyncio future could always be cancelled; only the job knows that it runs
                if cancel is not None:
                    cancel()
                await asyncio.wait({future})
                if not future.cancelled():
                    future.exception()  # it was cancelled: how it ended is nobody's concern
            raise
        except Exception as error:
            problem = translated(error)
            if problem is None:
                raise
            raise problem from error


class StreamingClient(APIClient):
    """A client for one long answer, a build's or the events'. `cut` ends it from another thread: closing the
    connection is the only way, and for a build it also ends the build."""

    response: requests.Response | None = None

    def _stream_helper(self, response: requests.Response, decode: bool = False) -> Any:
        self.response = response
        return super()._stream_helper(response, decode=decode)  # type: ignore[misc]

    def cut(self) -> None:
        if self.response is not None:
            try:
                CancellableStream(iter(()), self.response).close()
            except (AttributeError, OSError) as error:
                log.debug("stream-ended-by-itself", error=str(error))

    def close(self) -> None:
        if self.response is not None:
            self.response.close()
        super().close()


def translated(error: Exception) -> Problem | None:
    """The Problem of a failure that does not depend on what was attempted; None for others."""
    if isinstance(error, docker.errors.APIError):
        if "no space left on device" in str(error):
            return DiskFull("the container engine's disk is full", fix="Remove unused images: docker image prune -a.")
        return None
    # A long answer is read past `requests`: one that breaks off shows as what lies below, or as half a JSON object.
    if isinstance(error, requests.exceptions.RequestException | urllib3.exceptions.HTTPError | StreamParseError):
        return EngineUnavailable(f"the Docker engine does not answer: {_cause(error)}", fix=FIX)
    if type(error) is docker.errors.DockerException:
        return EngineUnavailable(f"no Docker engine answers: {_cause(error)}", fix=FIX)
    return None


def _cause(error: BaseException) -> str:
    """The innermost cause says most: `No such file or directory` rather than five layers around it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error)[:200] or type(error).__name__


@asynccontextmanager
async def engine_at(url: str | None) -> AsyncIterator[DockerEngine]:
    """`url` None: from DOCKER_HOST, or the default socket."""
    address = url or os.environ.get("DOCKER_HOST") or DEFAULT_URL
    with (
        ThreadPoolExecutor(CALLS, thread_name_prefix="docker") as calls,
        ThreadPoolExecutor(LONG_CALLS, thread_name_prefix="docker-long") as long,
    ):
        engine = DockerEngine(address, calls, long)
        try:
            yield engine
        finally:
            engine.close()


def _connect(url: str) -> Api:
    client: Api = None
    try:
        _probe(url)
        client = APIClient(base_url=url, version="auto", timeout=int(CALL_S), max_pool_size=CALLS)
        client.ping()
    except Exception as error:
        if client is not None:
            client.close()
        if isinstance(error, Problem):
            raise
        problem = translated(error) or EngineUnavailable(f"the Docker engine refuses: {_cause(error)}", fix=FIX)
        raise problem from error
    return client


def _ping(url: str, api: Api) -> None:
    _probe(url)
    api.ping()


def _knock(url: str, version: str) -> None:
    """One answer over a connection of its own."""
    _probe(url)
    with APIClient(base_url=url, version=version, timeout=KNOCK_S) as client:
        client.ping()


def _probe(url: str) -> None:
    """Connect once by hand: the package leaves a socket open when it finds nobody. Raises EngineUnavailable."""
    if not url.startswith("unix://"):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(url.removeprefix("unix://"))
        except OSError as error:
            raise EngineUnavailable(f"no Docker engine answers at {url}: {error.strerror}", fix=FIX) from error
