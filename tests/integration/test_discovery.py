"""Real mDNS on the loopback interface: announce, browse, say goodbye."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import structlog.testing
from click.testing import CliRunner, Result

from bootstrap import mesh_mark, mesh_root
from client.controller import ControllerClient
from client.discovery import Browser, discover
from client.lan import InterfaceAddress
from client.phone import Phone
from node.cli import main
from node.discovery import ControllerBrowser, announced, watched_for_namesakes
from node.neighbours import met_neighbours
from protocol.instances import Progress, StartRequest, State
from protocol.problems import Conflict, ControllerUnreachable, UnknownInstance
from tests.stub_controller import TOKEN, stub_controller
from tests.waiting import until

pytestmark = pytest.mark.lan

LO = ["127.0.0.1"]
ROOT, OTHER_ROOT = "0123456789abcdef", "fedcba9876543210"


def a_mesh() -> str:
    """A mesh name of its own for each test: all of them share one loopback interface."""
    return f"test-{secrets.token_hex(6)}"


@asynccontextmanager
async def announced_site(
    mesh: str, region: str, *, root: str = ROOT, rest_port: int = 7400, peer_port: int = 7401
) -> AsyncIterator[str]:
    async with announced(
        host="127.0.0.1",
        rest_port=rest_port,
        peer_port=peer_port,
        region=region,
        mesh=mesh,
        root=root,
        node=secrets.token_hex(20),
        site="corner",
    ) as name:
        yield name


async def test_two_regions_are_discovered_and_a_goodbye_drops_one() -> None:
    mesh = a_mesh()
    async with Browser(mesh=mesh, interfaces=LO) as browser, announced_site(mesh, "eu/a", rest_port=7410):
        async with announced_site(mesh, "eu/b", rest_port=7420, peer_port=7421):
            await until(lambda: len(browser.controllers) == 2)
            found = await discover(mesh=mesh, interfaces=LO, enough=2)
            assert [(c.region, c.url, c.peer_address, c.path) for c in found] == [
                ("eu/a", "http://127.0.0.1:7410", "127.0.0.1:7401", "/v1"),
                ("eu/b", "http://127.0.0.1:7420", "127.0.0.1:7421", "/v1"),
            ]
        await until(lambda: [c.region for c in browser.controllers] == ["eu/a"])
        changes = [await anext(aiter(browser)) for _ in range(3)]
        assert [change.kind for change in changes] == ["appeared", "appeared", "gone"]
        assert changes[-1].controller.region == "eu/b"


async def test_a_region_is_chosen_and_an_unknown_one_is_not_found() -> None:
    mesh = a_mesh()
    async with announced_site(mesh, "eu/a"), announced_site(mesh, "eu/b", rest_port=7420):
        assert [c.region for c in await discover(mesh=mesh, region="eu/b", interfaces=LO, enough=1)] == ["eu/b"]
        assert await discover(mesh=mesh, region="eu/c", interfaces=LO, timeout_s=0.5) == []


async def test_two_sites_of_one_name_and_region_are_told_apart() -> None:
    mesh = a_mesh()
    async with (
        announced_site(mesh, "eu/a", rest_port=7410) as first,
        announced_site(mesh, "eu/a", rest_port=7411) as second,
    ):
        assert first != second
        found = await discover(mesh=mesh, interfaces=LO, enough=2)
        assert {c.port for c in found} == {7410, 7411}
        assert len({c.node for c in found}) == 2


async def test_an_agent_prefers_its_own_region_then_the_nearest_ancestor() -> None:
    mesh = a_mesh()
    async with AsyncExitStack() as stack:
        ports = {"eu": 7501, "eu/de": 7502, "eu/de/darmstadt": 7503}
        for region, port in ports.items():
            await stack.enter_async_context(announced_site(mesh, region, peer_port=port))
        for region, expected in (("eu/de/darmstadt", 7503), ("eu/de/mainz", 7502), ("eu/fr", 7501)):
            async with ControllerBrowser(mesh=mesh, root=ROOT, region=region, interfaces=LO) as browser:
                if region not in ports:  # it can wait for its own region's, but not know what else there is
                    await until(lambda found=browser._browser: len(found.controllers) == len(ports))
                assert await browser.locate() == [f"127.0.0.1:{expected}"]


async def test_a_failed_controller_is_dropped_and_comes_back_when_it_announces_itself_again() -> None:
    mesh = a_mesh()
    async with ControllerBrowser(mesh=mesh, root=ROOT, region="eu/a", interfaces=LO) as browser:
        async with announced_site(mesh, "eu/a", peer_port=7501):
            assert await until(browser.locate, timeout_s=20) == ["127.0.0.1:7501"]
            browser.failed("127.0.0.1:7501")
            # At once: somebody else's question on this link may bring it back at any moment, as it is there still.
            assert browser._browser.controllers == []
        async with announced_site(mesh, "eu/a", peer_port=7502):
            assert await until(browser.locate) == ["127.0.0.1:7502"]


async def test_a_controller_that_was_only_slow_is_found_again_by_asking() -> None:
    mesh = a_mesh()
    async with (
        announced_site(mesh, "eu/a", peer_port=7501),
        ControllerBrowser(mesh=mesh, root=ROOT, region="eu/a", interfaces=LO) as browser,
    ):
        assert await until(browser.locate, timeout_s=20) == ["127.0.0.1:7501"]
        browser.failed("127.0.0.1:7501")
        assert await until(browser.locate, timeout_s=20) == ["127.0.0.1:7501"]


async def test_two_meshes_of_one_name_are_told_apart_and_warned_of_once() -> None:
    mesh = a_mesh()
    with structlog.testing.capture_logs() as logs:
        async with (
            announced_site(mesh, "eu/a", root=OTHER_ROOT, peer_port=7501),
            watched_for_namesakes(mesh=mesh, root=ROOT, host="127.0.0.1"),
            ControllerBrowser(mesh=mesh, root=ROOT, region="eu/a", interfaces=LO) as browser,
        ):
            assert await browser.locate() == [], "an agent does not dial a mesh that only has the name of its own"
            async with announced_site(mesh, "eu/a", peer_port=7502):
                assert await until(browser.locate) == ["127.0.0.1:7502"]
                await browser.locate()
    warnings = [entry for entry in logs if entry["event"] == "another-mesh-of-this-name"]
    assert [entry["its_root"] for entry in warnings] == [OTHER_ROOT] * 2, "once by the controller, once by the agent"


@pytest.fixture
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.discovery.interface_addresses", lambda: [InterfaceAddress("lo", "127.0.0.1")])


async def command(*arguments: str, data_dir: Path) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, main, ["--data-dir", str(data_dir), *arguments])


@pytest.mark.usefixtures("on_loopback")
async def test_a_change_is_not_made_in_one_of_several_meshes_by_chance(tmp_path: Path) -> None:
    region = f"test/{secrets.token_hex(6)}"
    async with stub_controller() as stub, announced_site(a_mesh(), region, rest_port=stub.port) as _:
        one = await command("start", "wc01", "--region", region, data_dir=tmp_path)
        assert one.exit_code == 0, one.stderr
        assert f"Asking {stub.url}, which mDNS shows: region {region} of mesh test-" in one.stderr
        async with announced_site(a_mesh(), region, root=OTHER_ROOT, rest_port=1):
            refused = await command("start", "wc01", "--region", region, data_dir=tmp_path)
        assert refused.exit_code == 1
        for expected in ("2 meshes are on this network", stub.url, "http://127.0.0.1:1", "--controller"):
            assert expected in refused.stderr
        assert len(stub.starts) == 1


@pytest.mark.usefixtures("on_loopback")
async def test_a_member_asks_its_own_mesh_and_hears_that_its_own_controller_is_down(tmp_path: Path) -> None:
    mesh = a_mesh()
    founded = await command("bootstrap", "init", "--mesh", mesh, "--region", "eu/a", data_dir=tmp_path)
    assert founded.exit_code == 0
    root = mesh_root(tmp_path)
    assert root is not None
    async with (
        announced_site(mesh, "eu/a", root=OTHER_ROOT, rest_port=1),
        stub_controller() as stub,
        announced_site(mesh, "eu/b", root=mesh_mark(root), rest_port=stub.port),
    ):
        result = await command("start", "wc01", data_dir=tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "own controller is not running" in result.stderr
    assert len(stub.starts) == 1


@pytest.mark.usefixtures("on_loopback")
async def test_the_command_lists_what_is_announced() -> None:
    mesh = a_mesh()
    async with announced_site(mesh, "eu/a", rest_port=7410):
        arguments = ["discover", "--mesh", mesh, "--wait", "0.5", "--json"]
        result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    (found,) = json.loads(result.stdout)
    assert (found["region"], found["url"], found["peer_port"]) == ("eu/a", "http://127.0.0.1:7410", 7401)


async def test_a_phone_moves_on_when_its_controller_dies() -> None:
    mesh = a_mesh()
    async with AsyncExitStack() as stack:
        living = await stack.enter_async_context(stub_controller())
        async with stub_controller() as dying:
            await stack.enter_async_context(announced_site(mesh, "eu/a", rest_port=dying.port))
            await stack.enter_async_context(announced_site(mesh, "eu/b", rest_port=living.port))
            phone = await stack.enter_async_context(Phone(mesh=mesh, interfaces=LO))
            await phone.call(ControllerClient.health)
            first = phone.controller
            assert first is not None
            other = living if first.port == dying.port else dying
            await (dying if first.port == dying.port else living).close()
            await phone.call(ControllerClient.health)
            assert phone.controller is not None
            assert phone.controller.port == other.port


async def test_a_phone_moves_on_within_its_mesh_before_it_tries_another_of_that_name() -> None:
    mesh = a_mesh()
    async with AsyncExitStack() as stack:
        strange = await stack.enter_async_context(stub_controller())
        living = await stack.enter_async_context(stub_controller())
        dying = await stack.enter_async_context(stub_controller())
        await stack.enter_async_context(announced_site(mesh, "eu/a", rest_port=dying.port))
        phone = await stack.enter_async_context(Phone(mesh=mesh, interfaces=LO))
        await phone.call(ControllerClient.health)
        await stack.enter_async_context(announced_site(mesh, "eu/b", root=OTHER_ROOT, rest_port=strange.port))
        await stack.enter_async_context(announced_site(mesh, "eu/c", rest_port=living.port))
        await until(lambda: len(phone.controllers) == 3)
        ports = []
        for dead in (dying, living):
            await dead.close()
            await phone.call(ControllerClient.health)
            assert phone.controller is not None
            ports.append(phone.controller.port)
        assert ports == [living.port, strange.port]


async def test_a_phone_falls_back_to_a_url_where_nothing_is_announced() -> None:
    async with (
        stub_controller() as stub,
        Phone(url=stub.url, mesh=a_mesh(), interfaces=LO, find_timeout_s=0.2) as phone,
    ):
        assert (await phone.call(ControllerClient.health)).region == stub.region
        assert phone.controller is None


async def test_what_a_phone_started_belongs_to_who_gave_the_lease_and_all_else_goes_to_the_next() -> None:
    """The first controller dies in the middle of telling its progress."""
    mesh = a_mesh()
    async with AsyncExitStack() as stack:
        dying = await stack.enter_async_context(stub_controller())
        await stack.enter_async_context(announced_site(mesh, "eu/a", rest_port=dying.port))
        phone = await stack.enter_async_context(Phone(mesh=mesh, interfaces=LO))
        before = await phone.start(StartRequest(service="wc01"))
        assert (await phone.alive(before, alive_time=9)).state is State.RUNNING
        living = await stack.enter_async_context(stub_controller())
        await stack.enter_async_context(announced_site(mesh, "eu/b", rest_port=living.port))
        await until(lambda: len(phone.controllers) == 2)

        dying.cut_streams = 100
        steps: list[Progress] = []
        after = await phone.start(StartRequest(service="wc01"), steps.append)
        assert [step.phase for step in steps][-2:] == ["resolve", "fetch"]
        first, again = dying.starts[-1].request_key, living.starts[-1].request_key
        assert first == again, "to all of them it is one request"
        await dying.close()
        assert phone.controller is not None
        assert phone.controller.port == living.port
        # Both stubs give the same instance: the last lease counts.
        assert (await phone.stop(after)).state is State.STOPPED
        assert living.authorizations == [f"Bearer {TOKEN}"]
        with pytest.raises(UnknownInstance):
            await phone.stop(msgspec.structs.replace(after, instance="0" * 16))


async def test_a_lease_of_a_controller_that_is_gone_is_shown_to_no_other() -> None:
    mesh = a_mesh()
    async with AsyncExitStack() as stack:
        dying = await stack.enter_async_context(stub_controller())
        await stack.enter_async_context(announced_site(mesh, "eu/a", rest_port=dying.port))
        phone = await stack.enter_async_context(Phone(mesh=mesh, interfaces=LO))
        answer = await phone.start(StartRequest(service="wc01"))
        living = await stack.enter_async_context(stub_controller())
        await stack.enter_async_context(announced_site(mesh, "eu/b", rest_port=living.port))
        await until(lambda: len(phone.controllers) == 2)
        await dying.close()
        with pytest.raises(ControllerUnreachable) as gone:
            await phone.restart(answer)
        assert "Start the service again" in gone.value.fix
        assert living.authorizations == []


async def test_a_phone_with_a_url_waits_once_and_still_moves_to_who_announces_itself() -> None:
    mesh = a_mesh()
    async with AsyncExitStack() as stack:
        known = await stack.enter_async_context(stub_controller())
        phone = await stack.enter_async_context(Phone(url=known.url, mesh=mesh, interfaces=LO, find_timeout_s=1.0))
        loop = asyncio.get_running_loop()
        await phone.call(ControllerClient.health)
        began = loop.time()
        for _ in range(5):
            await phone.call(ControllerClient.health)
        assert loop.time() - began < 4.0, "five waits would have taken 5 s"
        found = await stack.enter_async_context(stub_controller())
        await stack.enter_async_context(announced_site(mesh, "eu/a", rest_port=found.port))
        await until(lambda: phone.controllers)
        await phone.call(ControllerClient.health)
        assert phone.controller is not None
        assert phone.controller.port == found.port


class Heard:
    """A directory that only listens."""

    def __init__(self) -> None:
        self.neighbours: dict[str, str] = {}

    def meet(self, node: str, address: str) -> None:
        self.neighbours[node] = address

    def part(self, node: str) -> None:
        self.neighbours.pop(node, None)


@asynccontextmanager
async def neighbour(root: str, node: str, dht_port: int) -> AsyncIterator[Heard]:
    heard = Heard()
    async with met_neighbours(heard, host="127.0.0.1", dht_port=dht_port, root=root, node=node, site="corner"):
        yield heard


async def test_a_second_node_of_one_identity_is_told_of_the_first() -> None:
    root, node = secrets.token_hex(8), secrets.token_hex(20)
    async with neighbour(root, node, 7411):
        with pytest.raises(Conflict, match=node[:8]):
            async with neighbour(root, node, 7421):
                pass


async def test_nodes_of_one_mesh_meet_on_the_link_whatever_their_roles() -> None:
    root = secrets.token_hex(8)
    one, two, other = (secrets.token_hex(20) for _ in range(3))
    async with neighbour(root, one, 7411) as first, neighbour(OTHER_ROOT, other, 7431):
        async with neighbour(root, two, 7421) as second:
            await until(lambda: first.neighbours == {two: "127.0.0.1:7421"})
            await until(lambda: second.neighbours == {one: "127.0.0.1:7411"})
        await until(lambda: first.neighbours == {})
