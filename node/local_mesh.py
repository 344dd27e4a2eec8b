"""Several sites on one machine, each a `cornerstore up` of its own: for the demo, the benchmarks and the tests.

Everything goes through the commands that an operator would type; `enter` puts them before each command of a site, so
that it may live in a network namespace (`ip netns exec NAME`).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from node.config import NodeConfig
from node.running import Running, running_node_of
from protocol.peers import Role
from protocol.problems import Problem, Unavailable

READY_S = 30.0
STOP_S = 15.0
BASE_IMAGE = "cornerstore/python:3.11"
ALIASES = {"python:3.*": BASE_IMAGE}


@dataclass
class Site:
    """One site. `memory_mb` is what its agent offers; `host` the address it binds."""

    name: str
    region: str
    data_dir: Path
    roles: tuple[Role, ...] = ("controller", "agent", "store")
    memory_mb: int = 1024
    host: str = "127.0.0.1"
    enter: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> Running:
        """Addresses of the running node. Raises Unavailable while it does not run."""
        running = running_node_of(self.data_dir)
        if running is None:
            raise Unavailable(f"site {self.name} does not run")
        return running

    @property
    def log(self) -> Path:
        return self.data_dir / "node.log"

    async def cornerstore(self, *arguments: str) -> str:
        """Run one command for this site and return what it prints. Raises Problem with what it said to stderr."""
        process = await asyncio.create_subprocess_exec(
            *self._argv(*arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self.environment},
        )
        out, error = await process.communicate()
        if process.returncode:
            raise Problem(f"cornerstore {' '.join(arguments[:4])} failed: {error.decode(errors='replace').strip()}")
        return out.decode()

    async def found(self, mesh: str) -> None:
        """`bootstrap init`."""
        await self.cornerstore("bootstrap", "init", "--mesh", mesh, "--region", self.region, *self._role_options())
        self._settle()

    async def invite(self, guest: Site) -> str:
        """A token for `guest`, made by this running site."""
        asked = await self.cornerstore("--json", "bootstrap", "invite", "--region", guest.region)
        return str(json.loads(asked)["token"])

    async def join(self, token: str) -> None:
        """`bootstrap join`."""
        await self.cornerstore("bootstrap", "join", token, *self._role_options())
        self._settle()

    async def start(self) -> None:
        """`up`, until it says that it runs. Raises Unavailable with the end of its log if it ends or hangs."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._argv("up"),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )
        try:
            async with asyncio.timeout(READY_S):
                while running_node_of(self.data_dir) is None:
                    if self.process.returncode is not None:
                        raise Unavailable(f"site {self.name} ended:\n{self.log_tail()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Unavailable(f"site {self.name} is not up after {READY_S:.0f} s:\n{self.log_tail()}") from None

    async def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """End the node and wait for it; after `STOP_S` it is killed."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(signum)
        try:
            await asyncio.wait_for(self.process.wait(), STOP_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _role_options(self) -> Sequence[str]:
        return [word for role in self.roles for word in ("--role", role)]

    def _argv(self, *arguments: str) -> Sequence[str]:
        return (*self.enter, sys.executable, "-m", "node", "--data-dir", str(self.data_dir), *arguments)

    def _settle(self) -> None:
        """What an operator would write into config.toml for this site."""
        config = NodeConfig.load(self.data_dir)
        docker = msgspec.structs.replace(config.agent.docker, base_image_aliases=ALIASES)
        msgspec.structs.replace(
            config,
            site=self.name,
            roles=self.roles,
            network=msgspec.structs.replace(config.network, host=self.host),
            agent=msgspec.structs.replace(config.agent, memory_mb=self.memory_mb, docker=docker),
        ).save(self.data_dir)


@asynccontextmanager
async def up(site: Site) -> AsyncIterator[Site]:
    """The site runs for the time of the block."""
    try:
        await site.start()
        yield site
    finally:
        await site.stop()
