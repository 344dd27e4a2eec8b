"""The agent with a real Docker engine: build, run, fail, end, adopt, keep networks apart."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import docker as docker_package
import pytest
from msgspec import structs

from agent.agent import Agent
from agent.docker.containers import INSTANCE_LABEL, NODE_LABEL, SANDBOX_LABEL
from agent.docker.engine import engine_at
from agent.docker.image_quota import ImageQuota
from agent.docker.images import image_tag
from agent.docker.runtime import DockerConfig, DockerRuntime, running_docker
from agent.docker.sandboxes import joined
from agent.runtime import Workload
from protocol import link
from protocol.instances import InstanceReport, State
from protocol.problems import BuildFailed, DeadlineExceeded, EngineUnavailable, StartFailed
from protocol.service import Allowed, Artifact, BridgeNetwork, ContainerPort, Relaxations, ServiceDescriptor
from tests.agent_stage import Shelf, an_agent, start_command
from tests.docker_stage import WEB_FILES, clean_docker
from tests.waiting import until

pytestmark = pytest.mark.docker

WEB = ServiceDescriptor(
    id="web",
    name="web",
    kind="docker_container",
    category="/web",
    mem_requirement=16,
    entry="web.yaml",
    directory="src",
    ports=(ContainerPort(8080),),
)


class Stage:
    def __init__(self, tmp_path: Path, runtime: DockerRuntime, node: str) -> None:
        self.shelf = Shelf(tmp_path)
        self.runtime = runtime
        self.node = node
        self.tmp_path = tmp_path

    @asynccontextmanager
    async def agent(self, **settings: object) -> AsyncIterator[Agent]:
        async with an_agent(self.tmp_path, self.shelf, self.runtime, node=self.node, **settings) as agent:
            yield agent


@asynccontextmanager
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Containers and networks that the test made are gone afterwards."""
    node = os.urandom(20).hex()
    async with clean_docker(node, sandboxes=1) as runtime:
        yield Stage(tmp_path, runtime, node)


async def get(port: int, path: str = "/index.html") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


def service(command: str, **changes: object) -> tuple[ServiceDescriptor, dict[str, str]]:
    """A service that runs a shell command."""
    descriptor = ServiceDescriptor(
        **{  # type: ignore[arg-type]
            **{field: getattr(WEB, field) for field in WEB.__struct_fields__},
            **changes,
        }
    )
    return descriptor, {
        "src/Dockerfile": f'FROM busybox\nCMD ["/bin/busybox", "sh", "-c", {command!r}]\n'.replace("'", '"')
    }


@pytest.fixture(autouse=True)
def _base(base_image: str) -> str:
    return base_image


