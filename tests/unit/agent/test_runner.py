"""The whole agent over the in-process runtime: commands, capacity, time, adoption, an engine that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from agent.journal import Entry, Journal
from agent.memory_runtime import MemoryRuntime, running_memory_runtime
from agent.runtime import PORT_TAKEN, Condition, Workload
from protocol import link
from protocol.causes import Cause, cause_of
from protocol.instances import InstanceReport, Progress, State
from protocol.parameters import Constraint, Parameter
from protocol.problems import (
    BadRequest,
    BuildFailed,
    Conflict,
    ContentNotFound,
    DeadlineExceeded,
    DiskFull,
    EngineUnavailable,
    NoCapacity,
    Problem,
    RelaxationRefused,
    StartFailed,
    UnknownInstance,
)
from protocol.service import (
    HARDENED,
    Allowed,
    Artifact,
    ContainerPort,
    PlacementPolicy,
    Relaxations,
    ServiceDescriptor,
    Variant,
)
from tests.agent_stage import Clock, Shelf, an_agent, start_command
from tests.waiting import until

NODE = "0" * 40
SERVICE = ServiceDescriptor(
    id="od01",
    name="Object detection",
    kind="docker_container",
    category="/image",
    mem_requirement=100,
    entry="x.yaml",
    directory="src",
    alive_time=10,
    ports=(ContainerPort(8080),),
)


class Stage:
    def __init__(self, tmp_path: Path, runtime: MemoryRuntime) -> None:
        self.tmp_path = tmp_path
        self.runtime = runtime
        self.shelf = Shelf(tmp_path)
        self.clock = Clock()

    @asynccontextmanager
    async def agent(self, **settings: Any) -> AsyncIterator[Any]:
        async with an_agent(self.tmp_path, self.shelf, self.runtime, clock=self.clock, **settings) as agent:
            yield agent

    def put(self, *, remote: bool = False, **changes: Any) -> str:
        return self.shelf.put(structs.replace(SERVICE, **changes), remote=remote)


@asynccontextmanager
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_memory_runtime(NODE) as runtime:
        yield Stage(tmp_path, runtime)


async def call(report: InstanceReport) -> bytes:
    """What the instance answers through its stable address; empty if the connection is reset."""
    try:
        reader, writer = await asyncio.open_connection(report.host, report.ports[0].port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
    except ConnectionError:
        return b""
    return answer.rpartition(b"\r\n")[2]


async def test_a_start_fetches_builds_and_answers(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.put(remote=True)
        changes: list[State] = []
        agent.instances.subscribe(lambda report: changes.append(report.state))
        started = await agent.runner.start(start_command("one", digest))
        assert changes == [State.FETCHING, State.BUILDING, State.STARTING, State.RUNNING]
        assert (started.warm, started.report.service_id) == (False, "od01")
        assert await call(started.report) == b"one"
        assert s.shelf.pins[digest] == {"instance:one"}
        assert (await agent.resources()).memory_free == 2048 - 100


async def test_a_repeated_start_is_the_same_start(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.put()
        s.runtime.behaviour.start_s = 0.05
        both = await asyncio.gather(*[agent.runner.start(start_command("one", digest)) for _ in range(2)])
        assert both[0] == both[1]
        assert (await agent.runner.start(start_command("one", digest))).warm
        assert len(await s.runtime.adopt()) == 1
        with pytest.raises(Conflict):
            await agent.runner.start(start_command("one", "sha256:" + "0" * 64))


async def test_memory_is_never_promised_twice(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent(memory_mb=250) as agent:
        digest = s.put()
        s.runtime.behaviour.start_s = 0.02
        results = await asyncio.gather(
            *[agent.runner.start(start_command(f"i{n}", digest)) for n in range(5)], return_exceptions=True
        )
        assert sum(isinstance(result, NoCapacity) for result in results) == 3
        assert agent.instances.free == 50
        assert len(agent.reports()) == 2
        running = agent.reports()[0].instance
        await agent.runner.stop(link.Stop("c", running))
        await agent.runner.start(start_command("late", digest))
        with pytest.raises(NoCapacity):
            await agent.runner.restart(link.Restart("c", running))


async def test_a_required_label_is_the_agents_own_to_check(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent(labels={"site": "campus"}) as agent:
        await agent.runner.start(
            start_command("here", s.put(placement=PlacementPolicy(required_labels={"site": "campus"})))
        )
        elsewhere = s.put(placement=PlacementPolicy(required_labels={"gpu": "yes", "site": "campus"}))
        with pytest.raises(NoCapacity, match="label gpu=yes is required"):
            await agent.runner.start(start_command("elsewhere", elsewhere))
        assert s.runtime.builds == 1


@pytest.mark.parametrize(
    ("region", "machine", "cause", "where"),
    [
        (Allowed(("SETUID",), 256), Allowed(), Cause.POLICY, "[controller]"),
        (HARDENED, Allowed(("SETUID", "SETGID"), 1000), Cause.POLICY, "[controller]"),
        (Allowed(("SETUID", "SETGID"), 1000), Allowed(("SETUID",), 256), Cause.CONFINEMENT, "[agent.docker]"),
    ],
    ids=["the region too little", "the machine alone", "the machine too little"],
)
async def test_what_a_service_wants_beyond_the_defaults_must_be_allowed(
    tmp_path: Path, region: Allowed, machine: Allowed, cause: Cause, where: str
) -> None:
    async with stage(tmp_path) as s, s.agent(allowed=machine) as agent:
        agent.runner.region_allows = region
        for wanted, said, line in (
            (Relaxations(("SETUID", "SETGID")), "SETGID", "allow_capabilities = "),
            (Relaxations(max_processes=1000), "1000 processes, 256", "max_processes = 1000"),
        ):
            with pytest.raises(RelaxationRefused, match=said) as caught:
                await agent.runner.start(start_command("one", s.put(relaxations=wanted)))
            assert where in caught.value.fix
            assert line in caught.value.fix
            assert cause_of(caught.value) is cause
        assert (agent.reports(), s.runtime.builds) == ((), 0), "refused before anything is built"


async def test_a_machine_that_says_nothing_allows_what_the_region_does(tmp_path: Path) -> None:
    wanted = Relaxations(("SETUID", "SETGID"), 1000)
    async with stage(tmp_path) as s, s.agent() as agent:
        agent.runner.region_allows = Allowed(("SETUID", "SETGID"), 1000)
        await agent.runner.start(start_command("one", s.put(relaxations=wanted)))
        assert s.runtime._containers["one"].workload.relaxations == wanted


async def test_why_an_agent_cannot_is_said_in_one_word(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent(memory_mb=50) as agent:
        with pytest.raises(ContentNotFound) as nowhere:
            await agent.runner.start(start_command("one", "sha256:" + "0" * 64))
        with pytest.raises(NoCapacity) as full:
            await agent.runner.start(start_command("two", s.put()))
        assert [cause_of(error.value) for error in (nowhere, full)] == [Cause.CONTENT, Cause.MEMORY]


async def test_one_archive_is_built_once_for_many(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.put(remote=True)
        s.runtime.behaviour.build_s = 0.05
        await asyncio.gather(*[agent.runner.start(start_command(f"i{n}", digest)) for n in range(4)])
        assert (s.runtime.builds, s.shelf.fetches) == (1, 1)
        await agent.runner.start(start_command("again", digest, force_rebuild=True))
        assert s.runtime.builds == 2


async def test_no_more_builds_and_starts_run_at_once_than_the_operator_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path) as s, s.agent(concurrent_builds=1, concurrent_starts=2) as agent:
        most = {"prepare": 0, "start": 0}

        def counted(call: str) -> None:
            work, running = getattr(s.runtime, call), 0

            async def count(*arguments: Any, **options: Any) -> Any:
                nonlocal running
                running += 1
                most[call] = max(most[call], running)
                try:
                    return await work(*arguments, **options)
                finally:
                    running -= 1

            monkeypatch.setattr(s.runtime, call, count)

        counted("prepare")
        counted("start")
        s.runtime.behaviour.build_s = s.runtime.behaviour.start_s = 0.03
        many = [start_command(f"i{n}", s.put()) for n in range(4)]
        await asyncio.gather(*map(agent.runner.start, many))
        assert most["prepare"] == 1
        built = [start_command(f"again{n}", command.digest) for n, command in enumerate(many)]
        await asyncio.gather(*map(agent.runner.start, built))
        assert most["start"] == 2


@pytest.mark.parametrize(
    ("call_that_fails", "problem"),
    [
        ("build", BuildFailed("no", log=["a line"])),
        ("start", StartFailed("no", reason="engine-refused", log=[])),
        ("gateways", EngineUnavailable("no")),
    ],
)
async def test_a_start_that_fails_leaves_nothing(tmp_path: Path, call_that_fails: str, problem: Problem) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.put()
        s.runtime.fail_next(call_that_fails, problem)
        reports: list[InstanceReport] = []
        agent.instances.subscribe(reports.append)
        with capture_logs() as said, pytest.raises(type(problem)):
            await agent.runner.start(start_command("one", digest))
        assert (reports[-1].state, reports[-1].reason) == (
            State.FAILED,
            problem.extra.get("reason", problem.slug),
        )
        told = [line for line in said if line["log_level"] in ("warning", "error")]
        assert [(line["event"], line["reason"]) for line in told] == [("start-failed", reports[-1].reason)]
        assert agent.reports() == ()
        assert agent.instances.free == 2048
        assert await s.runtime.adopt() == []
        assert s.shelf.pins.get(digest, set()) == set()
        assert (await agent.runner.start(start_command("one", digest))).report.state is State.RUNNING


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ({"digest": "sha256:" + "0" * 64}, ContentNotFound),
        ({"instance": "../escape"}, BadRequest),
        ({"parameters": {"nope": "1"}}, BadRequest),
        ({"variant": "nope"}, BadRequest),
    ],
)
async def test_a_request_that_cannot_be_met_is_refused(
    tmp_path: Path, command: dict[str, Any], problem: type[Problem]
) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        with pytest.raises(problem):
            await agent.runner.start(structs.replace(start_command("one", s.put()), **command))
        assert agent.reports() == ()


async def test_parameters_and_variant_reach_the_service(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        fast = Variant(mem_requirement=300, environment={"MODEL": "small"})
        digest = s.put(parameters={"LANG": Parameter("en"), "N": Parameter("1", "integer")}, variants={"fast": fast})
        command = start_command("one", digest, parameters={"N": "2"}, variant="fast")
        started = await agent.runner.start(command)
        workload = agent.instances.get("one").entry.workload
        assert isinstance(workload, Workload)
        assert workload.environment == {"LANG": "en", "N": "2", "MODEL": "small", "name": "one"}
        assert (started.report.mem, started.report.variant) == (300, "fast")


async def test_a_parameter_outside_its_constraint_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.put(parameters={"N": Parameter("1", "integer", (Constraint("in_range", (1, 8)),))})
        with pytest.raises(BadRequest, match="N"):
            await agent.runner.start(start_command("one", digest, parameters={"N": "9"}))
        assert agent.reports() == ()


async def test_a_start_has_a_deadline(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        with pytest.raises(DeadlineExceeded):
            await agent.runner.start(start_command("one", s.put(wait_for_start=True), deadline_s=0.1))
        assert await s.runtime.adopt() == []


@pytest.mark.parametrize(
    ("wait_for_start", "awaited"), [(False, "port 8080/tcp does not answer"), (True, "no alive message yet")]
)
async def test_a_start_that_is_never_ready_says_what_it_awaits_and_fails(
    tmp_path: Path, wait_for_start: bool, awaited: str
) -> None:
    async with stage(tmp_path) as s, s.agent(ready_timeout_s=30) as agent:
        s.runtime.behaviour.deaf = True
        reports: list[InstanceReport] = []
        agent.instances.subscribe(reports.append)
        steps: list[Progress] = []
        command = start_command("one", s.put(wait_for_start=wait_for_start))
        start = asyncio.create_task(agent.runner.start(command, steps.append))
        await until(lambda: steps and steps[-1] == Progress("ready", awaited))
        await until(lambda: any(r.reason == awaited and r.log == ("started",) for r in reports))
        assert agent.reports()[0].state is State.STARTING
        s.clock.now += 31
        with pytest.raises(StartFailed, match=awaited) as failed:
            await start
        assert (failed.value.extra["reason"], failed.value.extra["log"]) == ("not-ready", ["started"])
        assert "--wait" in failed.value.fix
        assert (reports[-1].state, reports[-1].reason) == (State.FAILED, "not-ready")
        assert (agent.reports(), await s.runtime.adopt(), agent.instances.free) == ((), [], 2048)


async def test_the_deadline_of_a_start_tells_what_was_awaited(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        with pytest.raises(DeadlineExceeded, match="no alive message yet") as late:
            await agent.runner.start(start_command("one", s.put(wait_for_start=True), deadline_s=1.5))
        assert late.value.extra["log"] == ["started"]
        assert "--wait" in late.value.fix


async def test_a_restart_that_is_never_ready_keeps_its_identity(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        await agent.runner.start(start_command("one", s.put()))
        await agent.runner.stop(link.Stop("c", "one"))
        s.runtime.behaviour.deaf = True
        restart = asyncio.create_task(agent.runner.restart(link.Restart("c", "one")))
        await until(lambda: agent.reports()[0].state is State.STARTING)
        s.clock.now += 301
        with pytest.raises(StartFailed):
            await restart
        assert (agent.reports()[0].state, agent.reports()[0].reason) == (State.FAILED, "not-ready")


async def test_a_restart_makes_the_image_of_its_variant_again_if_somebody_deleted_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        image = Artifact("small", "OCIImage", "small.tar")
        digest = s.put(artifacts=(image,), variants={"fast": Variant(artifact="small")})
        async with s.agent() as agent:
            await agent.runner.start(start_command("one", digest, variant="fast"))
            await agent.runner.stop(link.Stop("c", "one"))
        s.runtime.prune()
        assert await s.runtime.image_of(digest, "small") is None
        async with s.agent() as agent:
            told: list[str] = []
            agent.instances.subscribe(lambda report: told.append(report.reason))
            again = await agent.runner.restart(link.Restart("c", "one"))
            assert again.report.state is State.RUNNING
            assert {"build", "start", "ready"} <= set(again.timings_ms)
            assert "its image was deleted and is made again" in told
            assert await s.runtime.image_of(digest, "small") is not None
            assert await s.runtime.image_of(digest, None) is None
            assert await call(again.report) == b"one"


async def test_what_is_removed_while_its_image_is_made_again_leaves_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.put()
        await agent.runner.start(start_command("one", digest))
        await agent.runner.stop(link.Stop("c", "one"))
        s.runtime.prune()
        s.runtime.behaviour.build_s = 0.1
        restart = asyncio.create_task(agent.runner.restart(link.Restart("c", "one")))
        await until(lambda: agent.reports()[0].reason == "its image was deleted and is made again")
        await agent.runner.remove(link.Remove("c", "one"))
        with pytest.raises(StartFailed):
            await restart
        assert (agent.reports(), agent.instances._journal.entries()) == ((), [])
        assert (await s.runtime.adopt(), s.shelf.pins[digest]) == ([], set())


async def test_an_image_that_cannot_be_made_again_is_the_reason_why_a_restart_failed(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        await agent.runner.start(start_command("one", s.put()))
        await agent.runner.stop(link.Stop("c", "one"))
        s.runtime.prune()
        s.runtime.fail_next("build", BuildFailed("no base image", log=["a line"]))
        with pytest.raises(BuildFailed):
            await agent.runner.restart(link.Restart("c", "one"))
        (report,) = agent.reports()
        assert (report.state, report.reason, report.log) == (State.FAILED, "build-failed", ("a line",))
        assert (await agent.runner.restart(link.Restart("c", "one"))).report.state is State.RUNNING


async def test_a_tcp_port_that_somebody_took_while_the_agent_was_away_is_replaced_and_told(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        async with s.agent() as agent:
            for instance in ("one", "two"):
                await agent.runner.start(start_command(instance, s.put(alive_time=0)))
            await agent.runner.stop(link.Stop("c", "two"))
            before = {report.instance: report for report in agent.reports()}
        async with AsyncExitStack() as others:
            for report in before.values():
                taken = await asyncio.start_server(lambda _, writer: writer.close(), report.host, report.ports[0].port)
                await others.enter_async_context(taken)
            async with s.agent() as agent:
                after = {report.instance: report for report in agent.reports()}
        assert (after["one"].state, after["one"].reason) == (State.RUNNING, "port-taken")
        assert (after["two"].state, after["two"].reason) == (State.STOPPED, before["two"].reason)
        async with s.agent() as agent:
            again = {report.instance: report for report in agent.reports()}
            for instance, report in again.items():
                assert report.ports == after[instance].ports, "what was told once stays"
                assert report.ports[0].port != before[instance].ports[0].port
            assert await call(again["one"]) == b"one"


@pytest.mark.parametrize("first", [True, False], ids=["first-start", "restart"])
async def test_a_udp_port_that_somebody_took_is_replaced_once(tmp_path: Path, first: bool) -> None:
    taken = StartFailed("address already in use", reason=PORT_TAKEN, log=[])
    ports = (ContainerPort(8080), ContainerPort(9999, "udp"))
    async with stage(tmp_path) as s, s.agent() as agent:
        if first:
            s.runtime.fail_next("start", taken)
            started = await agent.runner.start(start_command("one", s.put(ports=ports)))
            assert started.report.reason == "", "nobody knew the port that it did not get"
        else:
            before = (await agent.runner.start(start_command("one", s.put(ports=ports)))).report
            await agent.runner.stop(link.Stop("c", "one"))
            s.runtime.fail_next("start", taken)
            started = await agent.runner.restart(link.Restart("c", "one"))
            assert started.report.reason == "port-taken"
            assert started.report.ports[0] == before.ports[0]
            assert started.report.ports[1].port != before.ports[1].port
        (published,) = s.runtime._containers["one"].workload.published
        assert published.port == started.report.ports[1].port
        await agent.runner.stop(link.Stop("c", "one"))
        for _ in range(2):
            s.runtime.fail_next("start", taken)
        with pytest.raises(StartFailed):
            await agent.runner.restart(link.Restart("c", "one"))
        assert agent.reports()[0].reason == "port-taken"


async def test_the_alive_message_means_ready_where_described(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        start = asyncio.create_task(agent.runner.start(start_command("one", s.put(wait_for_start=True))))
        await until(lambda: agent.reports() and agent.reports()[0].state is State.STARTING)
        agent.runner.on_alive("one")
        assert (await start).report.state is State.RUNNING


async def test_a_start_can_be_abandoned(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        start = asyncio.create_task(agent.runner.start(start_command("one", s.put(wait_for_start=True))))
        await until(lambda: agent.reports() and agent.reports()[0].state is State.STARTING)
        await agent.runner.stop(link.Stop("c", "one"))
        with pytest.raises(Conflict):
            await start
        assert (agent.reports(), await s.runtime.adopt()) == ((), [])


async def test_an_impatient_caller_does_not_end_the_start(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        s.runtime.behaviour.start_s = 0.05
        start = asyncio.create_task(agent.runner.start(start_command("one", s.put())))
        await until(agent.reports)
        start.cancel()
        await until(lambda: agent.reports()[0].state is State.RUNNING)


async def test_an_instance_expires_and_may_be_restarted_at_the_same_address(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        first = (await agent.runner.start(start_command("one", s.put()))).report
        assert first.expires_at == s.clock.now + 10
        s.clock.now += 11
        await until(lambda: agent.reports()[0].state is State.STOPPED)
        assert agent.reports()[0].reason == "expired"
        assert await call(first) == b""
        again = (await agent.runner.restart(link.Restart("c", "one"))).report
        assert again.ports == first.ports
        assert await call(again) == b"one"
        await agent.runner.stop(link.Stop("c", "one"))
        s.clock.now += 3601
        await until(lambda: agent.reports() == ())
        with pytest.raises(UnknownInstance):
            await agent.runner.restart(link.Restart("c", "one"))


async def test_what_is_kept_warm_is_frozen_at_its_end_and_woken_by_the_next_client(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        report = (await agent.runner.start(start_command("one", s.put()))).report
        await agent.runner.keep(link.Keep("c", "one", 600))
        for _ in range(2):
            s.clock.now += 11
            await until(lambda: condition(s) is Condition.PAUSED)
            kept = agent.reports()[0]
            assert (kept.state, kept.reason, kept.expires_at) == (State.PAUSED, "kept-warm", s.clock.now + 600)
            assert await call(report) == b"one"
            woken = agent.reports()[0]
            assert (woken.state, woken.expires_at) == (State.RUNNING, s.clock.now + 10)
        s.clock.now += 11
        await until(lambda: condition(s) is Condition.PAUSED)
        s.clock.now += 601
        await until(lambda: agent.reports()[0].state is State.STOPPED)
        assert agent.reports()[0].reason == "expired"
        await until(lambda: condition(s) is Condition.EXITED)


async def test_what_is_frozen_wakes_when_it_is_told_that_a_client_comes(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        await agent.runner.start(start_command("one", s.put()))
        await agent.runner.keep(link.Keep("c", "one", 600))
        s.clock.now += 11
        await until(lambda: condition(s) is Condition.PAUSED)
        woken = await agent.runner.wake(link.Wake("c", "one"))
        assert (woken.state, woken.expires_at) == (State.RUNNING, s.clock.now + 10), "a life once more"
        await until(lambda: condition(s) is Condition.RUNNING)
        since = woken.started_at
        assert (await agent.runner.wake(link.Wake("c", "one"))).started_at == since, "nothing happens to one that runs"
        with pytest.raises(UnknownInstance):
            await agent.runner.wake(link.Wake("c", "nobody"))


async def test_what_is_kept_warm_makes_room_the_longest_frozen_first(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent(memory_mb=300) as agent:
        digest = s.put()
        for name in ("old", "new", "used"):
            await agent.runner.start(start_command(name, digest, alive_time=0 if name == "used" else 10))
            await agent.runner.keep(link.Keep("c", name, 600))
            s.clock.now += 6
        for name in ("old", "new"):
            s.clock.now += 11
            await until(lambda name=name: state_of(agent, name) is State.PAUSED)
        assert (await agent.resources()).memory_free == 200
        with pytest.raises(NoCapacity):
            await agent.runner.start(start_command("huge", s.put(mem_requirement=201)))
        assert (state_of(agent, "old"), state_of(agent, "new")) == (State.PAUSED, State.PAUSED)
        await agent.runner.start(start_command("next", digest))
        assert [(r.instance, r.reason) for r in agent.reports() if r.state is State.STOPPED] == [("old", "evicted")]
        assert (state_of(agent, "new"), state_of(agent, "used")) == (State.PAUSED, State.RUNNING)
        await agent.runner.restart(link.Restart("c", "old"))
        assert state_of(agent, "new") is State.STOPPED


def state_of(agent: Any, instance: str) -> State:
    found: State = agent.instances.get(instance).state
    return found


async def test_a_log_outlives_what_wrote_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        await agent.runner.start(start_command("one", s.put()))
        assert (await agent.runner.log(link.ReadLog("c", "one", 10)))[1] == ("started",)
        await s.runtime.crash("one", 3)
        await until(lambda: state_of(agent, "one") is State.FAILED)
        assert (await agent.runner.log(link.ReadLog("c", "one", 1)))[1] == ("ends with 3",)
        await s.runtime.remove("one")
        assert (await agent.runner.log(link.ReadLog("c", "one", 10)))[1] == ("started", "ends with 3")


async def test_traffic_and_extension_prolong_life(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        report = (await agent.runner.start(start_command("one", s.put(), alive_time=20))).report
        s.clock.now += 5
        assert await call(report) == b"one"
        assert agent.reports()[0].expires_at == s.clock.now + 20
        await agent.runner.extend(link.Extend("c", "one", 100))
        assert agent.reports()[0].expires_at == s.clock.now + 100


async def test_an_unused_service_is_frozen_and_woken_by_whoever_connects_or_sends(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent(pause_after_s=5.0) as agent:
        report = (await agent.runner.start(start_command("one", s.put(alive_time=0)))).report
        reader, writer = await asyncio.open_connection(report.host, report.ports[0].port)
        for _ in range(2):
            s.clock.now += 6
            await until(lambda: agent.reports()[0].state is State.PAUSED)
            await until(lambda: condition(s) is Condition.PAUSED)
            assert b"one" in await call(report)
            await until(lambda: agent.reports()[0].state is State.RUNNING)
        s.clock.now += 6
        await until(lambda: condition(s) is Condition.PAUSED)
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping", "a connection of before wakes it too"
        writer.close()
        s.clock.now += 3
        agent.runner.tick()
        assert agent.reports()[0].state is State.RUNNING, "it was used"


async def test_a_frozen_service_still_expires(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent(pause_after_s=5.0) as agent:
        await agent.runner.start(start_command("one", s.put()))
        s.clock.now += 6
        await until(lambda: condition(s) is Condition.PAUSED)
        s.clock.now += 5
        await until(lambda: agent.reports()[0].state is State.STOPPED)
        assert agent.reports()[0].reason == "expired"


async def test_a_service_whose_use_cannot_be_seen_is_not_frozen(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent(pause_after_s=5.0) as agent:
        both = (ContainerPort(8080), ContainerPort(8081, "udp"))
        await agent.runner.start(start_command("one", s.put(alive_time=0, ports=both)))
        s.clock.now += 60
        agent.runner.tick()
        assert agent.reports()[0].state is State.RUNNING


def condition(s: Stage) -> Condition:
    return s.runtime._containers["one"].condition


async def test_an_end_by_itself_is_told_with_its_log(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        await agent.runner.start(start_command("one", s.put()))
        await s.runtime.crash("one", 137, out_of_memory=True)
        await until(lambda: agent.reports()[0].state is State.FAILED)
        assert agent.reports()[0].reason == "out-of-memory"
        assert agent.reports()[0].log[-1] == "ends with 137"
        assert (await agent.runner.restart(link.Restart("c", "one"))).report.state is State.RUNNING


async def test_after_an_end_without_goodbye_everything_is_adopted(tmp_path: Path) -> None:
    """The agent's block ends without stopping anything: for the runtime that is the same as kill -9."""
    async with stage(tmp_path) as s:
        async with s.agent() as agent:
            before = (await agent.runner.start(start_command("one", s.put()))).report
            ended = await agent.runner.start(start_command("two", s.put(name="other")))
            pending = asyncio.create_task(agent.runner.start(start_command("half", s.put(wait_for_start=True))))
            await until(lambda: any(r.state is State.STARTING for r in agent.reports()))
        with pytest.raises(asyncio.CancelledError):
            await pending
        await s.runtime.crash(ended.report.instance, 1)
        async with s.agent() as agent:
            reports = {report.instance: report for report in agent.reports()}
            assert reports.keys() == {"one", "two"}
            assert reports["one"] == before
            assert (reports["two"].state, reports["two"].reason) == (State.FAILED, "exited 1")
            assert await call(before) == b"one"
            assert await s.runtime.inspect("half") is None, "nobody waits for it any more"
            s.clock.now += 11
            await until(lambda: agent.reports()[0].state is State.STOPPED)


