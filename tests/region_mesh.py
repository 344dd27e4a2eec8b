"""Controllers in three levels on virtual time: shipped rules for summaries, placement and hand-off, a fake network.

What decides is the code of `region_controller`: `RelativesView` (who is alive, whom to talk to), `hierarchy.candidates`
(whom to ask), `placement.choose` and `Members` (who takes it). What is not here: sockets, signatures, the DHT, engines.
Records of controllers are a dictionary that everybody reads; a start takes `START_S`.

Everything random comes from one seed; the same seed gives the same run.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
from msgspec import Struct

from protocol.identifiers import parent_region
from protocol.instances import InstanceReport, State
from protocol.link import Hello, Resources
from region_controller.agents import Need, Warmth
from region_controller.handoff import MAX_VISITED
from region_controller.hierarchy import MAX_HOPS, Hop, Relative, candidates
from region_controller.members import Members
from region_controller.placement import Placement, choose
from region_controller.relative_links import ASK_WITHIN_S, EVERY_S, JITTER, LOOK_FIRST_S, LOOK_MOST_S
from region_controller.relatives import RelativesView, Target
from region_controller.summaries import Load, Summary

START_S = 0.5
RECORDED_S = 60.0
"""How long the mesh's records still name a controller that died."""
BEAT_S = 2.0
LINK_S = (0.0005, 0.010, 0.002)
"""One way: within a region, from the middle level to the root, from a leaf to the middle level."""


def node_of(region: str) -> str:
    return hashlib.sha256(region.encode()).hexdigest()[:40]


def tree(size: int) -> list[str]:
    """`size` regions in three levels, as many below each controller as there are of those."""
    middle = max(1, round((size - 1) ** 0.5))
    regions = ["r", *(f"r/m{i}" for i in range(min(middle, size - 1)))]
    leaves = size - len(regions)
    return regions + [f"r/m{i % middle}/l{i // middle}" for i in range(leaves)]


def one_way_s(one: str, other: str) -> float:
    """Along the tree: up to the common ancestor and down again."""
    if one == other:
        return LINK_S[0]
    total, ours, theirs = 0.0, one, other
    while ours != theirs:
        if ours.count("/") >= theirs.count("/"):
            total, ours = total + LINK_S[ours.count("/")], parent_region(ours)
        else:
            total, theirs = total + LINK_S[theirs.count("/")], parent_region(theirs)
    return total


class Service(Struct, frozen=True):
    digest: str
    mem: int


class Outcome(Struct):
    """Of one request. `stale_s`: how old the word was by which the region that took it was chosen. `possible`: some
    controller that lives had room when it was asked for."""

    placed: bool = False
    region: str = ""
    warmth: Warmth = Warmth.COLD
    hops: int = 0
    asked: int = 0
    waited_s: float = 0.0
    stale_s: float | None = None
    possible: bool = False


class Controller:
    """One region: its books and its view of the others."""

    def __init__(self, region: str, incarnation: int, agents: list[int]) -> None:
        self.region, self.node = region, node_of(region)
        self.address = f"{region.replace('/', '.')}:1"
        self.view = RelativesView(region, self.node, incarnation)
        self.members = Members()
        self.totals = {f"{self.node[:8]}-{i}": memory for i, memory in enumerate(agents)}
        self.reports: dict[str, tuple[str, InstanceReport]] = {}
        self.starting: dict[str, str] = {}
        """Instance by digest: who asks for it meanwhile waits for the same start."""
        self.uplinks: frozenset[str] = frozenset()
        self.look_pause_s = LOOK_FIRST_S
        for agent, memory in self.totals.items():
            self.members.hello(_hello(agent, region, memory), 0.0)

    def used(self, agent: str) -> int:
        return sum(report.mem for at, report in self.reports.values() if at == agent)

    def load(self) -> Load:
        return self.members.load(queue=0, slots=100)

    def own(self, now: float) -> Summary:
        return self.view.own(self.load(), (self.address,), now)

    def beat(self, now: float) -> None:
        for agent, memory in self.totals.items():
            self.members.heartbeat(agent, Resources(memory, memory - self.used(agent), runtimes=("docker",)), now)

    def put(self, agent: str, report: InstanceReport, now: float) -> None:
        self.reports[report.instance] = (agent, report)
        if self.used(agent) > self.totals[agent]:
            raise AssertionError(f"agent {agent} of {self.region} is over-committed at {now:.3f} s")
        self.members.changed(agent, report, now)

    def take_away(self, instance: str, now: float) -> None:
        agent, report = self.reports.pop(instance)
        self.members.changed(agent, msgspec.structs.replace(report, state=State.REMOVED), now)

    def room_for(self, need: Need, now: float) -> bool:
        return isinstance(choose(need, self.members.agents(now, _plain), now), Placement)


