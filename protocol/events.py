"""What `GET /v1/events` tells, and the names of the events on the stream."""

from __future__ import annotations

from msgspec import Struct

from protocol.instances import AgentView, InstanceView, StartAnswer


class Snapshot(Struct, frozen=True):
    """Everything as it stands: the first event of a stream. What it has no room for follows at once, one by one."""

    agents: tuple[AgentView, ...]
    instances: tuple[InstanceView, ...]


class AgentLost(Struct, frozen=True):
    """The link to an agent broke. Its instances are told one by one, as unknown."""

    node: str


class Started(Struct, frozen=True, kw_only=True):
    """A request for a service was answered. As the client's answer, but for its lease."""

    instance: str
    service: str
    start: str
    region: str
    agent: str
    timings_ms: dict[str, float]
    why: str


News = Snapshot | AgentView | AgentLost | InstanceView | Started
NEWS: dict[str, type[News]] = {
    "snapshot": Snapshot,
    "agent": AgentView,
    "agent-lost": AgentLost,
    "instance": InstanceView,
    "started": Started,
}
NAMES = {kind: name for name, kind in NEWS.items()}


def started(answer: StartAnswer) -> Started:
    return Started(
        instance=answer.instance,
        service=answer.service.id,
        start=answer.start,
        region=answer.region,
        agent=answer.agent,
        timings_ms=answer.timings_ms,
        why=answer.why,
    )
