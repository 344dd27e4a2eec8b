"""What a service's own policies make of a request, here and by hand-off, and how decisions are explained."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from client.controller import ControllerClient
from dht.records.memory_directory import MemoryMesh
from protocol.causes import Cause
from protocol.decisions import PassedOver
from protocol.instances import StartRequest, State
from protocol.problems import NoCapacity, NoMatchingService
from protocol.records import ServiceRecord, Terms, VariantTerms
from tests.fake_agent import FakeAgent
from tests.one_region import Site, a_service, node_of, running_site
from tests.waiting import until

MS = int(time.time() * 1000)
REQUEST = StartRequest(service="svc")
VARIANTS = (VariantTerms("exact", 0.99, 40.0, 300), VariantTerms("lean", 0.8, 9.0, 50))


def a_service_with(**terms: object) -> ServiceRecord:
    return msgspec.structs.replace(a_service(), terms=Terms(**terms))  # type: ignore[arg-type]


def an_agent(name: str, region: str = "eu/de", memory: int = 1000) -> FakeAgent:
    return FakeAgent(node_of(name), region, memory=memory)


async def heard(site: Site, region: str) -> None:
    """The site knows how far away the region is, and that it has an agent."""

    async def knows() -> bool:
        views = await site.controller.regions()
        return any(v.region == region and v.live and v.rtt_ms is not None and v.agents for v in views)

    await until(knows)


async def test_accuracy_picks_the_variant_and_its_memory_counts(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path) as site,
        an_agent("small", memory=200).linked(site.peer),
        an_agent("large", memory=400).linked(site.peer) as large,
    ):
        await site.publish(a_service_with(min_accuracy=0.9, variants=VARIANTS))
        answer, _ = await site.controller.start(REQUEST)
        assert (answer.agent, large.starts[0].variant) == (large.node, "exact")
        assert "variant exact is the only one with accuracy 0.9 or more" in answer.why
        assert answer.decision is not None
        assert answer.decision.variant == "exact"
        (other,) = answer.decision.passed_over
        assert (other.agent, other.cause) == (node_of("small"), Cause.MEMORY)
        assert other.why == "needs 300 MB, the agent offers 200 MB in all"
        again, cold = await site.controller.start(msgspec.structs.replace(REQUEST, variant="exact"))
        assert (again.instance, cold) == (answer.instance, False), "chosen or named, it is the same variant"
        by_meaning, cold = await site.controller.start(StartRequest(category="/text"))
        assert (by_meaning.instance, cold) == (answer.instance, False)
        named, _ = await site.controller.start(msgspec.structs.replace(REQUEST, variant="lean"))
        assert named.instance != answer.instance


async def test_accuracy_that_no_variant_has_is_a_named_reason(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent("agent").linked(site.peer) as agent:
        await site.publish(a_service_with(min_accuracy=1.0, variants=VARIANTS))
        with pytest.raises(NoCapacity) as caught:
            await site.controller.start(REQUEST)
        assert caught.value.extra["causes"] == ["accuracy"]
        assert "its best variant, exact, has 0.99" in caught.value.extra["regions"]["eu/de"]
        answer, _ = await site.controller.start(msgspec.structs.replace(REQUEST, variant="lean"))
        assert agent.instances[answer.instance].state is State.RUNNING


async def test_an_agent_farther_away_than_the_service_allows_is_not_asked(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent("agent").linked(site.peer) as agent:
        (view,) = site.controller.agents()
        assert view.rtt_ms is not None
        await site.publish(a_service_with(max_latency_ms=1e-6))
        with pytest.raises(NoCapacity) as caught:
            await site.controller.start(REQUEST)
        assert caught.value.extra["causes"] == ["latency"]
        assert "ms away, 1e-06 ms are allowed" in caught.value.extra["regions"]["eu/de"]
        assert not agent.starts


async def test_policies_travel_with_a_hand_off(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo/c", mesh=mesh) as far,
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        an_agent("small", "demo/c", memory=16).linked(far.peer),
        an_agent("large", "demo/b").linked(near.peer) as agent,
    ):
        await near.publish(a_service_with(min_accuracy=0.5, max_latency_ms=5_000.0, variants=VARIANTS))
        await heard(far, "demo/b")
        answer, _ = await far.controller.start(REQUEST)
        assert (answer.region, agent.starts[0].variant) == ("demo/b", "lean")
        assert answer.decision is not None
        assert (answer.decision.variant, answer.decision.warmth) == ("lean", "cold")
        (small,) = answer.decision.passed_over
        assert (small.region, small.agent, small.cause) == ("demo/c", node_of("small"), Cause.MEMORY)

        await near.publish(msgspec.structs.replace(a_service("strict"), terms=Terms(max_latency_ms=1e-6)))
        with pytest.raises(NoCapacity) as caught:
            await far.controller.start(StartRequest(service="strict"))
        assert caught.value.extra["causes"] == ["latency"]
        assert "ms away, 1e-06 ms are allowed" in caught.value.extra["regions"]["demo/b"]
        assert len(agent.starts) == 1


async def test_who_asks_is_told_what_became_of_requests_and_what_would(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path) as site,
        an_agent("old").linked(site.peer) as old,
        an_agent("new").linked(site.peer),
        ControllerClient(site.rest) as client,
    ):
        record = await site.publish(a_service())
        old.built.add(record.digest)
        await old.beat()
        await until(lambda: any(a.built for a in site.controller._region.agents()))
        would = await client.would_be_placed("svc")
        assert (would.outcome, would.agent, would.instance) == ("would", old.node, "")
        assert not old.starts
        first, _ = await site.controller.start(REQUEST)
        for _ in range(3):
            await site.controller.start(REQUEST)
        with pytest.raises(NoMatchingService):
            await site.controller.start(StartRequest(service="nonsense"))
        refused, warm, cold = await client.placements()
        assert (refused.outcome, refused.service, refused.problem) == ("refused", "nonsense", "no-matching-service")
        assert (warm.outcome, warm.times, warm.instance) == ("warm", 3, first.instance)
        assert (cold.outcome, cold.agent, cold.times) == ("cold", old.node, 1)
        assert cold.decision is not None
        assert cold.decision.warmth == "built"
        assert cold.decision.passed_over == (
            PassedOver(region="eu/de", agent=node_of("new"), warmth="cold", why="has nothing of it"),
        )
        await site.publish(a_service("huge", mem=5000))
        nowhere = await client.would_be_placed("huge")
        assert (nowhere.agent, nowhere.outcome) == ("", "would")
        assert "it would ask nobody" in nowhere.why
        assert nowhere.decision is not None
        assert {one.cause for one in nowhere.decision.passed_over} == {Cause.MEMORY}


async def test_force_rebuild_takes_the_newest_version_while_others_keep_theirs(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent("agent").linked(site.peer) as agent:
        old = await site.publish(a_service(digest="old", seq=MS + 1))
        kept, _ = await site.controller.start(REQUEST)
        assert kept.service.digest == old.digest
        new = await site.publish(a_service(digest="new", seq=MS + 2))
        answer, cold = await site.controller.start(msgspec.structs.replace(REQUEST, force_rebuild=True))
        assert (answer.service.digest, cold) == (new.digest, True), "at once, not when the memory is stale"
        assert agent.instances[kept.instance].state is State.RUNNING
        again, cold = await site.controller.start(StartRequest(service=old.digest))
        assert (again.instance, cold) == (kept.instance, False), "by its digest, an older version is still to be had"
        by_meaning, _ = await site.controller.start(StartRequest(category="/text", force_rebuild=True))
        assert by_meaning.service.digest == new.digest


async def test_matches_are_ranked_and_each_says_why_it_lost(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent("agent").linked(site.peer):
        for number, name in enumerate(["oldest", "old", "new"], start=1):
            await site.publish(a_service(name, category="/image", inputs=["image"], seq=MS + number))
        await site.controller.start(StartRequest(service="old"))
        answer, _ = await site.controller.start(StartRequest(category="/image", inputs=("image",)))
        assert answer.service.id == "old"
        assert "of 3 matches the one that runs here already" in answer.why
        assert answer.decision is not None
        assert [(other.id, other.why) for other in answer.decision.services] == [
            ("new", "nothing of it is here"),
            ("oldest", "nothing of it is here"),
        ]
        fresh, _ = await site.controller.start(StartRequest(category="/image", force_rebuild=True))
        assert fresh.service.id == "new", "what runs here does not count for who builds anew"
        assert fresh.decision is not None
        assert [(other.id, other.why) for other in fresh.decision.services] == [
            ("old", "it is older"),
            ("oldest", "it is older"),
        ]
