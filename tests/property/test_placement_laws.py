"""Placement never over-commits an agent nor picks a worse class than it could; leases never let a stranger in."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.decisions import MAX_PASSED_OVER, Decision
from protocol.instances import InstanceReport, State
from protocol.link import Hello, Resources
from protocol.problems import Forbidden
from region_controller.agents import AgentState, Need, Running, Warmth
from region_controller.explained import decided
from region_controller.leases import Held, Leases
from region_controller.members import HOLDS_MEMORY, Members
from region_controller.placement import Nobody, Placement, choose
from region_controller.resolution import Resolved
from tests.one_region import a_service

SERVICES = ["a", "b"]


@st.composite
def agent_states(draw: st.DrawFn, node: str) -> AgentState:
    services = st.frozensets(st.sampled_from(SERVICES))
    total = draw(st.integers(0, 500))
    running = draw(st.lists(st.tuples(st.sampled_from(SERVICES), st.sampled_from(["", "x", None])), max_size=3))
    return AgentState(
        node=node,
        runtimes=tuple(draw(st.sets(st.sampled_from(["docker", "wasm"]), min_size=1))),
        labels=draw(st.dictionaries(st.just("floor"), st.sampled_from("12"))),
        memory_total=total,
        memory_free=draw(st.integers(0, total)),
        cached=draw(services),
        built=draw(services),
        running=tuple(
            Running(f"{node}{i}", service, flavour, draw(st.sampled_from([None, 5.0, 50.0])), draw(st.booleans()))
            for i, (service, flavour) in enumerate(running)
        ),
        load=draw(st.sampled_from([0.0, 0.4, 1.5, 20.0])),
        silent_s=draw(st.sampled_from([0.0, 3.0, 60.0, None])),
        rtt_ms=draw(st.sampled_from([None, 0.2, 3.0, 40.0])),
    )


needs = st.builds(
    Need,
    digest=st.sampled_from(SERVICES),
    mem=st.integers(1, 400),
    kind=st.sampled_from([None, "docker_container", "wasm_module"]),
    labels=st.dictionaries(st.just("floor"), st.sampled_from("12")),
    flavour=st.sampled_from(["", "x"]),
    fresh=st.booleans(),
    strategy=st.sampled_from(["spread", "colocate", "nearest"]),
    within_ms=st.sampled_from([None, 1.0, 10.0]),
)
regions = st.integers(0, 12).flatmap(lambda n: st.tuples(*(agent_states(f"n{i}") for i in range(n))))


@given(needs, regions, st.randoms(use_true_random=False))
def test_the_choice_fits_and_no_other_agent_alone_is_better(need: Need, agents: tuple[AgentState, ...], random) -> None:  # type: ignore[no-untyped-def]
    choice = choose(need, agents, 10.0)
    alone = {a.node: choose(need, [a], 10.0) for a in agents}
    fits = {node: one for node, one in alone.items() if isinstance(one, Placement)}
    if isinstance(choice, Nobody):
        assert not fits
        assert set(choice.reasons) == set(alone)
        return
    agent = next(a for a in agents if a.node == choice.node)
    assert choice.warmth == min(one.warmth for one in fits.values())
    rivals = [a for a in agents if a.node in fits and fits[a.node].warmth == choice.warmth]
    if need.strategy != "nearest":
        assert int(agent.load) == min(int(a.load) for a in rivals)
    assert need.within_ms is None or agent.rtt_ms is None or agent.rtt_ms <= need.within_ms
    assert (choice.instance is not None) == (choice.warmth <= Warmth.PAUSED)
    assert choice.instance is not None or need.mem <= agent.memory_free
    assert not (need.fresh and choice.instance)
    shuffled = list(agents)
    random.shuffle(shuffled)
    again = choose(need, shuffled, 10.0)
    assert isinstance(again, Placement)
    assert (again.node, again.instance) == (choice.node, choice.instance)


@given(needs, regions)
def test_no_worse_class_is_taken_without_saying_why(need: Need, agents: tuple[AgentState, ...]) -> None:
    """Whoever had more of the service is named first, with the reason why it cannot; and so are all others, or
    counted."""
    choice = choose(need, agents, 10.0)
    taken = choice.node if isinstance(choice, Placement) else None
    named = [rival.node for rival in choice.rivals]
    assert len(named) <= MAX_PASSED_OVER
    assert len(set(named)) == len(named)
    assert len(named) + choice.more == len(agents) - (taken is not None)
    assert taken not in named
    warmths = [rival.warmth for rival in choice.rivals]
    assert warmths == sorted(warmths)
    assert all(rival.why for rival in choice.rivals)
    if isinstance(choice, Placement):
        better = [rival for rival in choice.rivals if rival.warmth < choice.warmth]
        assert all(rival.cause is not None for rival in better)
        assert bool(better) == ("but cannot" in choice.why)
    decision = decided(choice, "eu", Resolved(a_service(), "named"), strategy=need.strategy, variant=None)
    again = msgspec.json.decode(msgspec.json.encode(decision), type=Decision)
    assert again == decision, "within the bounds that a receiver checks"


class OneAgent(RuleBasedStateMachine):
    """A controller and an agent with an ordered link between them: what the controller starts always fits."""

    TOTAL = 1000

    def __init__(self) -> None:
        super().__init__()
        self.members = Members()
        self.really: dict[str, tuple[int, State]] = {}
        self.sent: list[tuple[str, int]] = []
        self.wire: list[InstanceReport | Resources] = []
        self.count = 0
        self.members.hello(self._hello(), 0)

    def _hello(self) -> Hello:
        reports = tuple(self._report(i) for i in self.really)
        return Hello(
            version=1,
            node="n",
            mesh="m",
            region="r",
            host="h",
            labels={},
            resources=self._resources(),
            instances=reports,
        )

    def _used(self) -> int:
        return sum(mem for mem, state in self.really.values() if state in HOLDS_MEMORY)

    def _resources(self) -> Resources:
        return Resources(self.TOTAL, self.TOTAL - self._used(), runtimes=("docker",))

    def _report(self, instance: str) -> InstanceReport:
        mem, state = self.really[instance]
        return InstanceReport(
            instance=instance, digest="a", service_id="s", service_name="n", state=state, mem=mem, host="h"
        )

    @rule(mem=st.integers(1, 600))
    def start_if_it_fits(self, mem: int) -> None:
        agents = self.members.agents(0, lambda _: None)
        if isinstance(choose(Need(digest="a", mem=mem, fresh=True), agents, 0), Placement):
            self.count += 1
            self.members.reserve("n", f"i{self.count}", mem)
            self.sent.append((f"i{self.count}", mem))

    @precondition(lambda self: self.sent)
    @rule()
    def agent_takes_a_command(self) -> None:
        instance, mem = self.sent.pop(0)
        self.really[instance] = (mem, State.STARTING)
        self.wire.append(self._report(instance))

    @precondition(lambda self: self.really)
    @rule(data=st.data(), state=st.sampled_from([State.RUNNING, State.STOPPED, State.FAILED]))
    def agent_changes_state(self, data: st.DataObject, state: State) -> None:
        instance = data.draw(st.sampled_from(sorted(self.really)))
        mem, before = self.really[instance]
        if before in HOLDS_MEMORY:
            self.really[instance] = (mem, state)
            self.wire.append(self._report(instance))

    @rule()
    def agent_beats(self) -> None:
        self.wire.append(self._resources())

    @precondition(lambda self: self.wire)
    @rule()
    def controller_hears(self) -> None:
        match self.wire.pop(0):
            case InstanceReport() as report:
                self.members.changed("n", report, 0)
            case Resources() as resources:
                self.members.heartbeat("n", resources, 0)

    @invariant()
    def never_over_committed(self) -> None:
        assert self._used() + sum(mem for _, mem in self.sent) <= self.TOTAL

    @invariant()
    def all_of_it_is_seen_in_the_end(self) -> None:
        if not self.wire and not self.sent:
            free = self.members.agents(0, lambda _: None)[0].memory_free
            assert free <= self.TOTAL - self._used()


TestOneAgent = OneAgent.TestCase


tokens = st.sampled_from(["t1", "t2", "t3"])
instances = st.sampled_from(["i1", "i2"])
steps = st.lists(st.tuples(st.sampled_from(["grant", "end", "extend"]), instances, tokens, st.integers(0, 50)))


@given(steps, st.integers(0, 60))
def test_leases_admit_exactly_who_holds_one(history: list[tuple[str, str, str, int]], now: int) -> None:
    leases = Leases()
    for instance in ("i1", "i2"):
        leases.hold(Held(instance=instance, digest="d", service_id="s", service_name="n", mem=1, host="h"))
    model: dict[tuple[str, str], int] = {}
    for step, instance, token, deadline in history:
        known = (instance, token) in model
        if step == "grant":
            leases.grant(instance, token, deadline, 0)
            model[instance, token] = deadline
        elif known and step == "end":
            leases.end(leases.lease(instance, token))
            del model[instance, token]
        elif known:
            leases.extend(leases.lease(instance, token), deadline)
            model[instance, token] = max(deadline, model[instance, token])
    for instance in ("i1", "i2"):
        for token in ("t1", "t2", "t3"):
            if (instance, token) in model:
                lease = leases.lease(instance, token)
                others = sum(d > now for (i, t), d in model.items() if i == instance and t != token)
                assert lease.deadline == model[instance, token]
                assert leases.others(lease, now) == others
            else:
                try:
                    leases.lease(instance, token)
                except Forbidden:
                    continue
                raise AssertionError("a token without a lease was admitted")
