"""Requests and answers over sealed datagrams: matching, repeating, proving who answers."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog
from msgspec import Struct

from dht.overlay import messages
from dht.overlay.datagrams import Address, DatagramTransport
from dht.overlay.messages import A, Answer, AnyAnswer, AnyRequest, Proof, Request
from dht.overlay.sealing import Sealer
from dht.overlay.timing import RoundTrips
from dht.quiet import Quiet
from protocol.admission import Credentials
from protocol.identifiers import node_id
from protocol.problems import Problem, TooLarge
from protocol.records import raw_public_key

log = structlog.get_logger(__name__)
SENDINGS = 2
"""A request is sent once and repeated once, after a doubled wait it is given up."""
LATE_REMEMBERED = 512


class Peer(NamedTuple):
    """Whom to ask. `node` None: whoever proves to be at the address (a bootstrap address)."""

    node: bytes | None
    address: Address


@dataclass(slots=True)
class _Pending:
    peer: Peer
    kind: type[AnyAnswer]
    prove: bool
    plaintext: bytes
    first_sent: float
    last_sent: float
    timeout: float
    answered: asyncio.Future[AnyAnswer | None]
    sendings: int = 1
    timer: asyncio.TimerHandle | None = None


Serve = Callable[[AnyRequest, Address, Proof | None], AnyAnswer | None]
OnLate = Callable[[Peer], None]


class Endpoint:
    """`serve` answers a request, or keeps silent with None. It raises a Problem only for what fails on this side, such
    as a full disk: the peer gets silence then too.

    `credentials` are shown to who asks for a proof; by `clock` (Unix s) those of others have ended or not. `on_late`
    hears of proven peers that answered after they were given up. `fresh_bytes` yields n unpredictable bytes.
    """

    def __init__(
        self,
        *,
        credentials: Credentials,
        clock: Callable[[], float],
        mesh: str,
        sealer: Sealer,
        serve: Serve,
        on_late: OnLate,
        fresh_bytes: Callable[[int], bytes],
    ) -> None:
        self.id = bytes.fromhex(node_id(raw_public_key(credentials.key)))
        self.round_trips = RoundTrips()
        self.counts: Counter[str] = Counter()
        self.credentials = credentials
        self._clock = clock
        self._mesh = mesh
        self._sealer = sealer
        self._serve = serve
        self._on_late = on_late
        self._fresh_bytes = fresh_bytes
        self._transport: DatagramTransport | None = None
        self._pending: dict[bytes, _Pending] = {}
        self._late: OrderedDict[bytes, _Pending] = OrderedDict()
        self._quiet = Quiet()

    def attach(self, transport: DatagramTransport) -> None:
        self._transport = transport

    async def call(self, peer: Peer, request: type[Request], answer: type[A], *args: Any, prove: bool) -> A | None:
        """The peer's answer; None if none came in time, or it came from somebody else, or without a good proof.

        Safe to cancel.
        """
        loop = asyncio.get_running_loop()
        message_id = self._fresh_bytes(messages.MESSAGE_ID_BYTES)
        plaintext = messages.encode(request(message_id, self.id, prove, *args))
        timeout = self.round_trips.timeout(peer.address)
        now = loop.time()
        pending = _Pending(peer, answer, prove, plaintext, now, now, timeout, loop.create_future())
        self._pending[message_id] = pending
        try:
            self._send(plaintext, peer.address)
            self.counts["calls"] += 1
            pending.timer = loop.call_later(timeout, self._overdue, message_id)
            found = await pending.answered
            return found if isinstance(found, answer) else None
        finally:
            self._pending.pop(message_id, None)
            if pending.timer is not None:
                pending.timer.cancel()

    def received(self, datagram: bytes, address: Address) -> None:
        """Every datagram comes through here. What does not open, or makes no sense, gets silence."""
        opened = self._sealer.open(datagram)
        message = None if opened is None else messages.decode(opened.plaintext)
        if opened is None or message is None:
            self.counts["unopened" if opened is None else "malformed"] += 1
        elif message.sender == self.id:
            self.counts["own"] += 1
        elif isinstance(message, Answer):
            self._answered(message, address)
        elif self._sealer.is_first(opened.nonce):
            self._asked(message, address)
        else:
            self.counts["replayed"] += 1

    def _asked(self, request: AnyRequest, address: Address) -> None:
        self.counts["requests"] += 1
        proof = None
        if request.prove:
            proof = messages.prove(
                self.credentials, mesh=self._mesh, message=request.id, asker=request.sender, answerer=self.id
            )
        try:
            answer = self._serve(request, address, proof)
        except Problem as problem:
            self.counts["not_served"] += 1
            if self._quiet.may_say(problem.detail, asyncio.get_running_loop().time()):  # peers ask ten times a second
                log.error("request-not-served", detail=problem.detail)
            return
        if answer is not None:
            self._send(messages.encode(answer), address)

    def _answered(self, answer: AnyAnswer, address: Address) -> None:
        now = asyncio.get_running_loop().time()
        pending = self._pending.get(answer.id)
        if pending is None:
            late = self._late.pop(answer.id, None)
            if late is not None and late.peer == Peer(answer.sender, address):
                self.round_trips.heard(address, now - late.first_sent, now - late.last_sent)
                self._on_late(late.peer)
            return
        if pending.answered.done() or not self._is_expected(pending, answer, address):
            return
        self.round_trips.heard(address, now - pending.first_sent, now - pending.last_sent)
        pending.answered.set_result(answer)

    def _is_expected(self, pending: _Pending, answer: AnyAnswer, address: Address) -> bool:
        if address != pending.peer.address or not isinstance(answer, pending.kind):
            return False
        if pending.peer.node not in (None, answer.sender):
            return False
        return not pending.prove or messages.proven(
            answer.proof,
            root=self.credentials.root,
            now=self._clock(),
            mesh=self._mesh,
            message=answer.id,
            asker=self.id,
            answerer=answer.sender,
        )

    def _overdue(self, message_id: bytes) -> None:
        pending = self._pending[message_id]
        if pending.answered.done():
            return
        if pending.sendings == SENDINGS:
            self.counts["timeouts"] += 1
            if not pending.prove:
                self._late[message_id] = pending
                if len(self._late) > LATE_REMEMBERED:
                    self._late.popitem(last=False)
            pending.answered.set_result(None)
            return
        loop = asyncio.get_running_loop()
        pending.sendings += 1
        pending.last_sent = loop.time()
        self._sealer.begin_anew(pending.peer.address)
        self._send(pending.plaintext, pending.peer.address)
        pending.timer = loop.call_later(2 * pending.timeout, self._overdue, message_id)

    def _send(self, plaintext: bytes, address: Address) -> None:
        assert self._transport is not None
        try:
            datagram = self._sealer.seal(plaintext, address)
        except TooLarge as error:
            log.error("message-too-large", detail=error.detail)
            self.counts["too_large"] += 1
            return
        self._transport.send(datagram, address)


def size_of(message: Struct) -> int:
    """Bytes of the encoded message."""
    return len(messages.encode(message))