async def test_an_engine_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        digest = s.put()
        for instance in ("one", "two"):
            await agent.runner.start(start_command(instance, digest))
        s.runtime.go_away()
        await until(lambda: {r.state for r in agent.reports()} == {State.UNKNOWN})
        with pytest.raises(EngineUnavailable):
            await agent.runner.start(start_command("three", digest))
        await agent.runner.stop(link.Stop("c", "one"))
        s.runtime.come_back()
        await until(lambda: [r.state for r in agent.reports()] == [State.STOPPED, State.RUNNING])

        async def stopped() -> bool:
            seen = await s.runtime.inspect("one")
            return seen is not None and seen.exit_code == 143

        await until(stopped)


async def test_what_an_engine_took_along_runs_again_at_the_same_address_for_the_rest_of_its_time(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        for instance in ("one", "two", "three"):
            await agent.runner.start(start_command(instance, s.put(alive_time=10)))
        before = (await agent.runner.extend(link.Extend("c", "one", alive_time=60))).expires_at
        await agent.runner.stop(link.Stop("c", "two"))
        address = agent.reports()[0].ports
        await s.runtime.shut_down()
        await until(lambda: agent.reports()[0].state is State.UNKNOWN)
        s.clock.now += 20
        s.runtime.come_back()
        await until(lambda: agent.reports()[0].state is State.RUNNING)
        one, two, three = agent.reports()
        assert (one.ports, one.expires_at) == (address, before)
        assert await call(one) == b"one"
        assert (two.state, two.reason) == (State.STOPPED, "stopped-by-client")
        assert (three.state, three.reason) == (State.STOPPED, "expired"), "its time was over before the engine was back"


async def test_what_ran_on_a_machine_that_lost_its_power_runs_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        async with s.agent() as agent:
            before = (await agent.runner.start(start_command("one", s.put()))).report
        await s.runtime.shut_down(255)
        async with s.agent() as agent:
            assert [(r.state, r.reason) for r in agent.reports()] == [(State.UNKNOWN, "engine-away")]
            s.runtime.come_back()
            await until(lambda: agent.reports()[0].state is State.RUNNING)
            assert agent.reports()[0] == before
            assert await call(before) == b"one"


async def test_an_engine_that_goes_again_in_between_is_waited_for_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        await agent.runner.start(start_command("one", s.put()))
        await s.runtime.shut_down()
        await until(lambda: agent.reports()[0].state is State.UNKNOWN)
        s.runtime.fail_next("start", EngineUnavailable("it has gone again"))
        s.runtime.come_back()
        await until(lambda: agent.reports()[0].state is State.RUNNING)
        assert await call(agent.reports()[0]) == b"one"


async def test_an_end_that_the_engine_did_not_tell_at_once_is_asked_for_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        await agent.runner.start(start_command("one", s.put()))
        s.runtime.fail_next("inspect", EngineUnavailable("too slow"))
        await s.runtime.crash("one", 3)
        await until(lambda: agent.reports()[0].state is State.FAILED)
        assert agent.reports()[0].reason == "exited 3"


async def test_setting_the_clock_of_the_machine_neither_ends_nor_prolongs_a_life(tmp_path: Path) -> None:
    wall, monotonic = Clock(5_000.0), Clock(0.0)
    async with stage(tmp_path) as s:
        async with an_agent(tmp_path, s.shelf, s.runtime, clock=wall, monotonic=monotonic) as agent:
            await agent.runner.start(start_command("one", s.put(alive_time=60)))
            await agent.runner.start(start_command("two", s.put(alive_time=0)))
            for by_s in (86_400.0, -90_000.0):
                left = (agent.reports()[0].expires_at or 0) - wall.now
                wall.now += by_s
                await until(lambda left=left: (agent.reports()[0].expires_at or 0) - wall.now == left)  # type: ignore[misc]
                assert [r.state for r in agent.reports()] == [State.RUNNING, State.RUNNING]
                assert agent.reports()[1].expires_at is None
            told = agent.reports()
        async with an_agent(tmp_path, s.shelf, s.runtime, clock=wall, monotonic=monotonic) as agent:
            assert agent.reports() == told, "and so it is written"
            wall.now += 61
            monotonic.now += 61
            await until(lambda: agent.reports()[0].state is State.STOPPED)


async def test_a_wish_that_is_dropped_is_written_and_told(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        async with s.agent() as agent:
            await agent.runner.start(start_command("one", s.put(alive_time=10)))
            await agent.runner.extend(link.Extend("c", "one", alive_time=500))
            told: list[InstanceReport] = []
            agent.instances.subscribe(told.append)
            released = await agent.runner.extend(link.Extend("c", "one", alive_time=20, exact=True))
            assert told == [released]
        async with s.agent() as agent:
            assert agent.reports()[0].expires_at == s.clock.now + 20


async def test_without_a_runtime_the_agent_says_so(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    digest = shelf.put(SERVICE)
    async with an_agent(tmp_path, shelf) as agent:
        with pytest.raises(NoCapacity, match="no runtime"):
            await agent.runner.start(start_command("one", digest))


async def test_a_full_disk_stops_neither_time_nor_traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path) as s, s.agent() as agent:
        for instance in ("one", "two"):
            await agent.runner.start(start_command(instance, s.put(), alive_time=10))
        room = Journal.keep

        def full(self: Journal, entry: Entry) -> None:
            raise DiskFull("no space left on device")

        monkeypatch.setattr(Journal, "keep", full)
        agent.runner.on_traffic("one")
        s.clock.now += 30
        await until(lambda: {r.state for r in agent.reports()} == {State.STOPPED})
        await until(lambda: agent.instances.free == 2048)

        async def both_ended() -> bool:
            seen = [await s.runtime.inspect(instance) for instance in ("one", "two")]
            return all(one is not None and one.condition is not Condition.RUNNING for one in seen)

        await until(both_ended)
        monkeypatch.setattr(Journal, "keep", room)
        await until(lambda: not any(slot.unsaved for slot in agent.instances))
