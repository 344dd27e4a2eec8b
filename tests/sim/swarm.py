"""A swarm of the real rules (`dht.swarm.picker`, `crowd`, `slots`, `patience`) on simulated uplinks and virtual time.

Each node's uplink sends `uplink` bytes/s, shared slice by slice among the requests served; so does its LAN, to those on
the same one. Messages take `delay_s`. What a seed gives is decided when the request comes, as in `content_routes`.
Deterministic: one seed, one outcome.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dht.swarm.crowd import Crowd, Member
from dht.swarm.meeting import MEET_S, MET_NEAR, NO_NEWS_S
from dht.swarm.patience import Patience
from dht.swarm.picker import Ask, Limits, Picker
from dht.swarm.slots import Slots
from dht.swarm.transfer import MAX_SOURCES

SEED_NODE = "seed"
TICK_S = 0.1
LAN_RATE = 125e6
"""Bytes/s between two that name each other as near."""
SLICE = 32_000
"""Bytes that an uplink sends for one request before it turns to the next, if that does not take it 1/16 s."""


@dataclass
class Answer:
    """A request that a node serves."""

    asker: str
    ask: Ask
    left: deque[int]
    unsent: int
    """Bytes of the first chunk in `left` that are still to be sent."""
    slot: int = 0


@dataclass
class Link:
    """One way out of a node, in bytes/s, and the requests that are served over it."""

    rate: float
    serving: deque[Answer] = field(default_factory=deque)
    sending: bool = False


@dataclass
class Node:
    name: str
    uplink: Link
    have: set[int]
    slots: Slots
    picker: Picker | None = None
    patience: Patience = field(default_factory=lambda: Patience(0.0))
    sent_away: bool = False
    waited_s: float = 0.0
    """The longest that it got nothing at all."""
    heard_at: float = 0.0
    crowd: Crowd = field(default_factory=Crowd)
    known: dict[str, set[int]] = field(default_factory=dict)
    near: frozenset[str] = frozenset()
    """Who is on its own network."""
    from_afar: int = 0
    """Bytes that came from other networks."""
    lan: Link = field(default_factory=lambda: Link(LAN_RATE))
    alive: bool = True
    told: int = 0
    met_at: float = 0.0
    done_at: float | None = None
    gave_up_at: float | None = None
    sent: Counter[int] = field(default_factory=Counter)
    sent_bytes: int = 0


class Swarm:
    def __init__(
        self,
        *,
        pieces: int,
        length: int,
        seed: int = 1,
        delay_s: float = 0.01,
        refresh_s: float = MEET_S,
        slots: int = 32,
        meetings_lost: float = 0.0,
        max_sources: int = MAX_SOURCES,
        limits: Limits | None = None,
        super_seeding: bool = True,
    ) -> None:
        self.now = 0.0
        self.nodes: dict[str, Node] = {}
        self.pieces = pieces
        self._length = length
        self._random = random.Random(seed)
        self._delay = delay_s
        self._refresh = refresh_s
        self._slots = slots
        self._lost = meetings_lost
        self._max_sources = max_sources
        self._limits = limits
        self._super = super_seeding
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    # --- who is there

    def holder(self, name: str, uplink: float, have: int | None = None) -> Node:
        """`have`: so many pieces only, the first ones."""
        held = set(range(self.pieces if have is None else have))
        node = self.nodes[name] = Node(name, Link(uplink), held, Slots(self._slots), crowd=self._crowd())
        return node

    def _crowd(self) -> Crowd:
        return Crowd([str(piece) for piece in range(self.pieces)])

    def asker(self, name: str, uplink: float, at: float = 0.0, near: frozenset[str] = frozenset()) -> Node:
        """Comes at `at`, having found the seed, and holders on its own network, by a lookup. Of others in `near` that
        ask, it hears when it meets the crowd."""
        order = list(range(self.pieces))
        self._random.shuffle(order)
        node = self.nodes[name] = Node(name, Link(uplink), set(), Slots(self._slots), crowd=self._crowd(), near=near)
        node.picker = Picker(dict.fromkeys(order, self._length), order, self._limits, me=name)
        self.later(at, lambda: self._join(node))
        return node

    def kill(self, name: str, at: float) -> None:
        def die() -> None:
            node = self.nodes[name]
            node.alive = False
            for link in (node.uplink, node.lan):
                for answer in link.serving:
                    self._fail(answer)
                link.serving.clear()

        self.later(at, die)

    # --- time

    def later(self, delay: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, action))

    def run(self, until_s: float = 600.0) -> float:
        """Until all living askers are done; when that was. AssertionError after `until_s`, or if one gives up."""
        while any(n.picker and n.alive and n.done_at is None for n in self.nodes.values()):
            self.now, _, action = heapq.heappop(self._events)
            assert self.now < until_s, self._state()
            assert not any(node.gave_up_at for node in self.nodes.values()), self._state()
            action()
        return max(n.done_at or 0.0 for n in self.nodes.values() if n.alive)

    def _state(self) -> str:
        return ", ".join(f"{n.name}: {len(n.have)}/{self.pieces}" for n in self.nodes.values())

    # --- an asker

    def _join(self, node: Node) -> None:
        assert node.picker is not None
        node.patience, node.heard_at = Patience(self.now), self.now
        node.picker.provide(SEED_NODE, None)
        self._meet(node, SEED_NODE)
        for name in sorted(node.near):
            if self.nodes[name].picker is None:
                self._meet_near(node, name)
        self._meet_again(node)
        self._tick(node)

    def _meet_near(self, node: Node, name: str) -> None:
        """For the first time. Who is dead does not answer."""
        picker, peer = node.picker, self.nodes[name]
        assert picker is not None
        picker.expect(name, self.now)

        def answer() -> None:
            if peer.alive:
                held = None if len(peer.have) == self.pieces else peer.have
                picker.provide(name, held, near=True)
                self._decide(node)

        self.later(2 * self._delay, answer)

    def _tick(self, node: Node) -> None:
        if node.alive and node.done_at is None:
            node.waited_s = max(node.waited_s, self.now - node.heard_at)
            if node.patience.is_over(self.now):
                node.gave_up_at = self.now
                return
            self._decide(node)
            self.later(TICK_S, lambda: self._tick(node))

    def _meet_again(self, node: Node) -> None:
        """Tell a holder of the whole and a partial one what is here, and hear what they and others have."""

        def meet() -> None:
            if node.alive and node.done_at is None:
                if len(node.have) > node.told or self.now - node.met_at > NO_NEWS_S:
                    node.told, node.met_at = len(node.have), self.now
                    self._meet(node, SEED_NODE)
                    if node.known:
                        self._meet(node, self._random.choice(sorted(node.known)))
                for name in sorted(node.picker.awaited if node.picker else ())[:MET_NEAR]:
                    self._meet(node, name)
                self._meet_again(node)

        self.later(self._refresh * self._random.uniform(0.75, 1.25), meet)

    def _meet(self, node: Node, other: str) -> None:
        told = frozenset(node.have)

        def arrive() -> None:
            peer = self.nodes[other]
            if peer.alive:
                peer.crowd.told(Member(node.name, b"", told, self.now))
                held = [(m.node, m.held) for m in peer.crowd.others(node.name, self.now)]
                if peer.picker is not None:
                    held.append((other, frozenset(peer.have)))
                given = set()
                if peer.picker is None and self._super:
                    chunks = [str(piece) for piece in range(self.pieces)]
                    away = peer.crowd.given(chunks, node.name, self.now)
                    given = {piece for piece, is_away in enumerate(away) if is_away}
                self.later(self._delay, lambda: self._learn(node, held, given))

        if self._random.random() >= self._lost:
            self.later(self._delay, arrive)

    def _learn(self, node: Node, held: list[tuple[str, frozenset[int]]], given: set[int]) -> None:
        assert node.picker is not None
        for name, pieces in held:
            near = name in node.near
            if name not in node.known and not near and len(node.known.keys() - node.near) + 1 >= self._max_sources:
                continue
            known = node.known.setdefault(name, set())
            if not known or pieces - known:
                known |= pieces
                node.picker.provide(name, known, near=near, fetches=True)
        if given:
            node.picker.given(given)
        self._decide(node)

    def _decide(self, node: Node) -> None:
        assert node.picker is not None
        for effect in node.picker.decide(self.now):
            if isinstance(effect, Ask):
                self.later(self._delay, lambda ask=effect: self._serve(node, ask))
            else:
                for peer in self.nodes.values():
                    for link in (peer.uplink, peer.lan):
                        given_up = [a for a in link.serving if (a.asker, a.ask.request) == (node.name, effect.request)]
                        for answer in given_up:
                            link.serving.remove(answer)
                            peer.slots.give_back(answer.slot, self.now)

    # --- a provider

    def _serve(self, asker: Node, ask: Ask) -> None:
        peer = self.nodes[ask.provider]
        answer = Answer(asker.name, ask, deque(), self._length)
        if not peer.alive:
            self._fail(answer)
        elif (slot := peer.slots.take(asker.name, self.now)) is None:
            promise_s = peer.slots.promise_s(self.now)
            self.later(self._delay, lambda: self._busy(answer, promise_s))
        else:
            answer.slot = slot
            for piece in ask.pieces:
                self._promise(peer, answer, piece)
            link = peer.lan if asker.name in peer.near else peer.uplink
            link.serving.append(answer)
            self._send(peer, link)

    def _promise(self, peer: Node, answer: Answer, piece: int) -> None:
        """The chunk will be sent, or the asker hears at once why it is not."""
        if piece not in peer.have:
            self.later(self._delay, lambda: self._lack(answer, piece))
            return
        asker = self.nodes[answer.asker]
        alone = asker.sent_away and asker.patience.is_thin(self.now)
        if peer.picker is None and self._super and not alone:
            peer.crowd.asked(answer.asker, self.now)
            if not peer.crowd.gives(answer.asker, str(piece), self.now):
                self.later(self._delay, lambda: self._elsewhere(answer, piece))
                return
            peer.crowd.gave(answer.asker, str(piece), self.now)
        answer.left.append(piece)

    def _send(self, peer: Node, link: Link) -> None:
        if link.sending or not link.serving:
            return
        answer = link.serving.popleft()
        if not answer.left:
            peer.slots.give_back(answer.slot, self.now)
            self.later(self._delay, lambda: self._finish(answer))
            self._send(peer, link)
            return
        size = min(SLICE, int(link.rate / 16), answer.unsent)
        link.sending = True
        self.later(size / link.rate, lambda: self._sent(peer, link, answer, size))
        link.serving.append(answer)

    def _sent(self, peer: Node, link: Link, answer: Answer, size: int) -> None:
        link.sending = False
        answer.unsent -= size
        if not peer.alive:
            return
        peer.sent_bytes += size
        self.later(self._delay, lambda: self._heard(answer, size))
        if not answer.unsent:
            answer.unsent = self._length
            piece = answer.left.popleft()
            peer.sent[piece] += 1
            self.later(self._delay, lambda: self._arrive(answer, piece))
        self._send(peer, link)

    # --- what an asker hears

    def _heard(self, answer: Answer, size: int) -> None:
        node = self.nodes[answer.asker]
        if answer.ask.provider not in node.near:
            node.from_afar += size
        node.heard_at = self.now
        node.patience.heard(size, self.now)
        if node.picker:
            node.picker.heard(answer.ask.request, size, self.now)

    def _arrive(self, answer: Answer, piece: int) -> None:
        node = self.nodes[answer.asker]
        if not node.picker:
            return
        if node.picker.delivered(answer.ask.request, piece, self.now):
            node.have.add(piece)
            node.patience.gained(self.now)
        if node.picker.done and node.done_at is None:
            node.done_at = self.now
        self._decide(node)

    def _finish(self, answer: Answer) -> None:
        node = self.nodes[answer.asker]
        if node.picker:
            node.picker.finished(answer.ask.request, self.now)
            self._decide(node)

    def _lack(self, answer: Answer, piece: int) -> None:
        node = self.nodes[answer.asker]
        if node.picker:
            node.picker.lacking(answer.ask.request, piece)

    def _elsewhere(self, answer: Answer, piece: int) -> None:
        node = self.nodes[answer.asker]
        node.sent_away = True
        if node.picker:
            node.picker.elsewhere(answer.ask.request, piece, self.now)

    def _busy(self, answer: Answer, promise_s: float) -> None:
        node = self.nodes[answer.asker]
        node.patience.promised(promise_s)
        if node.picker:
            node.picker.busy(answer.ask.request, self.now, 0.25 * self._random.uniform(0.5, 1.5))
            self._decide(node)

    def _fail(self, answer: Answer) -> None:
        node = self.nodes[answer.asker]
        if node.picker and node.alive:
            node.picker.failed(answer.ask.request, self.now, "unreachable")
            self._decide(node)
