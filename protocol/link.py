"""The agent link: msgpack frames on one WebSocket from an agent to its controller.

The agent dials, says `Hello` (see `fitted`), is answered `Welcome` or closed with a problem. Then the agent sends the
reports that have a log, `Heartbeat` every `Welcome.heartbeat_s`, `InstanceChanged` at each transition, `ProgressMade`
and one `Done`, `Prepared` or `Refused` per command. The controller sends commands. Every frame is a tagged map of at
most `MAX_FRAME` bytes.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, structs

from protocol.instances import MAX_ALIVE_S, MAX_LOG_LINES, InstanceReport, Progress
from protocol.problems import BadRequest
from protocol.service import HARDENED, Allowed

LINK_VERSION = 1
MAX_FRAME = 1 << 20
HEARTBEAT_S = 2.0


Megabytes = Annotated[int, Meta(ge=0, le=2**40)]


class Resources(Struct, frozen=True):
    """What an agent offers, in MB; `free` is what is offered minus what its instances reserve.

    `runtimes`: those that work now; an engine that is away is not among them. `load`: the last minute's, for each core.
    """

    memory_total: Megabytes
    memory_free: Megabytes
    cached: tuple[str, ...] = ()
    built: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    load: Annotated[float, Meta(ge=0)] = 0.0


class Hello(Struct, frozen=True, kw_only=True, tag=True):
    version: int
    node: str
    mesh: str
    region: str
    host: str
    labels: dict[str, str]
    resources: Resources
    instances: tuple[InstanceReport, ...]


class Heartbeat(Struct, frozen=True, tag=True):
    resources: Resources


class InstanceChanged(Struct, frozen=True, tag=True):
    report: InstanceReport


class ProgressMade(Struct, frozen=True, tag=True):
    command: str
    progress: Progress


class Done(Struct, frozen=True, tag=True):
    """`report` of the instance after the command; `timings_ms` by phase for a start; `lines` for a log."""

    command: str
    report: InstanceReport
    timings_ms: dict[str, float] = {}
    warm: bool = False
    lines: tuple[str, ...] = ()


class Prepared(Struct, frozen=True, tag=True):
    """The service that `Prepare` named can be started; `timings_ms` by phase."""

    command: str
    timings_ms: dict[str, float]


class Refused(Struct, frozen=True, tag=True):
    """`problem` as `Problem.to_dict` gives it."""

    command: str
    problem: dict[str, Any]


class Welcome(Struct, frozen=True, tag=True):
    """`allowed`: how far the region lets a service be less confined; the agent's own operator may allow less."""

    version: int
    node: str
    region: str
    heartbeat_s: float = HEARTBEAT_S
    allowed: Allowed = HARDENED


class Start(Struct, frozen=True, kw_only=True, tag=True):
    """Start the service `digest` as `instance`. `alive_time` None: as described, but no longer than `at_most_alive_s`
    (0: as described, however long). `deadline_s`: seconds from now.

    `trace`: the request that asks, as a traceparent; see `protocol.tracing`.
    """

    command: str
    instance: str
    digest: str
    alive_time: int | None = None
    at_most_alive_s: int = 0
    force_rebuild: bool = False
    parameters: dict[str, str] = {}
    variant: str | None = None
    deadline_s: float = 120.0
    trace: str = ""


class Stop(Struct, frozen=True, tag=True):
    command: str
    instance: str
    reason: str = "stopped-by-client"


class Restart(Struct, frozen=True, tag=True):
    command: str
    instance: str


class Remove(Struct, frozen=True, tag=True):
    command: str
    instance: str
    reason: str = "removed-by-client"


class Extend(Struct, frozen=True, tag=True):
    """The instance lives at least `alive_time` seconds from now (None: its own alive time).

    `exact`: a holder left, and this is what the others still ask; it may shorten a life, but not below the instance's
    own alive time from now.
    """

    command: str
    instance: str
    alive_time: int | None = None
    exact: bool = False


class Keep(Struct, frozen=True, tag=True):
    """When the life of the instance is over it is frozen for `keep_s` instead of stopped, unless its memory is needed.

    0: no longer.
    """

    command: str
    instance: str
    keep_s: Annotated[float, Meta(ge=0, le=MAX_ALIVE_S)]


class Wake(Struct, frozen=True, tag=True):
    """If the instance is frozen it is thawed at once: a client was told where it is and will call it next."""

    command: str
    instance: str


class Prepare(Struct, frozen=True, kw_only=True, tag=True):
    """Fetch and build a service that nobody asked for yet, so that a start finds it built. Answered by `Prepared`."""

    command: str
    digest: str
    variant: str | None = None
    deadline_s: float = 600.0


class ReadLog(Struct, frozen=True, tag=True):
    """The last lines that the instance wrote."""

    command: str
    instance: str
    lines: Annotated[int, Meta(ge=1, le=MAX_LOG_LINES)]


FromAgent = Hello | Heartbeat | InstanceChanged | ProgressMade | Done | Prepared | Refused
OnInstance = Start | Stop | Restart | Remove | Extend | Keep | Wake | ReadLog
"""Answered by `Done`."""
Command = OnInstance | Prepare
FromController = Welcome | Command

DIGEST_BYTES = 73
"""One digest on the wire."""
HEADER_BYTES = 16
"""By which the lengths of three lists may grow on the wire."""
MAX_REASON = 500


def fitted(hello: Hello) -> Hello:
    """`hello` in one frame: no logs, and no more digests of archives than there is room for beside the instances.

    Instances that hold memory come first; only if these alone were too many would any be left out.
    """
    live_first = sorted(hello.instances, key=lambda report: not report.holds_memory)
    room = MAX_FRAME - HEADER_BYTES - len(encode(_with(hello, (), 0)))
    brief = []
    for report in live_first:
        short = structs.replace(report, log=(), reason=report.reason[:MAX_REASON])
        room -= len(msgspec.msgpack.encode(short))
        if room < 0:
            break
        brief.append(short)
    return _with(hello, tuple(brief), max(0, room) // (2 * DIGEST_BYTES))


def _with(hello: Hello, instances: tuple[InstanceReport, ...], digests: int) -> Hello:
    """`digests`: how many of each list."""
    had = hello.resources
    resources = structs.replace(had, cached=had.cached[:digests], built=had.built[:digests])
    return structs.replace(hello, instances=instances, resources=resources)


_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_from_controller: msgspec.msgpack.Decoder[FromController] = msgspec.msgpack.Decoder(FromController)


def encode(message: FromAgent | FromController) -> bytes:
    return msgspec.msgpack.encode(message)


def decode_from_agent(frame: bytes) -> FromAgent:
    """Raises BadRequest for anything but a well-formed frame."""
    try:
        return _from_agent.decode(frame)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"malformed frame from an agent: {error}") from None


def decode_from_controller(frame: bytes) -> FromController:
    """Raises BadRequest for anything but a well-formed frame."""
    try:
        return _from_controller.decode(frame)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"malformed frame from a controller: {error}") from None