class RegionMesh:
    """Events in order of time. `alive_s`: how long an instance lives after it was last asked for."""

    def __init__(self, regions: list[str], seed: int, *, alive_s: float = 30.0) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.alive_s = alive_s
        self.up: dict[str, Controller] = {}
        self.died: dict[str, float] = {}
        self.messages: Counter[str] = Counter()
        self._sizes = {region: self._agents_of(region) for region in regions}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._lives = 0
        for region in regions:
            self.start(region)

    def _agents_of(self, region: str) -> list[int]:
        """MB of each."""
        return [self.chance.choice((1000, 2000, 4000)) for _ in range(self.chance.randint(1, 3))]

    # --- time ---------------------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (max(when, self.now), self._count, what))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = end

    # --- controllers --------------------------------------------------------------------------------------------------

    def start(self, region: str) -> None:
        self._lives += 1
        one = self.up[region] = Controller(region, self._lives, self._sizes[region])
        self.died.pop(region, None)
        self.at(self.now + self.chance.uniform(0, 0.2), lambda: self._look(one))
        self.at(self.now + self.chance.uniform(0.2, EVERY_S), lambda: self._tick(one))
        self.at(self.now + self.chance.uniform(0, BEAT_S), lambda: self._beat(one))

    def kill(self, region: str) -> None:
        """With its agents, and what runs there."""
        del self.up[region]
        self.died[region] = self.now

    def _lives_on(self, one: Controller) -> bool:
        return self.up.get(one.region) is one

    def _beat(self, one: Controller) -> None:
        if self._lives_on(one):
            one.beat(self.now)
            self.at(self.now + BEAT_S, lambda: self._beat(one))

    def _look(self, one: Controller) -> None:
        """Meet those that the records name at `hierarchy.lookup_names`."""
        if not self._lives_on(one):
            return
        for region in self._recorded(one.region):
            one.view.met(region, node_of(region), (f"{region.replace('/', '.')}:1",), self.now)
        pause_s = one.look_pause_s * self.chance.uniform(1 - JITTER, 1 + JITTER)
        one.look_pause_s = min(LOOK_MOST_S, 2 * one.look_pause_s)
        self.at(self.now + pause_s, lambda: self._look(one))

    def _recorded(self, home: str) -> list[str]:
        """Ancestors with their children, and our own children; the dead for a while."""
        lately = [region for region, at in self.died.items() if self.now - at <= RECORDED_S]
        return [r for r in (*self.up, *lately) if r != home and _found_by(home, r)]

    # --- summaries ----------------------------------------------------------------------------------------------------

    def _tick(self, one: Controller) -> None:
        if not self._lives_on(one):
            return
        one.view.sweep(self.now)
        uplinks = one.view.uplinks(self.now)
        nodes = frozenset(target.node for target in uplinks)
        if one.uplinks - nodes:  # an uplink was lost: the records are read again at once
            one.look_pause_s = LOOK_FIRST_S
            self.at(self.now, lambda: self._look(one))
        one.uplinks = nodes
        probe = one.view.probe(self.now)
        for target in [*uplinks, *([probe] if probe else [])]:
            self._exchange(one, target)
        self.at(self.now + EVERY_S * self.chance.uniform(1 - JITTER, 1 + JITTER), lambda: self._tick(one))

    def _exchange(self, one: Controller, target: Target) -> None:
        asked_at = self.now
        self.messages[one.region] += 1
        question = one.view.question(one.own(asked_at), target, asked_at)
        way_s = one_way_s(one.region, target.region)

        def arrives() -> None:
            other = self.up.get(target.region)
            if other is None or other.node != target.node:
                self.at(asked_at + ASK_WITHIN_S, fails)
                return
            self.messages[other.region] += 1
            other.view.asked(question, self.now)
            answer = other.view.answer(question, other.own(self.now), self.now)
            self.at(self.now + way_s, lambda: one.view.answered(answer, target, asked_at=asked_at, now=self.now))

        def fails() -> None:
            one.view.failed(target.node, self.now, self.chance.uniform(0.5, 1.0))

        self.at(asked_at + way_s, arrives)

    def seen(self, region: str) -> set[str]:
        return {r.region for r in self.up[region].view.relatives(self.now)}

    def wrongly_alive(self) -> set[tuple[str, str]]:
        return {(v, r) for v in self.up for r in self.seen(v) if r not in self.up}

    def siblings_agree(self) -> bool:
        """Everyone sees every living sibling, and its living parent."""
        families: dict[str, set[str]] = {}
        for region in self.up:
            families.setdefault(parent_region(region), set()).add(region)
        for region in self.up:
            parent = parent_region(region)
            expected = families[parent] - {region} | ({parent} & self.up.keys())
            if not expected <= self.seen(region):
                return False
        return True

    def ages_s(self) -> Iterator[float]:
        """Of every summary that anybody holds now."""
        for one in self.up.values():
            for relative in one.view.relatives(self.now):
                yield relative.age_s

    # --- requests -----------------------------------------------------------------------------------------------------

    def ask(self, region: str, service: Service) -> Outcome:
        """A phone's request at this moment. Answers take no time to be *decided*, only `waited_s` tells the ways: what
        others know does not change while a request is under way."""
        need = Need(digest=service.digest, mem=service.mem, kind="docker_container")
        outcome = Outcome(possible=any(c.room_for(need, self.now) for c in self._by_nearness(region)))
        self._place(self.up[region], need, frozenset(), 0, outcome)
        return outcome

    def _by_nearness(self, region: str) -> Iterator[Controller]:
        yield self.up[region]
        for other, one in self.up.items():
            if other != region:
                yield one

    def _place(
        self, one: Controller, need: Need, visited: frozenset[str], hops: int, outcome: Outcome
    ) -> set[str] | None:
        """None where it was placed, else the nodes that were asked in vain."""
        if need.digest in one.starting:
            outcome.placed, outcome.region, outcome.hops, outcome.warmth = True, one.region, hops, Warmth.WARM
            return None
        choice = choose(need, one.members.agents(self.now, _plain), self.now)
        if isinstance(choice, Placement):
            self._run_there(one, choice, need)
            outcome.placed, outcome.region, outcome.hops, outcome.warmth = True, one.region, hops, choice.warmth
            return None
        if hops >= MAX_HOPS or len(visited) >= MAX_VISITED:
            return set()
        return self._hand_off(one, need, visited, hops, outcome)

    def _hand_off(
        self, one: Controller, need: Need, visited: frozenset[str], hops: int, outcome: Outcome
    ) -> set[str] | None:
        """As `PassingOn.hand_off`: first those whom the links show, then those whom only the records name."""
        asked: set[str] = set()
        for known in (self._heard, self._only_recorded):
            relatives = {r.node: r for r in known(one)}
            plan = [
                hop
                for hop in candidates(
                    one.region, relatives.values(), me=one.node, visited=visited, mem=need.mem, digest=need.digest
                )
                if hop.node not in asked
            ]
            asked |= {hop.node for hop in plan}
            for hop in plan:
                spared = sorted(visited | {one.node} | asked - {hop.node})[:MAX_VISITED]
                below = self._hand_to(one, hop, need, frozenset(spared), hops + 1, outcome)
                if below is None:
                    if outcome.stale_s is None:
                        outcome.stale_s = relatives[hop.node].age_s
                    return None
                asked |= below
        return asked

    def _hand_to(
        self, one: Controller, hop: Hop, need: Need, visited: frozenset[str], hops: int, outcome: Outcome
    ) -> set[str] | None:
        outcome.asked += 1
        other = self.up.get(hop.region)
        if other is None or other.node != hop.node:
            outcome.waited_s += 2 * one_way_s(one.region, hop.region)  # the connection is refused
            one.view.failed(hop.node, self.now, self.chance.uniform(0.5, 1.0))
            return set()
        outcome.waited_s += 2 * one_way_s(one.region, hop.region)
        below = self._place(other, need, visited, hops, outcome)
        if below is not None:
            one.view.refused(hop.node, need.digest)
        return below

    def _heard(self, one: Controller) -> list[Relative]:
        return one.view.relatives(self.now)

    def _only_recorded(self, one: Controller) -> list[Relative]:
        resting = one.view.resting(self.now)
        return [
            Relative(region=region, node=node_of(region), addresses=("x:1",), age_s=30.0, load=Load())
            for region in self._recorded(one.region)
            if node_of(region) not in resting
        ]

    def _run_there(self, one: Controller, choice: Placement, need: Need) -> None:
        expires = self.now + self.alive_s
        if choice.instance is not None:
            agent, report = one.reports[choice.instance]
            one.put(agent, msgspec.structs.replace(report, expires_at=expires), self.now)
            return
        self._count += 1
        instance = f"{self._count:016x}"
        one.members.reserve(choice.node, instance, need.mem)
        report = InstanceReport(
            instance=instance,
            digest=need.digest,
            service_id="s",
            service_name="s",
            state=State.STARTING,
            mem=need.mem,
            host="h",
            expires_at=expires,
        )
        one.put(choice.node, report, self.now)
        one.starting[need.digest] = instance
        self.at(self.now + START_S, lambda: self._ready(one, instance))

    def _ready(self, one: Controller, instance: str) -> None:
        with suppress(KeyError):
            agent, report = one.reports[instance]
            del one.starting[report.digest]
            one.put(agent, msgspec.structs.replace(report, state=State.RUNNING), self.now)
            self.at(report.expires_at or self.now, lambda: self._over(one, instance))

    def _over(self, one: Controller, instance: str) -> None:
        if instance not in one.reports:
            return
        expires = one.reports[instance][1].expires_at or self.now
        if expires > self.now:
            self.at(expires, lambda: self._over(one, instance))
        else:
            one.take_away(instance, self.now)


def _plain(_: str) -> str:
    return ""


def _hello(agent: str, region: str, memory: int) -> Hello:
    return Hello(
        version=1,
        node=agent,
        mesh="m",
        region=region,
        host="h",
        labels={},
        resources=Resources(memory, memory, runtimes=("docker",)),
        instances=(),
    )


def _found_by(home: str, other: str) -> bool:
    """Ancestors, the children of all of them, our own children."""
    parent = parent_region(other)
    above, beside_the_line = (home + "/").startswith(other + "/"), not parent or home.startswith(parent + "/")
    return home == parent or above or beside_the_line
