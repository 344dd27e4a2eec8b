"""What controllers of the mesh tell each other about their regions: `POST /peer/summaries`, msgpack over mutual TLS.

The asker says how it is and which versions it has of others; the answer brings what is newer, and ages. This is the
digest exchange of Scuttlebutt (van Renesse et al. 2008) with the incarnation numbers of SWIM (Das et al. 2002).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from protocol.problems import BadRequest, Unavailable
from protocol.records import Addresses, Labels, Millis, NodeId, Region

SUMMARIES_PATH = "/peer/summaries"
MAX_SUMMARIES = 256
"""Relatives that one controller keeps, and tells of in one answer."""
MAX_SUMMARY = 4 << 10
MAX_EXCHANGE = 64 << 10
MAX_ANSWER = MAX_SUMMARIES * MAX_SUMMARY
MAX_WARM = 64
MAX_RUNTIMES = 8
MAX_LABELS = 8
MARK_BYTES = 8

Count = Annotated[int, Meta(ge=0, le=2**40)]
Mark = Annotated[bytes, Meta(min_length=MARK_BYTES, max_length=MARK_BYTES)]
"""The first bytes of a digest. A hint: two services may share one."""
RuntimeName = Annotated[str, Meta(min_length=1, max_length=32)]


class Load(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a region, or all regions below it, could still host. Memory in MB; `largest_free`: at the roomiest agent.

    `queue`: requests being worked on. `slots`: how many more are taken. `runtimes`, `labels`: of any agent.
    `warm`: services that run.
    """

    agents: Count = 0
    memory_total: Count = 0
    memory_free: Count = 0
    largest_free: Count = 0
    queue: Count = 0
    slots: Count = 0
    runtimes: Annotated[tuple[RuntimeName, ...], Meta(max_length=MAX_RUNTIMES)] = ()
    labels: Labels = ()
    warm: Annotated[tuple[Mark, ...], Meta(max_length=MAX_WARM)] = ()


class Summary(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A controller's word about itself. `incarnation` grows with each restart, `version` with each change.

    `below`: the regions under it, summed up. `leaving`: it stops; its last word.
    """

    region: Region
    node: NodeId
    addresses: Addresses
    incarnation: Millis
    version: Millis
    load: Load = Load()
    below: Load = Load()
    leaving: bool = False

    @property
    def stamp(self) -> tuple[int, int]:
        return self.incarnation, self.version


class Heard(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`age_ms`: since the controller itself said so, as far as the teller knows; never less than the truth."""

    summary: Summary
    age_ms: Annotated[int, Meta(ge=0, le=3_600_000)]


class Known(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: NodeId
    incarnation: Millis
    version: Millis


class Unchanged(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Of this controller the asker has the newest version, which is `age_ms` old."""

    node: NodeId
    age_ms: Annotated[int, Meta(ge=0, le=3_600_000)]


class Exchange(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`have` None: the asker wants to hear of nobody but whom it asks."""

    me: Summary
    have: Annotated[tuple[Known, ...], Meta(max_length=MAX_SUMMARIES)] | None = None


class ExchangeAnswer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    me: Summary
    news: Annotated[tuple[Heard, ...], Meta(max_length=MAX_SUMMARIES)] = ()
    same: Annotated[tuple[Unchanged, ...], Meta(max_length=MAX_SUMMARIES)] = ()


def mark_of(digest: str) -> bytes:
    return bytes.fromhex(digest.partition(":")[2][: 2 * MARK_BYTES])


def summed(loads: Iterable[Load]) -> Load:
    """All of them as one; lists are cut at their bounds."""
    parts = list(loads)
    return Load(
        agents=sum(p.agents for p in parts),
        memory_total=sum(p.memory_total for p in parts),
        memory_free=sum(p.memory_free for p in parts),
        largest_free=max((p.largest_free for p in parts), default=0),
        queue=sum(p.queue for p in parts),
        slots=sum(p.slots for p in parts),
        runtimes=tuple(sorted({r for p in parts for r in p.runtimes}))[:MAX_RUNTIMES],
        labels=tuple(sorted({pair for p in parts for pair in p.labels}))[:MAX_LABELS],
        warm=tuple(sorted({mark for p in parts for mark in p.warm}))[:MAX_WARM],
    )


_exchange = msgspec.msgpack.Decoder(Exchange)
_answer = msgspec.msgpack.Decoder(ExchangeAnswer)


def decode_exchange(data: bytes) -> Exchange:
    """Raises BadRequest."""
    try:
        return _exchange.decode(data)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"malformed summary: {error}") from None


def decode_answer(data: bytes) -> ExchangeAnswer:
    """Raises Unavailable."""
    try:
        return _answer.decode(data)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"malformed answer to a summary: {error}") from None
