"""Instances as everyone sees them: states, reports of an agent, views and requests of the REST interface."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from protocol.decisions import Decision
from protocol.identifiers import MAX_CATEGORY, MAX_TYPE_NAMES
from protocol.service import Transport

PHASES = ("resolve", "place", "fetch", "verify", "build", "start", "ready", "total")
"""What a start consists of, in order: the keys of `timings_ms`, and but for the last the phases of `Progress`."""
MAX_ALIVE_S = 604_800
RESTART_S = 120.0
"""How long an agent tries to restart an instance, which may need its image made again. Whoever passes the answer on
waits `RELAY_S` longer than the one before it."""
RELAY_S = 5.0
TOTAL_HEADER = "X-Total-Count"
"""Of a list that is answered in pages: how many it has in all. The name that tools know: a new one would serve nobody,
though RFC 6648 would have it without the X."""
RELAYED_HEADER = "Cornerstore-Relayed"
"""Header of a service's own answer, with the instance: without it, an error is the controller's."""
MAX_LOG_LINES = 400
"""In one answer: with the longest lines, a frame of the agent link still holds them."""


class State(StrEnum):
    """Transitions are decided in `agent.lifecycle` and nowhere else."""

    FETCHING = "fetching"
    BUILDING = "building"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    REMOVED = "removed"
    FAILED = "failed"
    UNKNOWN = "unknown"


HOLDS_MEMORY = frozenset({State.FETCHING, State.BUILDING, State.STARTING, State.RUNNING, State.PAUSED, State.UNKNOWN})
"""States whose memory nobody else may use. An instance of an engine that is away still has its own."""


KEPT_WARM = "kept-warm"
"""Why an instance is paused whose life is over: it starts again at once, until somebody needs its memory."""


class PortBinding(Struct, frozen=True):
    """`container_port` of the service is reached at `port` of the agent's host."""

    container_port: int
    port: int
    protocol: Transport = "tcp"
    description: str = ""


class InstanceReport(Struct, frozen=True, kw_only=True):
    """What an agent tells its controller. Times in Unix s; `expires_at` None: lives until stopped."""

    instance: str
    digest: str
    service_id: str
    service_name: str
    state: State
    mem: int
    host: str
    variant: str | None = None
    ports: tuple[PortBinding, ...] = ()
    alive_time: int = 60
    started_at: float | None = None
    expires_at: float | None = None
    reason: str = ""
    log: tuple[str, ...] = ()

    @property
    def holds_memory(self) -> bool:
        """Nobody else may use its memory. What is only kept warm makes room for whoever needs it."""
        return self.state in HOLDS_MEMORY and not (self.state is State.PAUSED and self.reason == KEPT_WARM)

    @property
    def gone(self) -> bool:
        """The agent has forgotten it: it was removed, or its first start failed."""
        return self.state is State.REMOVED or (self.state is State.FAILED and self.started_at is None)


Name = Annotated[str, Meta(min_length=1, max_length=128)]
AliveTime = Annotated[int, Meta(ge=0, le=MAX_ALIVE_S)]
"""In s from now; 0: until stopped."""
LeaseToken = Annotated[str, Meta(min_length=1, max_length=128)]
MAX_LEASES_SENT = 32


class StartRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/instances`. Either `service` (id, name or digest) or a meaning (category, inputs, outputs).

    `alive_time` in s (0: until stopped; None: as the description says). `wait_s`: how long the client waits.
    `request_key` makes a repeated request the same request. `leases`: tokens that the client holds already; if one is
    of the instance that answers, it is renewed and no other is granted.
    """

    service: Name | None = None
    category: Annotated[str, Meta(max_length=MAX_CATEGORY + 1)] | None = None
    inputs: Annotated[tuple[Name, ...], Meta(max_length=MAX_TYPE_NAMES)] = ()
    outputs: Annotated[tuple[Name, ...], Meta(max_length=MAX_TYPE_NAMES)] = ()
    alive_time: AliveTime | None = None
    force_rebuild: bool = False
    wait_s: Annotated[float, Meta(gt=0, le=3600)] = 120.0
    parameters: Annotated[dict[Name, Annotated[str, Meta(max_length=4096)]], Meta(max_length=64)] = {}
    variant: Name | None = None
    request_key: Annotated[str, Meta(min_length=8, max_length=64)] | None = None
    leases: Annotated[tuple[LeaseToken, ...], Meta(max_length=MAX_LEASES_SENT)] = ()


class ServiceRef(Struct, frozen=True):
    digest: str
    id: str
    name: str


class Lease(Struct, frozen=True):
    """A client's hold on an instance. `expires_at` in Unix s, None: until stopped.

    `controller`: URL of the one whose agent runs the instance: the token works there too, should the client's own die.
    """

    token: str
    expires_at: float | None = None
    controller: str = ""


Reach = Literal["direct", "relay"]
"""How a client gets to a service: at the service's own address, or through its controller."""


class StartAnswer(Struct, frozen=True, kw_only=True):
    """`start` says whether the instance was started for this request. `host`, `port`, `url` are of the first port.

    `reach` says how this client gets there: `direct` at `url`, as far as its controller knows; `relay`: not at `url`,
    but through the controller, which passes on what is sent to its path `relay`. `timings_ms` has the keys `PHASES`.
    `why` explains choice and place in words, `decision` for machines.
    """

    instance: str
    service: ServiceRef
    start: Literal["cold", "warm"]
    region: str
    agent: str
    host: str
    port: int | None
    ports: tuple[PortBinding, ...]
    url: str | None
    lease: Lease
    reach: Reach = "direct"
    relay: str | None = None
    handoff: tuple[str, ...] = ()
    timings_ms: dict[str, float] = {}
    why: str = ""
    decision: Decision | None = None


class InstanceView(Struct, frozen=True, kw_only=True):
    """An instance in `GET /v1/instances` and after stop, restart, alive."""

    instance: str
    service: ServiceRef
    state: State
    region: str
    agent: str
    host: str
    port: int | None = None
    ports: tuple[PortBinding, ...] = ()
    url: str | None = None
    mem: int = 0
    variant: str | None = None
    alive_time: int = 60
    started_at: float | None = None
    expires_at: float | None = None
    reason: str = ""
    log: tuple[str, ...] = ()


class InstanceLog(Struct, frozen=True):
    """`GET /v1/instances/{id}/log`: what the instance wrote last, oldest line first."""

    instance: str
    lines: tuple[str, ...]


class Progress(Struct, frozen=True):
    """A step of long work. `phase`: one of `PHASES`, or upload. `total` 0: unknown.

    `done` and `total` are bytes in fetch and verify, steps in build. `region`: which one works on it, if it was handed
    off; empty: the controller's own.
    """

    phase: str
    message: str = ""
    done: int = 0
    total: int = 0
    region: str = ""


OnProgress = Callable[[Progress], None]


class Brought(Struct, frozen=True):
    """The end of `GET /v1/content/{digest}` as events: the content is at the controller now."""

    digest: str


class VariantView(Struct, frozen=True, kw_only=True):
    """A way to run a service, as its description claims; a start names it. `accuracy` from 0 to 1, None like
    `latency_ms` where nothing is claimed. `mem`: MB that it needs."""

    name: str
    accuracy: float | None
    latency_ms: float | None
    mem: int


class ServiceView(Struct, frozen=True, kw_only=True):
    """A published service in `GET /v1/services`; `publisher` is the hex public key.

    Without a variant, a start gets what the service does by itself."""

    digest: str
    id: str
    name: str
    description: str
    category: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    size: int
    mem: int
    publisher: str
    version: str
    published_at: float
    expires_at: float
    variants: tuple[VariantView, ...] = ()


class AgentView(Struct, frozen=True, kw_only=True):
    """Memory in MB. `age_s`: seconds since the agent was last heard. `load`: the last minute's, for each core.
    `rtt_ms`: from the controller to it and back, None if nothing measures it."""

    node: str
    host: str
    runtimes: tuple[str, ...]
    memory_total: int
    memory_free: int
    instances: int
    labels: dict[str, str] = field(default_factory=dict)
    age_s: float = 0.0
    load: float = 0.0
    rtt_ms: float | None = None


class RegionView(Struct, frozen=True, kw_only=True):
    """`relation` to the region asked: self, parent, sibling, child, other. `age_s`: of what is told.

    `live`: heard over the links between controllers; else read in the mesh's records, which lag by up to a minute.
    `rtt_ms`: to it and back, None if not measured. `queue`: requests for services that it works on.
    """

    region: str
    node: str
    addresses: tuple[str, ...]
    relation: str
    agents: int
    memory_total: int
    memory_free: int
    age_s: float
    live: bool = False
    rtt_ms: float | None = None
    queue: int = 0


class Health(Struct, frozen=True, kw_only=True):
    """`GET /v1/healthz`. `status`: `ok`, or `warning` where there are `warnings`: what an operator should know, each
    with its fix. It serves either way. `agents`: how many are connected."""

    status: str
    region: str
    node: str
    mesh: str
    agents: int
    warnings: tuple[str, ...] = ()


class Category(Struct, frozen=True):
    """A node of the category tree; `services` counts the whole subtree, `more` the categories right below it that are
    not among the `children`: there are too many to show all."""

    category: str
    services: int
    children: tuple[Category, ...] = ()
    more: int = 0
