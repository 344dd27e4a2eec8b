"""One controller and fake agents over real sockets: from a phone's request to an address, and back after a restart."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol.instances import StartRequest, State
from protocol.link import Extend, Remove, Wake
from protocol.problems import (
    AmbiguousService,
    BadRequest,
    BuildFailed,
    Conflict,
    ContentNotFound,
    DeadlineExceeded,
    EngineUnavailable,
    Forbidden,
    InvalidArchive,
    KeyNeeded,
    NoCapacity,
    NoMatchingService,
    Problem,
    Unavailable,
    UnknownInstance,
)
from protocol.records import Terms, VariantTerms
from region_controller import Caller
from tests.fake_agent import FakeAgent
from tests.one_region import OPERATOR, Site, a_service, key_of, node_of, running_site
from tests.waiting import until

MS = int(time.time() * 1000)


def an_agent(name: str = "agent", **options: Any) -> FakeAgent:
    return FakeAgent(node_of(name), "eu/de", **options)


def start(site: Site, **request: Any) -> Any:
    return site.controller.start(StartRequest(**{"service": "svc", **request}))


async def test_cold_then_warm(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        record = await site.publish(a_service())
        steps: list[str] = []
        cold, was_cold = await site.controller.start(StartRequest(service="svc"), lambda s: steps.append(s.phase))
        warm, was_warm = await start(site, service=record.digest)
        assert (was_cold, cold.start) == (True, "cold")
        assert (was_warm, warm.start) == (False, "warm")
        assert cold.instance == warm.instance
        assert cold.lease.token != warm.lease.token
        assert cold.url == f"http://127.0.0.1:{cold.port}"
        assert steps == ["resolve", "place", "build"]
        assert cold.timings_ms["build"] == 2.0
        assert set(cold.timings_ms) == {"resolve", "place", "fetch", "verify", "build", "start", "ready", "total"}
        assert "runs already" in warm.why
        assert len(agent.starts) == 1
        assert site.controller.stats().starts["warm"] == 1


async def test_fifty_phones_one_start(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        agent.gate.clear()
        phones = [asyncio.create_task(start(site)) for _ in range(50)]
        impatient = asyncio.create_task(start(site))
        await until(lambda: agent.starts)
        impatient.cancel()
        agent.gate.set()
        answers = [answer for answer, _ in await asyncio.gather(*phones)]
        assert len(agent.starts) == 1
        assert len({a.instance for a in answers}) == 1
        assert len({a.lease.token for a in answers}) == 50
        assert [a.start for a in answers].count("cold") == 1


async def test_a_start_by_description_goes_on_to_the_next_service_if_the_content_of_one_is_gone(
    tmp_path: Path,
) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        real = await site.publish(a_service("real", seq=MS + 1))
        for i in range(12):
            key = key_of(f"fake{i}")
            await site.publish(a_service(f"fake{i}", seq=MS + 100 + i, publisher=key), key)
        agent.failures += [ContentNotFound("nobody offers it") for _ in range(8)]
        with pytest.raises(Unavailable, match="nobody who has the archive"):
            await start(site, service=None, category="/text")
        assert len(agent.starts) == 8, "bounded"
        agent.failures += [ContentNotFound("nobody offers it") for _ in range(4)]
        answer, _ = await start(site, service=None, category="/text")
        assert answer.service.digest == real.digest
        assert len({command.digest for command in agent.starts}) == 13, "none was tried twice"
        agent.failures.append(ContentNotFound("nobody offers it"))
        with pytest.raises(Unavailable, match="nobody who has the archive"):
            await start(site, service="fake3")


async def test_failure_reaches_every_waiter_and_poisons_nothing(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        agent.failures.append(BuildFailed("RUN failed", log=["no such file"]))
        results = await asyncio.gather(start(site), start(site), start(site), return_exceptions=True)
        assert [type(r) for r in results] == [BuildFailed] * 3
        assert results[0].extra["log"] == ["no such file"]  # type: ignore[union-attr]
        answer, cold = await start(site)
        assert cold
        assert answer.start == "cold"


async def test_cancelled_opener_leaves_the_others(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        agent.gate.clear()
        opener = asyncio.create_task(start(site))
        await until(lambda: agent.starts)
        joiner = asyncio.create_task(start(site))
        opener.cancel()
        await asyncio.gather(opener, return_exceptions=True)
        agent.gate.set()
        answer, _ = await joiner
        assert answer.instance in agent.instances
        assert len(agent.starts) == 1


async def test_deadline_leaves_the_start_going(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        agent.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await start(site, wait_s=0.1)
        agent.gate.set()
        answer, cold = await start(site)
        assert not cold
        assert len(agent.starts) == 1
        assert answer.instance == agent.starts[0].instance


async def test_a_start_that_is_not_ready_says_why_and_is_given_up_when_nobody_waits(tmp_path: Path) -> None:
    async with running_site(tmp_path, unwanted_start_s=0.1) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        agent.gate.clear()
        phone = asyncio.create_task(start(site, wait_s=0.5, request_key="of the phone"))
        await until(lambda: agent.instances)
        instance = next(iter(agent.instances))
        await agent.report(instance, reason="port 9001/tcp does not answer", log=("Listening on 9000",))
        with pytest.raises(DeadlineExceeded, match="port 9001/tcp does not answer") as late:
            await phone
        assert late.value.extra["log"] == ["Listening on 9000"]
        assert "--wait" in late.value.fix
        [failed] = await until(lambda: [v for v in site.controller.instances() if v.state is State.FAILED])
        assert (failed.instance, failed.service.id, failed.reason) == (instance, "svc", "not-ready")
        assert failed.log == ("Listening on 9000",)
        await until(lambda: instance not in agent.instances and site.controller.agents()[0].memory_free == 1000)


async def test_a_failed_start_stays_on_the_list_until_it_is_removed(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        agent.failures.append(BuildFailed("RUN failed", log=["no such file"]))
        with pytest.raises(BuildFailed):
            await start(site)
        [failed] = site.controller.instances()
        assert (failed.service.id, failed.service.name, failed.state) == ("svc", "service", State.FAILED)
        assert (failed.reason, failed.log) == ("build-failed", ("no such file",))
        assert await site.controller.instance(failed.instance) == failed
        with pytest.raises(Conflict, match="never ran"):
            await site.controller.restart(failed.instance, Caller())
        removed = await site.controller.remove(failed.instance, Caller())
        assert (removed.state, site.controller.instances()) == (State.REMOVED, [])


@pytest.mark.parametrize(
    "refusal", [BadRequest("no such variant"), InvalidArchive("not a zip"), ContentNotFound("gone")]
)
async def test_a_refused_start_leaves_no_row(tmp_path: Path, refusal: Problem) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        agent.failures.append(refusal)
        with pytest.raises(Problem):
            await start(site)
        assert site.controller.instances() == []


async def test_a_start_under_way_is_named_and_what_its_agent_forgot_is_off_the_list(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        agent.gate.clear()
        phone = asyncio.create_task(start(site))
        await until(lambda: agent.instances)
        instance = next(iter(agent.instances))
        await agent.report(instance, state=State.FETCHING, service_id="", service_name="", mem=0)
        [fetched] = await until(lambda: [v for v in site.controller.instances() if v.state is State.FETCHING])
        assert (fetched.service.id, fetched.service.name, fetched.mem) == ("svc", "service", 100)
        await agent.report(instance, state=State.FAILED)
        await until(lambda: not site.controller.instances())
        phone.cancel()


async def test_removing_what_the_agent_does_not_know_any_more_succeeds(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        answer, _ = await start(site)
        await agent.report(answer.instance, state=State.FAILED, reason="exited 1")
        del agent.instances[answer.instance]
        await until(lambda: site.controller.instances()[0].state is State.FAILED)
        removed = await site.controller.remove(answer.instance, Caller(answer.lease.token))
        assert (removed.state, site.controller.instances()) == (State.REMOVED, [])


async def test_refusal_moves_on_to_the_next_agent(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path) as site,
        an_agent("big", memory=4000).linked(site.peer) as big,
        an_agent("small").linked(site.peer) as small,
    ):
        await site.publish(a_service())
        big.failures.append(NoCapacity("the disk is slow today"))
        answer, _ = await start(site)
        assert answer.agent == small.node
        assert len(big.starts) == 1


@pytest.mark.parametrize(
    "problem",
    [EngineUnavailable("dockerd is away"), ContentNotFound("nobody has it"), Unavailable("no answer", cause="content")],
)
async def test_what_one_agent_lacks_another_may_have(tmp_path: Path, problem: Problem) -> None:
    async with (
        running_site(tmp_path) as site,
        an_agent("big", memory=4000).linked(site.peer) as big,
        an_agent("small").linked(site.peer) as small,
    ):
        await site.publish(a_service())
        big.failures.append(problem)
        answer, _ = await start(site)
        assert (answer.agent, len(big.starts)) == (small.node, 1)


async def test_an_archive_that_nobody_has_is_no_lack_of_capacity(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        agent.failures.append(Unavailable("0 of 1 providers answered", cause="content"))
        with pytest.raises(Unavailable, match=r"nobody who has the archive of svc \(service\) answers") as caught:
            await start(site)
        assert caught.value.slug == "unavailable"
        assert "0 of 1 providers answered" in caught.value.extra["regions"]["eu/de"]


async def test_a_warm_instance_of_an_agent_that_is_gone_is_not_handed_out(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent("here").linked(site.peer) as here:
        await site.publish(a_service())
        async with an_agent("gone", memory=4000).linked(site.peer) as gone:
            first, _ = await start(site)
            assert first.agent == gone.node
        await until(lambda: len(site.controller.agents()) == 1)
        second, cold = await start(site)
        assert (second.agent, cold) == (here.node, True)
        assert second.instance != first.instance


async def test_required_labels_hold_wherever_and_whenever_the_service_was_published(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path) as site,
        an_agent("big", memory=4000).linked(site.peer) as big,
        an_agent("campus", site="campus").linked(site.peer) as campus,
    ):
        await site.publish(msgspec.structs.replace(a_service(), labels=(("site", "campus"),)))
        answer, _ = await start(site)
        assert answer.agent == campus.node
        await site.publish(msgspec.structs.replace(a_service("gpu"), labels=(("gpu", "yes"),)))
        with pytest.raises(NoCapacity) as caught:
            await start(site, service="gpu")
        assert "label gpu=yes is required" in caught.value.extra["regions"]["eu/de"]
        assert not big.starts


async def test_variants_are_shown_and_a_request_by_meaning_finds_who_has_the_one_it_names(tmp_path: Path) -> None:
    terms = Terms(variants=(VariantTerms("accurate", 0.89, 300.0, 900), VariantTerms("fast")))
    async with running_site(tmp_path) as site, an_agent(memory=1000).linked(site.peer) as agent:
        await site.publish(msgspec.structs.replace(a_service(), terms=terms, seq=MS - 1000))
        await site.publish(a_service("newer", seq=MS))
        async with site.phone.get("/v1/services?id=svc") as response:
            (shown,) = await response.json()
        assert shown["variants"] == [
            {"name": "accurate", "accuracy": 0.89, "latency_ms": 300.0, "mem": 900},
            {"name": "fast", "accuracy": None, "latency_ms": None, "mem": 100},
        ]
        answer, _ = await start(site, service=None, category="/text", variant="accurate")
        assert (answer.service.id, agent.starts[-1].variant) == ("svc", "accurate")


async def test_no_capacity_names_each_region_and_agent(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent(memory=50).linked(site.peer):
        await site.publish(a_service())
        with pytest.raises(NoCapacity) as caught:
            await start(site)
        assert "needs 100 MB" in caught.value.extra["regions"]["eu/de"]
        assert caught.value.retry_after == 5


async def test_never_more_than_fits(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent(memory=250).linked(site.peer) as agent:
        await site.publish(a_service())
        agent.gate.clear()
        starts = [asyncio.create_task(start(site, force_rebuild=True)) for _ in range(5)]
        await until(lambda: sum(t.done() for t in starts) == 3)
        assert len(agent.starts) == 2
        agent.gate.set()
        results = await asyncio.gather(*starts, return_exceptions=True)
        assert sum(isinstance(r, NoCapacity) for r in results) == 3


async def test_a_frozen_instance_is_woken_while_its_answer_is_on_the_way(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        cold, _ = await start(site)
        await start(site)
        assert not any(isinstance(c, Wake) for c in agent.commands), "one that runs is awake"
        await agent.report(cold.instance, state=State.PAUSED)
        await until(lambda: site.controller.instances()[0].state is State.PAUSED)
        warm, _ = await start(site)
        assert (warm.start, warm.instance) == ("warm", cold.instance)
        await until(lambda: agent.instances[cold.instance].state is State.RUNNING)
        assert any(isinstance(c, Wake) for c in agent.commands)


async def test_force_rebuild_starts_beside_the_running_one(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        first, _ = await start(site)
        second, cold = await start(site, force_rebuild=True)
        assert cold
        assert first.instance != second.instance
        assert agent.starts[1].force_rebuild
        assert agent.instances[first.instance].state is State.RUNNING


async def test_customised_instances_are_not_shared(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer):
        await site.publish(a_service())
        plain, _ = await start(site)
        german, _ = await start(site, parameters={"lang": "de"})
        again, _ = await start(site, parameters={"lang": "de"})
        assert plain.instance != german.instance == again.instance


async def test_warm_extends_to_what_was_asked(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        cold, _ = await start(site, alive_time=10)
        before = agent.instances[cold.instance].expires_at
        warm, _ = await start(site, alive_time=500)
        await until(lambda: any(isinstance(c, Extend) for c in agent.commands))
        after = agent.instances[cold.instance].expires_at
        assert before is not None
        assert after is not None
        assert warm.lease.expires_at is not None
        assert after >= warm.lease.expires_at > before
        forever, _ = await start(site, alive_time=0)
        await until(lambda: agent.instances[cold.instance].expires_at is None)
        assert forever.lease.expires_at is None


async def test_request_key_makes_it_the_same_request(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        one, two = await asyncio.gather(*(start(site, request_key="the same one", force_rebuild=True) for _ in "ab"))
        three = await start(site, request_key="the same one", force_rebuild=True)
        assert one == two == three
        assert len(agent.starts) == 1
        with pytest.raises(Conflict):
            await start(site, request_key="the same one", alive_time=5)


async def test_a_client_that_holds_a_lease_renews_it(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        first, _ = await start(site, alive_time=100)
        again, _ = await start(site, alive_time=500, leases=("a strangers", first.lease.token))
        assert again.lease.token == first.lease.token
        assert again.lease.expires_at is not None
        assert first.lease.expires_at is not None
        assert again.lease.expires_at > first.lease.expires_at
        other, _ = await start(site, leases=("a strangers",))
        assert other.lease.token not in ("a strangers", first.lease.token)
        assert site.controller.stats().leases == 2
        await site.controller.stop(first.instance, Caller(other.lease.token))
        view = await site.controller.stop(first.instance, Caller(first.lease.token))
        assert view.state is State.STOPPED, "however often it was started, one lease held it"
        assert len(agent.starts) == 1


async def test_one_that_joins_a_start_under_way_renews_too(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        held, _ = await start(site)
        await agent.report(held.instance, state=State.STOPPED)
        agent.gate.clear()
        both = [asyncio.create_task(start(site, leases=(held.lease.token,))) for _ in range(2)]
        await until(lambda: len(agent.starts) == 2)
        agent.gate.set()
        answers = [answer for answer, _ in await asyncio.gather(*both)]
        assert {a.instance for a in answers} == {agent.starts[1].instance}
        again, _ = await start(site, leases=tuple(a.lease.token for a in answers))
        assert again.lease.token == answers[0].lease.token, "the lease of another instance is not taken for this one's"
        assert held.lease.token not in {a.lease.token for a in answers}


async def test_an_ended_lease_takes_its_deadline_along(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        short, _ = await start(site, alive_time=10)
        endless, _ = await start(site, alive_time=0)
        await until(lambda: agent.instances[short.instance].expires_at is None)
        middle, _ = await start(site, alive_time=300)
        await site.controller.stop(short.instance, Caller(endless.lease.token))
        expires_at = agent.instances[short.instance].expires_at
        assert expires_at is not None
        assert middle.lease.expires_at is not None
        assert 0 <= expires_at - middle.lease.expires_at < 5
        commands = len(agent.commands)
        await site.controller.stop(short.instance, Caller(short.lease.token))
        assert len(agent.commands) == commands, "the longer lease goes on: nothing to tell"


async def test_lease_verbs(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())
        one, _ = await start(site)
        two, _ = await start(site)
        stop = site.controller.stop
        with pytest.raises(KeyNeeded):
            await stop(one.instance, Caller())
        with pytest.raises(Forbidden):
            await stop(one.instance, Caller("wrong"))
        with pytest.raises(UnknownInstance):
            await stop("nothing", Caller(one.lease.token))
        view = await stop(one.instance, Caller(one.lease.token))
        assert view.state is State.RUNNING
        assert "1 other lease holds it" in view.reason
        with pytest.raises(Forbidden):
            await stop(one.instance, Caller(one.lease.token))
        view = await stop(two.instance, Caller(two.lease.token))
        assert (view.state, view.reason) == (State.STOPPED, "stopped-by-client")
        with pytest.raises(Conflict):
            await site.controller.alive(two.instance, Caller(two.lease.token))
        view = await site.controller.restart(two.instance, Caller(two.lease.token))
        assert view.state is State.RUNNING
        view = await site.controller.alive(two.instance, Caller(two.lease.token), 900)
        assert view.expires_at == agent.instances[two.instance].expires_at
        view = await site.controller.remove(two.instance, Caller(operator=True))
        assert view.state is State.REMOVED
        with pytest.raises(UnknownInstance):
            await site.controller.instance(two.instance)


async def test_restart_of_the_controller_keeps_instances_and_leases(tmp_path: Path) -> None:
    agent = an_agent()
    async with running_site(tmp_path) as site, agent.linked(site.peer):
        await site.publish(a_service())
        answer, _ = await start(site)
        other, _ = await start(site, force_rebuild=True)
        warm, _ = await start(site)
    agent.instances.pop(other.instance)
    async with running_site(tmp_path) as site:
        assert (await site.controller.instance(answer.instance)).state is State.UNKNOWN
        async with agent.linked(site.peer):
            view = await site.controller.instance(answer.instance)
            assert view.state is State.RUNNING
            with pytest.raises(UnknownInstance):
                await site.controller.instance(other.instance)
            await site.publish(a_service())
            again, cold = await start(site)
            assert not cold
            assert again.instance == answer.instance or again.instance == warm.instance
            await site.controller.stop(again.instance, Caller(answer.lease.token))
        await until(lambda: not site.controller.agents())
        assert (await site.controller.instance(answer.instance)).state is State.UNKNOWN


async def test_start_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    agent = an_agent()
    async with running_site(tmp_path) as site:
        await site.publish(a_service())
        async with agent.linked(site.peer):
            agent.gate.clear()
            waiting = asyncio.create_task(start(site))
            await until(lambda: agent.instances)
        with pytest.raises(NoCapacity):
            await waiting
        agent.gate.set()
        async with agent.linked(site.peer):
            await until(lambda: any(isinstance(c, Remove) for c in agent.commands))
            await until(lambda: not agent.instances)


async def test_ambiguous_and_unknown(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer):
        await site.publish(a_service("od01", name="objects"))
        await site.publish(a_service("od01", name="odours", publisher=key_of("other")), key_of("other"))
        with pytest.raises(AmbiguousService) as caught:
            await start(site, service="od01")
        assert {c["name"] for c in caught.value.extra["candidates"]} == {"objects", "odours"}
        answer, _ = await start(site, service="objects")
        assert answer.service.name == "objects"
        with pytest.raises(NoMatchingService) as missed:
            await start(site, service="object")
        assert "objects" in missed.value.fix


async def test_semantic_prefers_what_is_warm_here(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer):
        old = await site.publish(
            a_service("old", category="/image/faces", inputs=["image"], outputs=["text"], seq=MS + 1)
        )
        new = await site.publish(a_service("new", category="/image", inputs=["image"], outputs=["text"], seq=MS + 2))
        meaning = {"service": None, "category": "/image", "inputs": ("image",), "outputs": ("text",)}
        first, _ = await start(site, **meaning)
        assert first.service.digest == new.digest
        assert "the newest" in first.why
        await start(site, service="old")
        await site.controller.remove(first.instance, Caller(operator=True))
        second, cold = await start(site, **meaning)
        assert (second.service.digest, cold) == (old.digest, False)
        with pytest.raises(NoMatchingService) as caught:
            await start(site, **{**meaning, "inputs": ("sound",)})
        assert "does not take sound" in caught.value.fix
    assert OPERATOR
