"""The controller of one region: what phones, agents and other controllers ask, wired together in one place."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager

import aiohttp
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.contracts import Content, Directory
from dht.peer_connections import PeerConnector
from dht.peer_http import PeerHttp
from dht.tasks import OwnedTasks, running_loops
from protocol.decisions import PlacementView
from protocol.events import News
from protocol.instances import (
    AgentView,
    Category,
    Health,
    InstanceLog,
    InstanceView,
    OnProgress,
    Progress,
    RegionView,
    StartAnswer,
    StartRequest,
)
from protocol.peers import PeerIdentity
from protocol.problems import Problem, Unavailable
from protocol.records import RegionRecord
from region_controller import hierarchy
from region_controller.admission import Admission
from region_controller.catalogue import Catalogue
from region_controller.categories import category_tree
from region_controller.flights import Present, always
from region_controller.handoff import AliveRequest, HandoffRequest, Paced, RemoteRegions, Verb
from region_controller.journal import Journal, open_journal
from region_controller.operations import Caller, Operations
from region_controller.publishing import Describe, Publishing
from region_controller.reachability import Doors
from region_controller.region import ControllerConfig, Region
from region_controller.relative_links import RelativeLinks
from region_controller.relay import Relay
from region_controller.starts import Starts
from region_controller.stats import ControllerStats
from region_controller.summaries import Load
from region_controller.wanted import loop_time

log = structlog.get_logger(__name__)

ANNOUNCE_EVERY_S = 10.0
ANNOUNCE_PAUSE_S = 0.5
"""Between two announcements, however fast the capacity changes."""
NOTABLE_MB = 64
SWEEP_EVERY_S = 30.0
JOURNAL_PAUSE_S = 0.05
"""Writes of so much time go to disk together."""


def _ignore(_: Progress) -> None:
    """For callers that want no progress."""


class Controller:
    """Use `running_controller`. The REST table is in `api`; rules: `placement`, `members`, `leases`, `hierarchy`."""

    def __init__(
        self,
        config: ControllerConfig,
        *,
        identity: PeerIdentity,
        journal: Journal,
        tasks: OwnedTasks,
        directory: Directory,
        content: Content,
        http: PeerHttp,
        services: aiohttp.ClientSession,
        relayed: PeerHttp,
        describe: Describe,
        publisher_key: Ed25519PrivateKey,
        operator_token: str,
        warnings: Callable[[], Sequence[Problem]],
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.identity = identity
        self._clock = clock
        self._warnings = warnings
        self._directory = directory
        self._operator_token = operator_token.encode()
        self._tasks = tasks
        self._region = Region(config, identity, journal, tasks, clock)
        self.admission = Admission(
            per_client_s=config.starts_per_client_s, burst=config.starts_burst, at_once=config.max_starts
        )
        self.catalogue = Catalogue(directory, tasks.run, clock=clock)
        self.publishing = Publishing(
            config,
            directory=directory,
            content=content,
            catalogue=self.catalogue,
            describe=describe,
            key=publisher_key,
            clock=clock,
        )
        remote, doors = RemoteRegions(http, directory), Doors()
        self._operations = Operations(self._region, remote)
        self.relay = Relay(self._operations, doors, services, relayed)
        self._starts = Starts(self._region, self.catalogue, remote, self._region_records, doors)
        self.links = self._region.links
        self.relatives = RelativeLinks(
            self._region.relatives,
            load=self._load,
            directory=directory,
            region_records=self._region_records,
            http=http,
            clock=loop_time,
            chance=random.Random(identity.node),  # noqa: S311 - it only spreads timers
        )
        self._announcement_wanted = asyncio.Event()
        self._announced = (-1, 0, 0)
        self._region.capacity_changed = self._note_capacity

    # --- instances --------------------------------------------------------------------------------------------------

    async def start(
        self,
        request: StartRequest,
        on_progress: OnProgress = _ignore,
        *,
        client: str = "",
        present: Present = always,
    ) -> tuple[StartAnswer, bool]:
        """An instance of the service that `request` means, ready, with a lease of the caller's own. `client`: the
        caller's address. `present`: whether it is still there; a start waits for its turn no longer than that.

        The second value is True if the instance was started for this request (cold). Raises BadRequest,
        NoMatchingService, AmbiguousService, NoCapacity, Overloaded, DeadlineExceeded (the start itself goes on),
        BuildFailed, StartFailed, Unavailable.
        """
        return await self._starts.start(request, on_progress, client, present)

    async def would(self, service: str) -> PlacementView:
        """Where it would be placed now; starts nothing. Raises as `start`, but NoCapacity."""
        return await self._starts.would(service)

    def placements(self) -> list[PlacementView]:
        """What became of the latest requests, the latest first."""
        return self._region.recent.views()

    async def receive_handoff(
        self, body: HandoffRequest, peer: PeerIdentity, on_progress: OnProgress = _ignore, present: Present = always
    ) -> StartAnswer:
        """A request of another region's phone that `peer`, its controller, cannot host. Raises as `start`."""
        answer, _ = await self._starts.receive(body, peer.node, Paced(on_progress), present)
        return answer

    async def log(self, instance: str, lines: int, caller: Caller) -> InstanceLog:
        """See `operations.Operations.log`."""
        return await self._operations.log(instance, lines, caller)

    def instances(self) -> list[InstanceView]:
        return self._operations.instances()

    async def instance(self, instance: str) -> InstanceView:
        return await self._operations.instance(instance)

    async def stop(self, instance: str, caller: Caller) -> InstanceView:
        """Stop it, or only end the caller's lease while others hold it; the view's `reason` says which."""
        return await self._operations.act("stop", instance, caller)

    async def restart(self, instance: str, caller: Caller) -> InstanceView:
        return await self._operations.act("restart", instance, caller)

    async def alive(self, instance: str, caller: Caller, alive_time: int | None = None) -> InstanceView:
        """It lives at least `alive_time` s from now (None: its own alive time, 0: until stopped)."""
        return await self._operations.act("alive", instance, caller, AliveRequest(alive_time))

    async def remove(self, instance: str, caller: Caller) -> InstanceView:
        return await self._operations.act("remove", instance, caller)

    async def act(self, verb: Verb, instance: str, caller: Caller, body: AliveRequest | None = None) -> InstanceView:
        return await self._operations.act(verb, instance, caller, body)

    def is_operator(self, token: str | None) -> bool:
        return bool(token) and hmac.compare_digest((token or "").encode(errors="surrogateescape"), self._operator_token)

    def listening(self, client: str) -> AbstractContextManager[AsyncIterator[News]]:
        """What happens in the region from now on, for who asks from that address. Raises TooManyRequests."""
        return self._region.feed.listening(client)

    # --- views ------------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        agents, _, _ = self._region.members.capacity()
        me = self.identity
        warnings = tuple(f"{problem.detail}. {problem.fix}" for problem in self._warnings())
        return Health(
            status="warning" if warnings else "ok",
            region=self.config.region,
            node=me.node,
            mesh=me.mesh,
            agents=agents,
            warnings=warnings,
        )

    def agents(self) -> list[AgentView]:
        return self._region.members.views(self._clock())

    async def regions(self) -> list[RegionView]:
        """Our own region, and those above, beside and below that the mesh knows now."""
        now, home = self._clock(), self.config.region
        agents, total, free = self._region.members.capacity()
        own = RegionView(
            region=home,
            node=self.identity.node,
            addresses=tuple(self._directory.addresses),
            relation="self",
            agents=agents,
            memory_total=total,
            memory_free=free,
            age_s=0.0,
            live=True,
            queue=self.admission.under_way,
        )
        known = {r.node: r for r in hierarchy.recorded(await self._records_or_none(), now)}
        known |= {r.node: r for r in self._region.relatives.relatives(loop_time())}
        known.pop(self.identity.node, None)
        others = [_region_view(home, r) for r in known.values()]
        return [own, *sorted(others, key=lambda v: (v.region, v.node))]

    async def _records_or_none(self) -> list[RegionRecord]:
        """For the view: what the links hear stands by itself. Raises Unavailable if they hear nothing either."""
        try:
            return await self._region_records()
        except Unavailable:
            if not self._region.relatives.relatives(loop_time()):
                raise
            return []

    async def categories(self, top: str = "/") -> Category:
        """The tree of `top`, with how many services each subtree holds. Raises Unavailable."""
        found = await self.catalogue.search(category=top)
        published = [(record.digest, record.category) for record in found]
        return await asyncio.to_thread(category_tree, published, top)  # 0.2 s, if all are invented

    def stats(self) -> ControllerStats:
        agents, total, free = self._region.members.capacity()
        states = Counter(str(report.state) for _, report in self._region.members.instances())
        return ControllerStats(
            starts=dict(self._region.stats.starts),
            phases=self._region.stats.phases,
            agents=agents,
            memory_total=total,
            memory_free=free,
            instances=dict(states),
            leases=self._region.leases.count(self._clock()),
            refused=self.admission.refused,
            queued=self._starts.line.waiting,
            overloaded=self._starts.line.refused,
        )

    async def _region_records(self) -> list[RegionRecord]:
        """Those at every lookup name that the mesh answers for now. Raises Unavailable only if it answers for none."""
        names = hierarchy.lookup_names(self.config.region)
        answers = await asyncio.gather(*(self._directory.regions(n) for n in names), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Problem):
                raise answer
        failures = [a for a in answers if isinstance(a, Problem)]
        if len(failures) == len(answers):
            raise Unavailable(f"the mesh does not say which regions there are: {failures[0].detail}", retry_after=2)
        return [record for answer in answers if isinstance(answer, list) for record in answer]

    def _load(self) -> Load:
        return self._region.members.load(queue=self.admission.under_way, slots=self.admission.slots)

    # --- loops ------------------------------------------------------------------------------------------------------

    def recall(self) -> None:
        """Take up instances and leases from before a restart."""
        self._region.recall()

    async def drain(self) -> None:
        """Before the listeners close: end the starts under way, so that who waits is answered, then the links."""
        await self.relatives.say_goodbye()
        await self._tasks.cancel()
        await self.close_links()

    async def close_links(self) -> None:
        """Say goodbye to the agents and to who listens, before the listeners that carry them close."""
        self._region.feed.end()
        await self._region.links.close()

    def _note_capacity(self) -> None:
        self._starts.line.advance()
        agents, total, free = self._region.members.capacity()
        before_agents, before_total, before_free = self._announced
        if (agents, total) != (before_agents, before_total) or abs(free - before_free) >= max(NOTABLE_MB, total // 10):
            self._announcement_wanted.set()

    async def announce_forever(self) -> None:
        """Tell the mesh what our agents offer, every 10 s and soon after a notable change."""
        while True:
            self._announcement_wanted.clear()
            agents, total, free = self._announced = self._region.members.capacity()
            try:
                await self._directory.announce_region(
                    region=self.config.region, agents=agents, memory_total=total, memory_free=free
                )
            except Problem as problem:
                log.warning("region-not-announced", problem=problem.detail)
            await asyncio.sleep(ANNOUNCE_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_EVERY_S):
                    await self._announcement_wanted.wait()

    async def sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self._operations.sweep()

    async def write_journal_forever(self, journal: Journal) -> None:
        while True:
            await journal.wanted.wait()
            await asyncio.sleep(JOURNAL_PAUSE_S)
            await journal.flush()


@asynccontextmanager
async def running_controller(
    config: ControllerConfig,
    *,
    identity: PeerIdentity,
    directory: Directory,
    content: Content,
    http: PeerHttp,
    describe: Describe,
    publisher_key: Ed25519PrivateKey,
    operator_token: str,
    warnings: Callable[[], Sequence[Problem]] = tuple,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Controller]:
    """A controller with its loops. Serve `api.client_routes` and `api.peer_routes` to make it reachable.

    On exit starts under way are cancelled here, not at their agents; instances and leases are on disk.
    """
    async with AsyncExitStack() as stack:
        journal = await stack.enter_async_context(open_journal(config.database))
        tasks = OwnedTasks()
        controller = Controller(
            config,
            identity=identity,
            journal=journal,
            tasks=tasks,
            directory=directory,
            content=content,
            http=http,
            services=await stack.enter_async_context(_to_services()),
            relayed=http.over(await stack.enter_async_context(_to_relays(http))),
            describe=describe,
            publisher_key=publisher_key,
            operator_token=operator_token,
            warnings=warnings,
            clock=clock,
        )
        controller.recall()
        # Unwound in reverse: starts under way end before the links do, so that they are not taken for failed ones.
        stack.push_async_callback(controller.close_links)
        await stack.enter_async_context(tasks)
        loops = {
            "announce region": controller.announce_forever(),
            "sweep leases": controller.sweep_forever(),
            "exchange summaries": controller.relatives.exchange_forever(),
            "look for relatives": controller.relatives.look_forever(),
            "write journal": controller.write_journal_forever(journal),
        }
        await stack.enter_async_context(running_loops(loops))
        yield controller


def _to_services() -> aiohttp.ClientSession:
    """A connection for each call: services close idle ones when they like, and a call must not be sent twice."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), auto_decompress=False)


def _to_relays(http: PeerHttp) -> aiohttp.ClientSession:
    """Not the connections of everything else between nodes: a service that is slow to read may hold up a body for
    longer than a peer may be silent."""
    connector = PeerConnector(http.lives, watchful=False)
    return aiohttp.ClientSession(connector=connector, headers=http.headers, auto_decompress=False)


def _region_view(home: str, other: hierarchy.Relative) -> RegionView:
    return RegionView(
        region=other.region,
        node=other.node,
        addresses=other.addresses,
        relation=hierarchy.relation(home, other.region),
        agents=other.load.agents,
        memory_total=other.load.memory_total,
        memory_free=other.load.memory_free,
        age_s=round(other.age_s, 3),
        live=other.live,
        rtt_ms=None if other.rtt_s is None else round(other.rtt_s * 1e3, 1),
        queue=other.load.queue,
    )