async def test_an_archive_becomes_a_service_that_answers_at_one_address_for_life(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(WEB, WEB_FILES, remote=True)
        steps: list[str] = []
        started = await agent.runner.start(start_command("one", digest), lambda step: steps.append(step.phase))
        port = started.report.ports[0].port
        assert (await get(port)).endswith(b"hello")
        assert set(started.timings_ms) == {"fetch", "verify", "build", "start", "ready", "total"}
        assert steps[0] == "fetch"
        assert {"verify", "build", "start", "ready"} <= set(steps)

        await agent.runner.stop(link.Stop("c", "one"))
        assert agent.reports()[0].state is State.STOPPED
        again = await agent.runner.restart(link.Restart("c", "one"))
        assert again.report.ports[0].port == port
        assert (await get(port)).endswith(b"hello")

        await agent.runner.remove(link.Remove("c", "one"))
        assert agent.reports() == ()
        assert await s.runtime.adopt() == []


async def test_a_restart_after_the_engine_was_pruned_makes_image_and_container_again(tmp_path: Path) -> None:
    def prune() -> None:  # as `docker system prune -a` does, but of this service alone: the engine is shared
        client = docker_package.from_env()
        client.containers.prune(filters={"label": f"{NODE_LABEL}={s.node}"})
        client.images.remove(image_tag(digest, None))
        client.close()

    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(WEB, WEB_FILES)
        before = (await agent.runner.start(start_command("one", digest))).report
        await agent.runner.stop(link.Stop("c", "one"))
        await asyncio.to_thread(prune)
        again = await agent.runner.restart(link.Restart("c", "one"))
        assert "build" in again.timings_ms
        assert again.report.ports == before.ports
        assert (await get(before.ports[0].port)).endswith(b"hello")


async def test_a_built_image_is_reused_and_force_rebuild_builds_anew(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(WEB, WEB_FILES)
        first = await agent.runner.start(start_command("one", digest))
        second = await agent.runner.start(start_command("two", digest))
        third = await agent.runner.start(start_command("three", digest, force_rebuild=True))
        assert ["build" in started.timings_ms for started in (first, second, third)] == [True, False, True]
        assert (await agent.resources()).built == (digest,)


async def test_agents_that_share_an_engine_build_an_archive_once(tmp_path: Path) -> None:
    steps: dict[str, list[str]] = {"one": [], "two": []}

    async def start(agent: Agent, name: str) -> None:
        await agent.runner.start(start_command(name, digest), lambda step: steps[name].append(step.message))

    async with stage(tmp_path) as s, clean_docker(os.urandom(20).hex()) as second:
        digest = s.shelf.put(WEB, WEB_FILES)
        (tmp_path / "second").mkdir()
        other = an_agent(tmp_path / "second", s.shelf, second, node=second._node)
        async with s.agent() as first, other as agent, asyncio.TaskGroup() as group:
            group.create_task(start(first, "one"))
            group.create_task(start(agent, "two"))
    built = [name for name, told in steps.items() if any(step.startswith("COPY") for step in told)]
    assert len(built) == 1
    (waited,) = steps.keys() - set(built)
    assert any("another agent" in step for step in steps[waited])


async def test_the_image_that_a_rebuild_replaced_is_removed(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(WEB, WEB_FILES)
        await agent.runner.start(start_command("one", digest))
        before = await asyncio.to_thread(image_id, image_tag(digest, None))
        await agent.runner.remove(link.Remove("c", "one"))
        await agent.runner.start(start_command("two", digest, force_rebuild=True))
        assert before is not None
        await until(lambda: image_id(before) is None)
        assert await asyncio.to_thread(image_id, image_tag(digest, None)) not in {None, before}


async def test_images_beyond_the_quota_go_unless_a_container_is_made_of_them_or_they_are_pinned(
    base_image: str,
) -> None:
    repository = f"cornerstore-quota/{os.urandom(6).hex()}"
    client = docker_package.from_env()
    api = client.api

    def make(tag: str) -> None:
        container = api.create_container(base_image, name=f"quota-{os.urandom(6).hex()}")["Id"]
        api.put_archive(container, "/", tar_of("big", os.urandom(1 << 20)))
        api.commit(container, repository=repository, tag=tag)
        api.remove_container(container)

    pinned = "f" * 32

    async def pins() -> list[str]:
        return ["sha256:" + 2 * pinned]

    for tag in ("stopped", pinned, "old", "new"):
        await asyncio.to_thread(make, tag)
    stopped = api.create_container(f"{repository}:stopped")["Id"]
    later = time.time() + 3600
    try:
        async with engine_at(None) as engine:
            quota = ImageQuota(
                engine,
                quota=65 * 10**6,
                repository=repository,
                label="quota-test",
                pinned=pins,
                clock=lambda: later,
            )
            quota.touch(f"{repository}:new")
            await quota.enforce()
        left = {tag for image in api.images(name=repository) for tag in image["RepoTags"]}
        assert left == {f"{repository}:{tag}" for tag in ("stopped", pinned, "new")}
    finally:
        api.remove_container(stopped)
        for image in api.images(name=repository):
            api.remove_image(image["RepoTags"][0])
        client.close()


def tar_of(name: str, data: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def image_id(of: str) -> str | None:
    """The id of an image, by its id or name."""
    client = docker_package.from_env()
    try:
        return str(client.api.inspect_image(of)["Id"])
    except docker_package.errors.NotFound:
        return None
    finally:
        client.close()


async def test_a_build_that_fails_says_so_with_its_log(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        dockerfile = "FROM busybox\nRUN echo before-the-end && false\n"
        digest = s.shelf.put(WEB, {"src/Dockerfile": dockerfile})
        with pytest.raises(BuildFailed) as caught:
            await agent.runner.start(start_command("one", digest))
        assert any("before-the-end" in line for line in caught.value.extra["log"])
        assert agent.reports() == ()


async def test_a_base_image_that_nobody_has_is_named_with_the_remedy(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(WEB, {"src/Dockerfile": "FROM localhost:1/nobody/has:this\n"})
        with pytest.raises(BuildFailed):
            await agent.runner.start(start_command("one", digest))


async def test_a_service_that_ends_at_once_leaves_its_log_and_nothing_else(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(*service("echo my-last-words; exit 3"))
        with pytest.raises(StartFailed) as caught:
            await agent.runner.start(start_command("one", digest))
        assert caught.value.extra == {"reason": "exited 3", "log": ["my-last-words"]}
        assert await s.runtime.adopt() == []


async def test_a_service_on_another_port_than_described_fails_with_its_log(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent(ready_timeout_s=2) as agent:
        digest = s.shelf.put(*service("echo listening on 9000; exec busybox nc -l -p 9000"))
        reports: list[InstanceReport] = []
        agent.instances.subscribe(reports.append)
        with pytest.raises(StartFailed, match="port 8080/tcp does not answer") as caught:
            await agent.runner.start(start_command("one", digest))
        assert (caught.value.extra["reason"], caught.value.extra["log"]) == ("not-ready", ["listening on 9000"])
        assert any(r.state is State.STARTING and r.reason == "port 8080/tcp does not answer" for r in reports)
        assert (agent.reports(), await s.runtime.adopt(), agent.instances.free) == ((), [], agent.instances.memory_mb)


async def test_an_end_is_noticed_with_its_reason(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(*service("sleep 0.3; echo gone; exit 7", ports=()))
        await agent.runner.start(start_command("one", digest))
        await until(lambda: agent.reports()[0].state is State.FAILED)
        assert (agent.reports()[0].reason, agent.reports()[0].log) == ("exited 7", ("gone",))


async def test_exceeding_the_memory_limit_is_noticed_as_such(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(*service("sleep 0.3; exec busybox tail -c 100m /dev/zero", ports=()))
        await agent.runner.start(start_command("one", digest))
        await until(lambda: agent.reports()[0].state is State.FAILED, timeout_s=30)
        assert agent.reports()[0].reason == "out-of-memory"


async def test_the_alive_message_of_the_service_means_ready(tmp_path: Path) -> None:
    send = "sleep 0.2; wget -q -O- --post-data name=$name http://agent:PORT/api/microservices; sleep 60"
    async with stage(tmp_path) as s, s.agent(alive_port=5001) as agent:
        digest = s.shelf.put(*service(send.replace("PORT", "5001"), wait_for_start=True))
        started = await agent.runner.start(start_command("one", digest, deadline_s=30.0))
        assert started.report.state is State.RUNNING
        assert started.timings_ms["ready"] > 100


async def test_running_containers_are_adopted_and_strangers_of_ours_removed(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        digest = s.shelf.put(WEB, WEB_FILES)
        async with s.agent() as agent:
            before = (await agent.runner.start(start_command("one", digest))).report
            await agent.runner.start(start_command("stopped", digest))
            await agent.runner.stop(link.Stop("c", "stopped"))
        seen = await s.runtime.inspect("one")
        assert seen is not None, "a clean end of the agent leaves the service running"
        image = await s.runtime.image_of(digest, None)
        assert image is not None
        await start_stranger(s, digest, image)
        async with s.agent() as agent:
            reports = {report.instance: report for report in agent.reports()}
            assert reports["one"] == before
            assert reports["stopped"].state is State.STOPPED
            assert (await get(before.ports[0].port)).endswith(b"hello")
            assert await s.runtime.inspect("stranger") is None


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
import tests.integration.test_agent_docker as here
from agent.docker.containers import INSTANCE_LABEL, NODE_LABEL, SANDBOX_LABEL
from agent.docker.runtime import DockerConfig, running_docker
from tests.agent_stage import Shelf, an_agent, start_command
from tests.docker_stage import ALIASES

async def main() -> None:
    folder, node = Path(sys.argv[1]), sys.argv[2]
    shelf = Shelf(folder)
    async with running_docker(DockerConfig(base_image_aliases=ALIASES), node) as runtime:
        async with an_agent(folder, shelf, runtime, node=node) as agent:
            report = (await agent.runner.start(start_command("one", shelf.put(here.WEB, here.WEB_FILES)))).report
            print(report.ports[0].port, report.expires_at, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_after_kill_9_the_service_is_adopted_with_its_port_and_deadline(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        arguments = [sys.executable, "-c", KILLED, str(tmp_path), s.node]
        root = Path(__file__).parents[2]
        killed = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE, cwd=root)
        told, _ = await killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        port, expires_at = told.split()[-2:]
        async with s.agent() as agent:
            report = agent.reports()[0]
            assert (report.instance, report.state) == ("one", State.RUNNING)
            assert (report.ports[0].port, report.expires_at) == (int(port), float(expires_at))
            assert (await get(int(port))).endswith(b"hello")


async def start_stranger(s: Stage, digest: str, image: str) -> None:
    await s.runtime.start(Workload(instance="stranger", digest=digest, image=image, mem=16))


async def test_groups_share_a_network_and_reach_no_other(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        red = BridgeNetwork(f"red-{s.node[:6]}", subnet="172.29.231.0/24")
        blue = BridgeNetwork(f"blue-{s.node[:6]}", internal=True)
        for instance, network in (("red", red), ("red2", red), ("blue", blue)):
            descriptor, _ = service("", networks=(network,))
            await agent.runner.start(start_command(instance, s.shelf.put(descriptor, WEB_FILES)))
        addresses = {i: (await s.runtime.inspect(i)).attachments[0].address for i in ("red", "red2", "blue")}  # type: ignore[union-attr]
        assert addresses["red"].startswith("172.29.231.")
        assert await reaches(s, "red", addresses["red2"])
        assert not await reaches(s, "red", addresses["blue"])
        assert not await reaches(s, "blue", addresses["red"])
        assert (await get(agent.reports()[2].ports[0].port)).endswith(b"hello"), "clients reach an internal service"
        assert await asyncio.to_thread(networks_like, s.node[:6]) == {
            f"csn-{s.node[:8]}-{red.name}": False,
            f"csn-{s.node[:8]}-{blue.name}": True,
        }
        for instance in ("red", "red2", "blue"):
            await agent.runner.remove(link.Remove("c", instance))
        assert not await asyncio.to_thread(networks_like, s.node[:6]), "networks go with their last member"


@pytest.mark.netns
async def test_in_an_isolated_network_the_agent_is_all_that_answers_and_each_speaks_for_itself(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent(alive_port=5001) as agent:
        isolated = BridgeNetwork(f"blue-{s.node[:6]}", internal=True)
        inside, outside = service("", networks=(isolated,))[0], WEB
        for instance, descriptor in (("one", inside), ("neighbour", inside), ("stranger", outside)):
            await agent.runner.start(start_command(instance, s.shelf.put(descriptor, WEB_FILES)))
        before = agent.reports()[0].expires_at
        assert await says_alive(s, "neighbour", "one") == 403
        assert await says_alive(s, "stranger", "one") == 403
        assert agent.reports()[0].expires_at == before
        assert await says_alive(s, "one", "one") == 200
        assert agent.reports()[0].expires_at > before
        assert await says_alive(s, "one", "nobody") == 404
        async with a_host_outside() as address:
            assert await reaches(s, "stranger", address)
            assert not await reaches(s, "one", address)


SAY_ALIVE = """
import urllib.error, urllib.request
form = "name=NAME".encode()
try:
    with urllib.request.urlopen(
        urllib.request.Request("http://agent:5001/api/microservices", data=form, method="PUT"), timeout=5
    ) as answer:
        print(answer.status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@asynccontextmanager
async def a_host_outside() -> AsyncIterator[str]:
    """The address of a machine beside this one, in a network namespace, that answers on port 8080."""
    name = f"cs{os.urandom(4).hex()}"
    net = f"198.18.{os.urandom(1)[0]}"  # RFC 2544: for tests
    inside = ("nsenter", f"--net=/run/netns/{name}")
    try:
        await run("ip", "netns", "add", name)
        await run("ip", "link", "add", name, "type", "veth", "peer", "eth0", "netns", name)
        await run("ip", "address", "add", f"{net}.1/24", "dev", name)
        await run("ip", "link", "set", name, "up")
        await run(*inside, "ip", "address", "add", f"{net}.2/24", "dev", "eth0")
        await run(*inside, "ip", "link", "set", "eth0", "up")
        listen = (
            "import socket, sys; s = socket.create_server((sys.argv[1], 8080)); print(flush=True); sys.stdin.read()"
        )
        server = await asyncio.create_subprocess_exec(
            *inside, sys.executable, "-c", listen, f"{net}.2", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert server.stdout is not None
            assert await server.stdout.readline() == b"\n"
            yield f"{net}.2"
        finally:
            server.kill()
            await server.communicate()
    finally:
        await run("ip", "netns", "del", name)


async def run(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    assert await process.wait() == 0, argv


async def says_alive(s: Stage, instance: str, name: str) -> int:
    """The status with which the paper's message of an instance is answered that calls itself `name`."""
    code, output = await run_inside(s, instance, SAY_ALIVE.replace("NAME", name))
    assert code == 0, output
    return int(output)


async def test_a_group_network_that_nobody_joined_before_kill_9_is_removed_at_the_next_start(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, clean_docker(os.urandom(20).hex()) as foreign:
        group = BridgeNetwork(f"red-{s.node[:6]}")
        used = BridgeNetwork(f"used-{s.node[:6]}")
        digest = s.shelf.put(structs.replace(WEB, networks=(used,)), WEB_FILES)
        async with s.agent() as agent:
            await agent.runner.start(start_command("one", digest))
            await agent.runner.stop(link.Stop("c", "one"))
            unborn = Workload(instance="two", digest=digest, image="none", mem=16, networks=(group,))
            await s.runtime.gateways(unborn)
            await foreign.gateways(unborn)
        assert len(await asyncio.to_thread(networks_like, s.node[:6])) == 3
        # The same node, as after `kill -9`: a process that knows nothing of what was on its way.
        async with running_docker(DockerConfig(sandboxes=0), s.node) as next_one:
            await next_one.adopt()
            left = await asyncio.to_thread(networks_like, s.node[:6])
            assert len(left) == 2
            assert f"csn-{s.node[:8]}-{used.name}" in left, "a stopped service keeps its network"
            assert f"csn-{s.node[:8]}-{group.name}" not in left
        async with running_docker(DockerConfig(sandboxes=0), foreign._node) as its_own:
            await its_own.adopt()
        assert len(await asyncio.to_thread(networks_like, s.node[:6])) == 1


async def test_services_without_a_group_cannot_reach_each_other(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(WEB, WEB_FILES)
        for instance in ("one", "two"):
            await agent.runner.start(start_command(instance, digest))
        two = await s.runtime.inspect("two")
        assert two is not None
        assert not await reaches(s, "one", two.attachments[0].address)


async def test_services_in_sandboxes_cannot_reach_each_other_nor_each_other_s_network(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(WEB, WEB_FILES)
        for instance in ("one", "two"):
            await until(lambda: s.runtime.sandboxes.waiting)
            await agent.runner.start(start_command(instance, digest))
        joined = await asyncio.to_thread(sandboxes_of, s)
        assert joined["one"] != joined["two"]
        two = await s.runtime.inspect("two")
        assert two is not None
        assert not await reaches(s, "one", two.attachments[0].address)
        assert await reaches(s, "two", two.attachments[0].address)


async def test_a_sandbox_goes_with_its_instance_and_stays_while_that_is_stopped(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        await agent.runner.start(start_command("one", s.shelf.put(WEB, WEB_FILES)))
        before = (await asyncio.to_thread(sandboxes_of, s))["one"]
        await agent.runner.stop(link.Stop("c", "one"))
        again = await agent.runner.restart(link.Restart("c", "one"))
        assert (await get(again.report.ports[0].port)).endswith(b"hello")
        assert (await asyncio.to_thread(sandboxes_of, s))["one"] == before
        await agent.runner.remove(link.Remove("c", "one"))
        assert before not in await asyncio.to_thread(container_ids)


async def test_an_instance_whose_sandbox_died_has_failed_and_is_made_anew(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        await agent.runner.start(start_command("one", s.shelf.put(WEB, WEB_FILES)))
        dead = (await asyncio.to_thread(sandboxes_of, s))["one"]
        await asyncio.to_thread(kill, dead)
        await until(lambda: agent.reports()[0].state is State.FAILED)
        assert agent.reports()[0].reason == "exited 137"
        again = await agent.runner.restart(link.Restart("c", "one"))
        assert (await get(again.report.ports[0].port)).endswith(b"hello")
        assert dead not in await asyncio.to_thread(container_ids)


async def test_a_waiting_sandbox_that_died_is_replaced(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        waiting = await asyncio.to_thread(sandboxes_waiting, s)
        await asyncio.to_thread(kill, *waiting)
        await until(lambda: s.runtime.sandboxes.waiting == 0)
        started = await agent.runner.start(start_command("one", s.shelf.put(WEB, WEB_FILES)))
        assert (await get(started.report.ports[0].port)).endswith(b"hello")
        await until(lambda: s.runtime.sandboxes.waiting == 1)
        assert not set(waiting) & await asyncio.to_thread(container_ids)


async def test_sandboxes_that_nobody_joined_before_kill_9_are_removed(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        before = await asyncio.to_thread(sandboxes_waiting, s)
        async with clean_docker(s.node) as successor:
            assert await successor.adopt() == []
        assert before
        assert not set(before) & await asyncio.to_thread(container_ids)


async def test_a_frozen_service_answers_the_request_that_wakes_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent(pause_after_s=0.5) as agent:
        started = await agent.runner.start(start_command("one", s.shelf.put(WEB, WEB_FILES)))
        for _ in range(2):
            await until(lambda: agent.reports()[0].state is State.PAUSED)
            assert (await get(started.report.ports[0].port)).endswith(b"hello")
        await until(lambda: agent.reports()[0].state is State.PAUSED)
        await agent.runner.stop(link.Stop("c", "one"))
        assert agent.reports()[0].state is State.STOPPED


async def test_a_service_in_a_sandbox_may_listen_below_1024_and_resolves_the_agent(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        descriptor, files = service("exec busybox httpd -f -p 80 -h /etc", ports=(ContainerPort(80),))
        started = await agent.runner.start(start_command("one", s.shelf.put(descriptor, files)))
        seen = await s.runtime.inspect("one")
        assert seen is not None
        hosts = await get(started.report.ports[0].port, "/hosts")
        assert f"{seen.attachments[0].gateway}\tagent".encode() in hosts


def sandboxes_of(s: Stage) -> dict[str, str]:
    """The instances of the stage, each with the id of the sandbox that it joined."""
    client = docker_package.from_env()
    listed = client.api.containers(all=True, filters={"label": f"{NODE_LABEL}={s.node}"})
    client.close()
    return joined(listed, INSTANCE_LABEL)


def sandboxes_waiting(s: Stage) -> list[str]:
    client = docker_package.from_env()
    labels = [f"{NODE_LABEL}={s.node}", SANDBOX_LABEL]
    found = [c["Id"] for c in client.api.containers(all=True, filters={"label": labels})]
    client.close()
    return found


def container_ids() -> set[str]:
    client = docker_package.from_env()
    found = {c["Id"] for c in client.api.containers(all=True)}
    client.close()
    return found


def kill(*containers: str) -> None:
    client = docker_package.from_env()
    for container in containers:
        client.api.kill(container)
    client.close()


async def reaches(s: Stage, instance: str, address: str) -> bool:
    return await succeeds(s, instance, f"import socket; socket.create_connection(({address!r}, 8080), 1)")


async def succeeds(s: Stage, instance: str, script: str) -> bool:
    """Whether a Python script inside the instance ends without an error."""
    return (await run_inside(s, instance, script))[0] == 0


async def run_inside(s: Stage, instance: str, script: str) -> tuple[int, bytes]:
    """Exit code and output of a Python script inside the instance."""

    def run() -> tuple[int, bytes]:
        client = docker_package.from_env()
        code, output = client.containers.get(f"cs-{s.node[:8]}-{instance}").exec_run(["python3", "-c", script])
        client.close()
        return int(code), bytes(output)

    return await asyncio.to_thread(run)


def networks_like(part: str) -> dict[str, bool]:
    """Group networks with `part` in their name, and whether the engine keeps them from going out."""
    client = docker_package.from_env()
    found = {
        n.name: n.attrs["Internal"] for n in client.networks.list() if part in n.name and n.name.startswith("csn-")
    }
    client.close()
    return found


async def test_a_udp_port_is_published_by_the_engine(tmp_path: Path) -> None:
    echo = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 9999))\n"
        "while True: data, sender = s.recvfrom(100); s.sendto(data, sender)\n"
    )
    files = {"src/Dockerfile": 'FROM python:3.9\nCOPY echo.py /\nCMD ["python3", "/echo.py"]\n', "src/echo.py": echo}
    async with stage(tmp_path) as s, s.agent() as agent:
        descriptor, _ = service("", ports=(ContainerPort(9999, "udp"),), mem_requirement=32)
        started = await agent.runner.start(start_command("one", s.shelf.put(descriptor, files)))
        binding = started.report.ports[0]
        assert binding.protocol == "udp"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("127.0.0.1", binding.port))

            async def answered() -> bytes:
                try:
                    client.send(b"ping")
                    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 100), 0.3)
                except OSError:  # TimeoutError is one: the service is not up yet
                    return b""

            assert await until(answered) == b"ping"

        await agent.runner.stop(link.Stop("c", "one"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
            thief.bind(("127.0.0.1", binding.port))
            again = await agent.runner.restart(link.Restart("c", "one"))
        assert again.report.reason == "port-taken"
        assert again.report.ports[0].port != binding.port


async def test_an_image_archive_is_loaded_and_cannot_rename_our_images(tmp_path: Path, base_image: str) -> None:
    def saved_as(tag: str) -> bytes:
        client = docker_package.from_env()
        client.api.tag(base_image, *tag.split(":"))
        data = b"".join(client.api.get_image(tag))
        client.api.remove_image(tag)
        client.close()
        return data

    def known(tag: str) -> bool:
        client = docker_package.from_env()
        found = bool(client.api.images(name=tag))
        client.close()
        return found

    async with stage(tmp_path) as s, s.agent() as agent:
        tag = f"intruder-{s.node[:8]}:latest"
        artifact = Artifact("image", "OCIImage", "image.tar")
        descriptor, _ = service("", artifacts=(artifact,), directory=None, ports=())
        digest = s.shelf.put(descriptor, {"image.tar": await asyncio.to_thread(saved_as, tag)})
        assert "build" in (await agent.runner.start(start_command("one", digest))).timings_ms
        assert await s.runtime.built([digest]) == {digest}
        assert not await asyncio.to_thread(known, tag)


async def test_an_image_that_somebody_deletes_is_no_longer_told_as_built(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(WEB, WEB_FILES)
        await agent.runner.start(start_command("one", digest))
        await agent.runner.remove(link.Remove("c", "one"))
        assert (await agent.resources()).built == (digest,)
        client = docker_package.from_env()
        await asyncio.to_thread(client.api.remove_image, image_tag(digest, None), force=True)
        client.close()

        async def is_told() -> bool:
            return (await agent.resources()).built == ()

        await until(is_told)


async def test_a_build_ends_with_its_deadline(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.shelf.put(WEB, {"src/Dockerfile": "FROM busybox\nRUN sleep 100\n"})
        before = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            await agent.runner.start(start_command("one", digest, deadline_s=2.0))
        assert asyncio.get_running_loop().time() - before < 8
        assert agent.reports() == ()


async def test_the_limits_are_the_engine_s(tmp_path: Path) -> None:
    relaxed = structs.replace(WEB, relaxations=Relaxations(("SETUID",), 300))
    async with stage(tmp_path) as s, s.agent() as agent:
        agent.runner.region_allows = Allowed(("SETUID",), 300)
        await agent.runner.start(start_command("one", s.shelf.put(WEB, WEB_FILES)))
        await agent.runner.start(start_command("two", s.shelf.put(relaxed, WEB_FILES)))
        client = docker_package.from_env()
        two = client.containers.get(f"cs-{s.node[:8]}-two").attrs["HostConfig"]
        host = client.containers.get(f"cs-{s.node[:8]}-one").attrs["HostConfig"]
        client.close()
        assert (host["Memory"], host["MemorySwap"], host["CapDrop"]) == (16_000_000, 16_000_000, ["ALL"])
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert not host["PortBindings"]
        assert (host["PidsLimit"], host["CapAdd"]) == (256, None)
        assert (two["PidsLimit"], two["CapAdd"], two["CapDrop"]) == (300, ["SETUID"], ["ALL"])


async def test_without_an_engine_the_problem_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        async with running_docker(DockerConfig(url=f"unix://{tmp_path}/absent.sock"), "0" * 40) as runtime:
            await runtime.capabilities()
    assert "docker" in caught.value.fix
