"""A connection ends with the certificates that it began with, and is begun anew: real TLS on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.agent import Agent, AgentConfig, running_agent
from agent.link import PATH
from agent.memory_runtime import running_memory_runtime
from bootstrap import (
    Identity,
    client_context,
    create_mesh,
    peer_identity,
    peer_until,
    server_context,
    use_renewed,
    validity,
)
from bootstrap.certificates import issue
from bootstrap.identity import renew_identity, save_identity
from dht.peer_connections import Lives, PeerConnector
from dht.peer_http import PeerHttp
from node.web import bind, members_only, serving
from protocol import link
from protocol.instances import InstanceReport, State
from protocol.service import HARDENED
from region_controller.agent_link import AgentLinks
from region_controller.members import Members
from tests.agent_stage import SERVICE, Shelf, start_command
from tests.fake_agent import FakeAgent
from tests.waiting import until

HOUR_S, DAY_S = 3600, 86_400


class Clock:
    """The real one, set ahead."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Member:
    """A node with a certificate for an hour, and its calls of others."""

    def __init__(self, founder: Identity, data_dir: Path, clock: Clock) -> None:
        assert founder.root_key is not None
        self._founder, self._root_key = founder, founder.root_key
        key = Ed25519PrivateKey.generate()
        certificate = issue(
            key.public_key(),
            root=founder.root,
            root_key=self._root_key,
            region="eu",
            roles=["agent"],
            now=time.time(),
            validity_s=HOUR_S,
        )
        self.identity = save_identity(
            data_dir, key=key, certificate=certificate, root=founder.root, keyring=founder.keyring
        )
        self.tls = client_context(self.identity)
        self.lives = Lives(lambda tls: min(validity(self.identity.certificate)[1], peer_until(tls)), clock)

    def renew(self) -> None:
        certificate = issue(
            self.identity.node_key.public_key(),
            root=self._founder.root,
            root_key=self._root_key,
            region="eu",
            roles=["agent"],
            now=time.time(),
            validity_s=30 * DAY_S,
        )
        self.identity = renew_identity(self.identity, certificate=certificate, keyring=self.identity.keyring)
        use_renewed(self.tls, self.identity)

    @asynccontextmanager
    async def calls(self) -> AsyncIterator[PeerHttp]:
        async with aiohttp.ClientSession(connector=PeerConnector(self.lives)) as session:
            yield PeerHttp(session, self.tls, lives=self.lives)


