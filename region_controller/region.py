"""The state of one region that the controller's parts share, and the few moves that touch several of its books."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from dht.tasks import OwnedTasks
from protocol.events import AgentLost, News, Snapshot
from protocol.instances import AgentView, InstanceReport, InstanceView, PortBinding, ServiceRef, State
from protocol.link import Remove
from protocol.peers import PeerIdentity
from protocol.problems import Problem
from protocol.records import ServiceRecord
from protocol.service import HARDENED, Allowed
from region_controller.agent_link import AgentLinks
from region_controller.agents import AgentState, Warmth
from region_controller.endings import Ending, Endings
from region_controller.feed import Feed
from region_controller.journal import Journal
from region_controller.leases import AliveBounds, Held, LeaseRow, Leases
from region_controller.members import Members
from region_controller.offers import Offer, offered
from region_controller.placement import warmth_of
from region_controller.recent import RecentPlacements
from region_controller.relatives import RelativesView
from region_controller.resolution import WarmthOf
from region_controller.stats import Stats
from region_controller.wanted import flavour_of, loop_time

log = structlog.get_logger(__name__)

MAX_IN_SNAPSHOT = 100
"""Agents, and instances: an event has an end."""


class ControllerConfig(Struct, frozen=True, kw_only=True):
    """`rest`: URL of the listener for phones. `database`: the journal's sqlite file. `spool`: a folder for uploads
    under way, which have at most `spool_bytes` together. At most `max_uploads` and `max_downloads` of archives at once.
    `starts_per_client_s` (0: any number), `starts_burst`: requests of one address for services. `max_starts`: of all,
    under way at once. `unwanted_start_s`: a start that is not ready is given up so long after the last client's
    `wait_s` is over. `prefer_warm_within_s`: rather than built here, a service is used where it runs already, if that
    region is at most so long a round trip away; 0: never. `allowed`: how far agents may let a service be less confined.
    `alive_bounds`: what clients may ask for. `starts_per_agent`: starts under way at once for each agent;
    `max_queued_starts` more wait for their turn or for memory, each at most `queue_wait_s`.
    """

    region: str
    rest: str = ""
    database: Path
    spool: Path
    allowed: Allowed = HARDENED
    unwanted_start_s: float = 60.0
    prefer_warm_within_s: float = 0.0
    alive_bounds: AliveBounds = AliveBounds()
    max_archive_bytes: int = 256 << 20
    max_uploads: int = 4
    max_downloads: int = 16
    starts_per_client_s: float = 50.0
    starts_burst: int = 200
    max_starts: int = 1024
    starts_per_agent: int = 8
    max_queued_starts: int = 64
    queue_wait_s: float = 30.0
    spool_bytes: int = 1 << 30


class Region:
    """Books (`members`, `leases`, `endings`, `journal`), links to the agents, owned tasks, clock.

    `away`: handed-off instances as the region that took them last described them. `recent`: why services are where they
    are. `recalled`: instances of our agents from before our own restart, which was `recalled_at` on the event loop's
    clock.
    """

    def __init__(
        self,
        config: ControllerConfig,
        me: PeerIdentity,
        journal: Journal,
        tasks: OwnedTasks,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.me = me
        self.journal = journal
        self.tasks = tasks
        self.clock = clock
        self.members = Members()
        self.relatives = RelativesView(config.region, me.node, int(clock() * 1000))
        self.leases = Leases()
        self.stats = Stats()
        self.recent = RecentPlacements()
        self.endings = Endings()
        self.abandoned: set[str] = set()
        self.recalled: dict[str, Held] = {}
        self.recalled_at = float("-inf")
        self.away: dict[str, InstanceView] = {}
        self.capacity_changed: Callable[[], None] = lambda: None
        self.feed = Feed(self._snapshot)
        self._told: dict[str, AgentView] = {}
        """Of each agent, what listeners know; what changes all the time is told with what else changes."""
        self.links = AgentLinks(
            self.members,
            region=config.region,
            node=me.node,
            mesh=me.mesh,
            allowed=config.allowed,
            clock=clock,
            on_hello=self._on_hello,
            on_change=self._on_change,
        )

    def recall(self) -> None:
        """Take up what the journal knows. Its instances are unknown until their agents say hello."""
        held, leases, endings = self.journal.load()
        self.endings.restore(endings)
        by_agent: dict[str, list[InstanceReport]] = {}
        for one in held:
            self.leases.hold(one)
            if one.agent:
                self.recalled[one.instance] = one
                by_agent.setdefault(one.agent, []).append(_unheard(one))
        self.recalled_at = loop_time()
        for lease in leases:
            self.leases.restore(lease)
        for agent, reports in by_agent.items():
            self.members.expected(agent, reports, self.clock())
        log.info("controller-recalled", region=self.config.region, instances=len(held), leases=len(leases))

    def agents(self) -> list[AgentState]:
        return self.members.agents(self.clock(), self.leases.flavour_of)

    def warmths(self) -> WarmthOf:
        """As things stand: the best that any agent has of what a request without wishes of its own would get."""
        agents = [a for a in self.agents() if a.silent_s is not None]

        def warmth(record: ServiceRecord) -> Warmth:
            offer = offered(record, None)
            flavour = flavour_of({}, offer.variant) if isinstance(offer, Offer) else ""
            return min((_warmth(record.digest, flavour, agent) for agent in agents), default=Warmth.COLD)

        return warmth

    def hold(self, held: Held) -> None:
        self.leases.hold(held)
        self.journal.save_instance(held)

    def grant(self, instance: str, token: str, deadline: float | None) -> LeaseRow:
        """A lease for `token`, or the one that it has, renewed."""
        lease = self.leases.renew(instance, token, deadline, self.clock())
        self.journal.save_lease(lease)
        return lease

    def extend(self, lease: LeaseRow, deadline: float | None) -> None:
        self.journal.save_lease(self.leases.extend(lease, deadline))

    def end(self, lease: LeaseRow) -> None:
        self.leases.end(lease)
        self.journal.end_lease(lease)

    def forget(self, instance: str, reason: str) -> None:
        """It has ended. What a client ever held is remembered with the reason."""
        if self.leases.was_leased(instance) and (last := self._last_view(instance)) is not None:
            ended = msgspec.structs.replace(last, state=State.REMOVED, reason=reason, expires_at=None)
            self.keep_ending(Ending(ended, self.clock()))
        self.members.forget(instance)
        self.let_go(instance)

    def _last_view(self, instance: str) -> InstanceView | None:
        if found := self.members.find(instance):
            return self.view(*found)
        held = self.leases.held(instance)
        return self.away.get(instance) or (None if held is None else self.view(held.agent, _unheard(held)))

    def keep_ending(self, ending: Ending) -> None:
        self.journal.save_ending(ending)
        for instance in self.endings.keep(ending):
            self.journal.forget_ending(instance)

    def dismiss_ending(self, instance: str) -> None:
        self.endings.dismiss(instance)
        self.journal.forget_ending(instance)

    def let_go(self, instance: str) -> None:
        """End all claims on an instance; its agent may still report it."""
        self.away.pop(instance, None)
        self.recalled.pop(instance, None)
        if self.leases.forget(instance):
            self.journal.forget(instance)

    def view(self, node: str, report: InstanceReport) -> InstanceView:
        """As everyone sees it. While the agent has not read the archive yet, the service is named by its record."""
        host, port, url = first_address(report)
        held = None if report.service_id else self.leases.held(report.instance)
        return InstanceView(
            instance=report.instance,
            service=ServiceRef(
                report.digest,
                held.service_id if held else report.service_id,
                held.service_name if held else report.service_name,
            ),
            state=report.state,
            region=self.config.region,
            agent=node,
            host=host,
            port=port,
            ports=report.ports,
            url=url,
            mem=held.mem if held else report.mem,
            variant=report.variant,
            alive_time=report.alive_time,
            started_at=report.started_at,
            expires_at=report.expires_at,
            reason=report.reason,
            log=report.log,
        )

    def _on_hello(self, node: str, reports: Sequence[InstanceReport], gone: Sequence[str]) -> None:
        for instance in gone:
            log.info("instance-gone", instance=instance, agent=node)
            self.forget(instance, "ended while its agent was away")
        for report in reports:
            if report.instance in self.abandoned:
                self.abandon(node, report.instance)

    def abandon(self, node: str, instance: str) -> None:
        """A start was given up without word from its agent: whatever comes of it must not stay."""
        self.abandoned.discard(instance)
        try:
            self.links.link(node).post(Remove(f"abandoned-{instance}", instance, "abandoned"))
        except Problem as problem:
            self.abandoned.add(instance)
            log.info("abandoned-until-agent-returns", instance=instance, agent=node, problem=problem.detail)

    def _on_change(self, node: str, report: InstanceReport | None) -> None:
        if report is not None:
            self._tell_instance(node, report)
            if report.gone:
                self.forget(report.instance, report.reason)
        self._tell_agent(node)
        self.capacity_changed()

    def _tell_instance(self, node: str, report: InstanceReport) -> None:
        self.feed.tell(lambda: self.view(node, report))

    def _tell_agent(self, node: str) -> None:
        """What it offers now, if that is news; an agent that is lost, and with it the state of its instances."""
        if not self.feed.heard:
            return
        view = next((v for v in self.members.views(self.clock()) if v.node == node), None)
        if view is None:
            self._told.pop(node, None)
            self.feed.tell(lambda: AgentLost(node))
            for owner, report in self.members.instances():
                if owner == node:
                    self._tell_instance(node, report)
        elif (known := _lasting(view)) != self._told.get(node):
            self._told[node] = known
            self.feed.tell(lambda: view)

    def _snapshot(self) -> Iterator[News]:
        """Everything as it stands. The first event holds what fits well into one, the others what is left."""
        views = self.members.views(self.clock())
        self._told = {view.node: _lasting(view) for view in views}
        instances = [
            msgspec.structs.replace(self.view(node, report), log=()) for node, report in self.members.instances()
        ]
        yield Snapshot(tuple(views[:MAX_IN_SNAPSHOT]), tuple(instances[:MAX_IN_SNAPSHOT]))
        yield from views[MAX_IN_SNAPSHOT:]
        yield from instances[MAX_IN_SNAPSHOT:]


def first_address(report: InstanceReport) -> tuple[str, int | None, str | None]:
    """Host, port and URL of the first port that speaks TCP, else of the first."""
    binding: PortBinding | None = next((p for p in report.ports if p.protocol == "tcp"), None)
    if binding is None:
        return report.host, report.ports[0].port if report.ports else None, None
    host = f"[{report.host}]" if ":" in report.host else report.host
    return report.host, binding.port, f"http://{host}:{binding.port}"


def _lasting(view: AgentView) -> AgentView:
    """Without what changes all the time."""
    return msgspec.structs.replace(view, age_s=0.0, load=0.0, rtt_ms=None)


def _warmth(digest: str, flavour: str, agent: AgentState) -> Warmth:
    shared = next((r for r in agent.running if r.digest == digest and r.flavour == flavour), None)
    return warmth_of(digest, agent, shared)


def _unheard(held: Held) -> InstanceReport:
    return InstanceReport(
        instance=held.instance,
        digest=held.digest,
        service_id=held.service_id,
        service_name=held.service_name,
        state=State.UNKNOWN,
        mem=held.mem,
        host=held.host,
    )