class Controller:
    """Its end of the agent links behind its listener. `hellos`: of agents that it welcomed."""

    def __init__(self, founder: Identity, clock: Clock) -> None:
        self._founder = founder
        self.members = Members()
        self.hellos: list[Sequence[InstanceReport]] = []
        self.links = AgentLinks(
            self.members,
            region="eu",
            node=founder.node,
            mesh="corner",
            allowed=HARDENED,
            clock=clock,
            on_hello=lambda _node, reports, _gone: self.hellos.append(reports),
            on_change=lambda _node, _report: None,
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        sock = bind("127.0.0.1", None, 0)
        routes = [web.get(PATH, self.links.serve), web.get("/port", _port)]
        members = members_only(peer_identity, peer_until, open_paths=())
        async with serving(sock, routes, middlewares=[members], tls=server_context(self._founder), drain_s=0.1):
            yield f"127.0.0.1:{sock.getsockname()[1]}"
            await self.links.close()


async def _port(request: web.Request) -> web.Response:
    """Of the caller: tells its connections apart."""
    assert request.transport is not None
    return web.Response(text=str(request.transport.get_extra_info("peername")[1]))


class Locator:
    """`open` cleared: whoever wants to dial waits."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()

    async def locate(self) -> list[str]:
        self.asked += 1
        await self.open.wait()
        return [self._address]

    def failed(self, address: str) -> None:
        """It is dialled again."""


@pytest.fixture
def clock() -> Iterator[Clock]:
    return Clock()


@pytest.fixture
def founder(tmp_path: Path) -> Identity:
    return create_mesh(tmp_path / "founder", mesh="corner", region="eu", roles=["controller"], now=time.time())


@asynccontextmanager
async def linked_agent(tmp_path: Path, member: Member, locator: Locator) -> AsyncIterator[tuple[Agent, Shelf]]:
    shelf = Shelf(tmp_path)
    node = member.identity.node
    async with (
        member.calls() as http,
        running_memory_runtime(node) as runtime,
        running_agent(
            AgentConfig(host="127.0.0.1", database=tmp_path / "agent.sqlite", alive_port=0),
            node=node,
            mesh="corner",
            region="eu",
            runtimes=[runtime],
            content=shelf,
            describe=shelf.describe,
            http=http,
            locator=locator,
        ) as agent,
    ):
        yield agent, shelf


async def test_an_agent_s_link_ends_with_its_certificate_and_is_back_with_the_next(
    founder: Identity, tmp_path: Path, clock: Clock
) -> None:
    controller, member = Controller(founder, clock), Member(founder, tmp_path / "member", clock)
    clock.ahead_s = HOUR_S - 1.5
    async with (
        controller.serving() as address,
        linked_agent(tmp_path, member, locator := Locator(address)) as (agent, shelf),
    ):
        assert agent.link is not None
        await until(lambda: agent.link.controller)
        await agent.runner.start(start_command("one", shelf.put(SERVICE)))
        await until(lambda: not agent.link.controller)
        tried = locator.asked
        await until(lambda: locator.asked >= tried + 3)
        assert len(controller.hellos) == 1, "it dials, but is not let in for a moment each time"

        locator.open.clear()  # no connection begins with one certificate and goes on with the other
        asked = locator.asked
        await until(lambda: locator.asked > asked)
        member.renew()
        locator.open.set()
        await until(lambda: len(controller.hellos) == 2)
        assert [(r.instance, r.state) for r in controller.hellos[1]] == [("one", State.RUNNING)]
        await agent.runner.stop(link.Stop("c", "one"))

        def heard() -> bool:
            found = controller.members.find("one")
            return found is not None and found[1].state is State.STOPPED

        await until(heard)
        assert len(controller.hellos) == 2


async def test_a_controller_ends_a_link_whose_agent_does_not(founder: Identity, tmp_path: Path, clock: Clock) -> None:
    controller, member = Controller(founder, clock), Member(founder, tmp_path / "member", clock)
    hello = FakeAgent(member.identity.node, "eu", mesh="corner").hello
    async with (
        controller.serving() as address,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"https://{address}{PATH}", ssl=member.tls) as socket,
    ):
        await socket.send_bytes(link.encode(hello))
        assert isinstance(link.decode_from_controller(await socket.receive_bytes()), link.Welcome)
        await socket.send_bytes(link.encode(link.Heartbeat(hello.resources)))
        clock.ahead_s = HOUR_S
        await socket.send_bytes(link.encode(link.Heartbeat(hello.resources)))
        message = await socket.receive()
        assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 4403)
        assert "certificate" in str(message.extra)


async def test_a_kept_connection_is_left_before_its_certificate_ends(
    founder: Identity, tmp_path: Path, clock: Clock
) -> None:
    """What goes from controller to controller, too: nobody is refused, and so taken for dead, over a renewal."""
    controller, member = Controller(founder, clock), Member(founder, tmp_path / "member", clock)

    async def port() -> str:
        async with http.request("GET", address, "/port", timeout_s=5) as response:
            return await response.text()

    async with controller.serving() as address, member.calls() as http:
        first = await port()
        assert await port() == first
        clock.ahead_s = HOUR_S - 30
        last = {await port(), await port()}
        assert len(last) == 2
        assert first not in last
        member.renew()
        renewed = await port()
        assert renewed not in last
        assert await port() == renewed
