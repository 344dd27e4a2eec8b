"""Which provider is asked for which chunk, and who is asked no more: all rules of a transfer, with no I/O.

The shell (`chunk_transfer`) reports events with the time and performs what `decide` returns. A piece is a small
integer: the position of a chunk in the manifest. Rules:

* Rarest first among a window of free pieces, in the order handed in (which the shell shuffles, so that many sites that
  fetch one blob at once soon hold different parts and serve each other).
* Outside of a crowd, a fast provider is asked in the order of the blob instead, so that the whole can be hashed while
  it comes.
* How much is asked of one provider at once: see `dht.swarm.pipelining`.
* A provider on this machine's own network is asked first, and others not at all for what it gives, as long as it does
  well (`near_rate`): what the LAN has shall not cross the uplink. It does not if it failed, is busy, or was silent or
  slow for `near_late_s`. While one is being met, nobody afar is asked for anything, for at most `near_wait_s`. What one
  that fetches, too, is about to bring from afar is left to it for a moment: see `dht.swarm.neighbours`.
* No free piece left: an idle provider is asked for what another is late with (end game). The first delivery wins.
* A provider that lies is dropped at once. One that fails (or is silent for `stall_s`) rests for a doubling time; after
  `strikes` failures in a row it is dropped if another is left, else it is tried again now and then: the network may
  come back. One slower than `min_rate` after `slow_after_s` is dropped if another could do the work. A busy provider
  rests and loses nothing.
* A dropped provider is never asked again, and its pieces are free again.
* In a crowd, a holder may answer "elsewhere": others got the piece a moment ago and pass it on. It is asked for that
  piece again after `elsewhere_s`. A piece that a holder is known to have given away counts as held once, so that what
  is asked of a holder of the whole is what nobody else has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from dht.swarm.neighbours import Shares
from dht.swarm.outstanding import Outstanding
from dht.swarm.pipelining import Pipelining
from dht.swarm.provider import Provider


@dataclass(frozen=True)
class Limits:
    """Times in s, rates in bytes/s, sizes in bytes."""

    pipelining: Pipelining = field(default_factory=Pipelining)
    window: int = 128
    strikes: int = 3
    rest_s: float = 0.25
    max_rest_s: float = 1.0
    max_busy_s: float = 2.0
    stall_s: float = 5.0
    slow_after_s: float = 10.0
    min_rate: float = 8 << 10
    endgame_s: float = 0.5
    elsewhere_s: float = 1.0
    near_rate: float = 4 << 20
    near_late_s: float = 1.0
    near_wait_s: float = 0.5


@dataclass(frozen=True)
class Ask:
    """Ask `provider` for `pieces`, in this order; report under the number `request`."""

    request: int
    provider: str
    pieces: tuple[int, ...]


@dataclass(frozen=True)
class Cancel:
    """Give up a request: nothing it could deliver is wanted. The picker has forgotten it already."""

    request: int


Effect = Ask | Cancel

MISSED = float("-inf")
"""Until when a near provider is waited for that could not be met: it is not expected a second time."""


class Picker:
    """State of one transfer. `lengths`: bytes of each wanted piece; `order`: all of them, in the order preferred; `me`:
    by what name other nodes know this one as a provider."""

    def __init__(
        self, lengths: Mapping[int, int], order: Sequence[int], limits: Limits | None = None, *, me: str = ""
    ) -> None:
        self._limits = limits or Limits()
        self._pieces = Outstanding(lengths, order)
        self._rank = {piece: place for place, piece in enumerate(order)}
        self._providers: dict[str, Provider] = {}
        self._rarity: dict[int, int] = {}
        self._given: frozenset[int] = frozenset()
        self._expected: dict[str, float] = {}
        """Near providers that are being met, and until when they are waited for."""
        self._sparing: frozenset[str] = frozenset()
        self._spared: frozenset[int] = frozenset()
        """Near providers that do well now, and what nobody afar is asked for therefore."""
        self._shares = Shares(me)
        self._brought: dict[str, set[int]] = {}
        """What near providers that fetch are newly known to have."""
        self._left: dict[str, set[int]] = {}
        """Free pieces that are left to neighbours to bring."""
        self._cancelled: list[int] = []

    # --- what the shell asks --------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return not self._pieces.wanted

    @property
    def left(self) -> int:
        """Pieces still wanted."""
        return len(self._pieces.wanted)

    @property
    def active(self) -> list[str]:
        """Providers that are not dropped."""
        return [name for name, p in self._providers.items() if not p.dropped]

    @property
    def dropped(self) -> dict[str, str]:
        """Providers that are asked no more, and why."""
        return {name: p.dropped for name, p in self._providers.items() if p.dropped}

    @property
    def troubles(self) -> dict[str, str]:
        """Why providers were dropped, or what failed last with those that are not."""
        return {name: p.dropped or p.trouble for name, p in self._providers.items() if p.dropped or p.trouble}

    @property
    def hopeless(self) -> bool:
        """Something is wanted, and whoever is left has failed `strikes` times in a row or offers nothing of it."""
        return bool(self._pieces.wanted) and not any(
            self._promises(p) for p in self._providers.values() if not p.dropped
        )

    @property
    def in_crowd(self) -> bool:
        """Partial holders are of use: a holder of the whole may send this node to them."""
        return any(p.have for p in self._providers.values() if not p.dropped)

    def unmet(self, now: float) -> list[str]:
        """Near providers that were waited for in vain."""
        return [name for name, until in self._expected.items() if MISSED < until <= now]

    @property
    def awaited(self) -> Collection[str]:
        """Neighbours that are about to bring something: the sooner it is known that they have, the better."""
        return self._left.keys()

    def wants(self, piece: int) -> bool:
        return piece in self._pieces.wanted

    # --- providers ------------------------------------------------------------------------------------------------

    def expect(self, provider: str, now: float) -> None:
        """A near provider is being met, for the first time: `provide` or `missed` will say what became of it."""
        if provider not in self._providers:
            self._expected.setdefault(provider, now + self._limits.near_wait_s)

    def missed(self, provider: str) -> None:
        """It could not be met: nobody waits for it any more."""
        if provider in self._expected:
            self._expected[provider] = MISSED

    def provide(
        self, provider: str, have: Collection[int] | None, *, near: bool = False, fetches: bool = False
    ) -> None:
        """A provider is known, or holds more than before. `have` None: the whole blob. `near`, `fetches`: see
        `Provider`; who is known to fetch is so until it has the whole."""
        self._expected.pop(provider, None)
        known = self._providers.setdefault(provider, Provider(frozenset()))
        if known.dropped:
            return
        before, now_held = known.have or frozenset(), frozenset(have or ())
        self._count(now_held - before, +1)
        self._count(before - now_held, -1)
        known.near, known.fetches = near, have is not None and (fetches or known.fetches)
        if near and known.fetches:
            self._brought.setdefault(provider, set()).update(now_held - before)
        known.have = None if have is None else now_held
        known.lacks.clear()

    def given(self, pieces: Collection[int]) -> None:
        """Pieces that a holder gave away lately, beside those that this transfer asked it for."""
        self._given = frozenset(pieces)

    def drop(self, provider: str, why: str) -> None:
        """Ask this provider no more."""
        known = self._providers.setdefault(provider, Provider(frozenset()))
        if known.dropped:
            return
        self._count(known.have or (), -1)
        known.dropped = why
        for number in list(known.requests):
            self._end(number)
            self._cancelled.append(number)

    # --- what happens to a request; reports about a forgotten request change nothing ----------------------------------

    def heard(self, request: int, size: int, now: float) -> None:
        """`size` bytes came, whole pieces or not."""
        if current := self._pieces.requests.get(request):
            current.heard = now
            current.received += size

    def delivered(self, request: int, piece: int, now: float) -> bool:
        """A verified piece came. True exactly once per piece: then it is to be kept."""
        fresh = piece in self._pieces.wanted
        if current := self._pieces.requests.get(request):
            current.heard = now
            self._providers[current.provider].strikes = 0
            self._pieces.settle(request, piece)
        if fresh:
            for superfluous in self._pieces.deliver(piece):
                self._end(superfluous)
                self._cancelled.append(superfluous)
        return fresh

    def lacking(self, request: int, piece: int) -> None:
        """The provider says it does not have the piece."""
        if current := self._pieces.requests.get(request):
            provider = self._providers[current.provider]
            provider.lacks.add(piece)
            provider.trouble = "it lacks what it offered"
            if provider.have is not None and piece in provider.have:
                self._rarity[piece] -= 1
                provider.have -= {piece}
            self._pieces.settle(request, piece)

    def elsewhere(self, request: int, piece: int, now: float) -> None:
        """The provider gave the piece to others a moment ago, who pass it on."""
        if current := self._pieces.requests.get(request):
            provider = self._providers[current.provider]
            provider.elsewhere[piece] = now + self._limits.elsewhere_s
            provider.strikes, provider.trouble = 0, "it leaves that to others"
            current.heard = now
            self._pieces.settle(request, piece)

    def finished(self, request: int, now: float) -> None:
        """The answer is over. If pieces are left open, the provider broke off: a failure."""
        if current := self._pieces.requests.get(request):
            if current.open:
                self.failed(request, now, "broke off")
                return
            provider = self._providers[current.provider]
            provider.showed(current.received, max(now - current.started, 1e-3))
            self._end(request)

    def failed(self, request: int, now: float, why: str) -> None:
        if current := self._pieces.requests.get(request):
            provider = self._providers[current.provider]
            self._end(request)
            counts = provider.failed(now, why, rest_s=self._limits.rest_s, max_rest_s=self._limits.max_rest_s)
            if counts and provider.strikes >= self._limits.strikes and len(self.active) > 1:
                self.drop(current.provider, why)

    def busy(self, request: int, now: float, retry_after: float, why: str = "busy") -> None:
        """The provider has no free upload slot."""
        if current := self._pieces.requests.get(request):
            self._end(request)
            self._providers[current.provider].busy(now, retry_after, why, max_busy_s=self._limits.max_busy_s)

    def lied(self, request: int, why: str) -> None:
        """The provider sent what it should not have: bytes that are not the digest's, or a malformed answer."""
        if current := self._pieces.requests.get(request):
            self.drop(current.provider, why)

    # --- decisions ------------------------------------------------------------------------------------------------

    def decide(self, now: float) -> list[Effect]:
        """Requests to give up and to make now. Call after every event, and every now and then for stalls."""
        self._drop_slow(now)
        effects: list[Effect] = [Cancel(number) for number in self._cancelled]
        self._cancelled.clear()
        self._sparing = frozenset(name for name in self.active if self._spares_others(name, now))
        given_near = self._given_near(now)
        self._left = self._left_to_neighbours(self._pieces.free.keys() - given_near, now)
        self._spared = given_near.union(*self._left.values())
        best_first = sorted(self.active, key=lambda name: (not self._providers[name].near, -self._providers[name].rate))
        if any(until > now for until in self._expected.values()):
            best_first = [name for name in best_first if self._providers[name].near]
        rates = [self._providers[name].rate for name in self.active]
        depths = {name: self._requests_at_once(self._providers[name], rates) for name in best_first}
        parts = self._limits.pipelining.parts(rates)
        for _ in range(max(depths.values(), default=0)):
            for name in best_first:
                provider = self._providers[name]
                if len(provider.requests) < depths[name] and provider.rest_until <= now:
                    pieces = self._pick(provider, now, parts) or self._pick_endgame(name, now)
                    if pieces:
                        effects.append(self._ask(name, pieces, now))
        return effects

    def _drop_slow(self, now: float) -> None:
        for number, request in list(self._pieces.requests.items()):
            if number not in self._pieces.requests:
                continue
            age = now - request.started
            if now - request.heard > self._limits.stall_s:
                self._cancelled.append(number)
                self.failed(number, now, "silent")
            elif age > self._limits.slow_after_s and request.received / age < self._limits.min_rate:
                rivals = [n for n in self.active if n != request.provider]
                if any(self._providers[n].offers(piece) for n in rivals for piece in request.open):
                    self.drop(request.provider, "slow")

    def _requests_at_once(self, provider: Provider, rates: Sequence[float]) -> int:
        return min(self._limits.pipelining.requests_at_once(provider.rate, rates), provider.depth)

    def _pick(self, provider: Provider, now: float, parts: int) -> list[int]:
        """What to ask it for now."""
        candidates = list(islice(self._offered(provider, now), self._limits.window))
        in_order = self._is_asked_in_order(provider)
        candidates.sort(
            key=lambda piece: (
                self._rarity.get(piece, 0) or piece in self._given,
                piece if in_order else self._rank[piece],
            )
        )
        count = self._limits.pipelining.batch(
            (self._pieces.lengths[piece] for piece in candidates),
            provider.rate,
            free=len(self._pieces.free),
            parts=parts,
        )
        return candidates[:count]

    def _spares_others(self, name: str, now: float) -> bool:
        """It is near and does well, so that nobody afar is asked for what it gives."""
        provider, limits = self._providers[name], self._limits
        if not provider.near or not provider.does_well(now, limits.near_rate, limits.near_late_s):
            return False
        requests = [self._pieces.requests[number] for number in provider.requests]
        return not any(request.is_late(now, limits.near_rate, limits.near_late_s) for request in requests)

    def _given_near(self, now: float) -> frozenset[int]:
        """Free pieces that a provider which spares others would give now."""
        given: set[int] = set()
        if all(provider.near for provider in self._providers.values()):
            return frozenset()
        for provider in (self._providers[name] for name in self._sparing):
            withheld = provider.lacks | {piece for piece, until in provider.elsewhere.items() if until > now}
            held = self._pieces.free.keys() if provider.have is None else self._pieces.free.keys() & provider.have
            given |= held - withheld
        return frozenset(given)

    def _left_to_neighbours(self, pieces: Collection[int], now: float) -> dict[str, set[int]]:
        for name, brought in self._brought.items():
            self._shares.heard(name, brought, now)
        self._brought.clear()
        fetching = [name for name in self._sparing if self._providers[name].fetches]
        return self._shares.left_to(fetching, pieces, now)

    def _offered(self, provider: Provider, now: float) -> Iterator[int]:
        """Free pieces that the provider should be asked for now, in the preferred order where that is cheap."""
        if self._spared and not provider.near:
            if len(self._spared) == len(self._pieces.free):
                return iter(())
            return (piece for piece in self._pieces.free if piece not in self._spared and provider.gives(piece, now))
        if provider.have is not None and len(provider.have) < len(self._pieces.free):
            return (piece for piece in provider.have if piece in self._pieces.free and provider.gives(piece, now))
        pieces = self._pieces.free_in_order() if self._is_asked_in_order(provider) else self._pieces.free
        return (piece for piece in pieces if provider.gives(piece, now))

    def _is_asked_in_order(self, provider: Provider) -> bool:
        return self._limits.pipelining.is_fast(provider.rate) and not self.in_crowd

    def _pick_endgame(self, name: str, now: float) -> list[int]:
        """One piece that another was asked for and is late with: the latest, if this provider would be faster."""
        provider = self._providers[name]
        if next(self._offered(provider, now), None) is not None:
            return []
        latest: tuple[float, int] | None = None
        for piece, other in self._pieces.asked_once():
            if not provider.gives(piece, now) or (other.provider in self._sparing and not provider.near):
                continue
            expected = self._pieces.lengths[piece] / provider.rate if provider.rate else 0.0
            late = other.time_left(now, self._providers[other.provider].rate) - 2 * expected
            if other.provider != name and late > self._limits.endgame_s and (latest is None or late > latest[0]):
                latest = (late, piece)
        return [latest[1]] if latest else []

    def _ask(self, name: str, pieces: Sequence[int], now: float) -> Ask:
        request = self._pieces.ask(name, pieces, now)
        self._providers[name].requests.add(request)
        return Ask(request, name, tuple(pieces))

    # --- bookkeeping ----------------------------------------------------------------------------------------------

    def _promises(self, provider: Provider) -> bool:
        if any(self._pieces.requests[number].received for number in provider.requests):
            return True
        return provider.strikes < self._limits.strikes and (bool(provider.requests) or self._offers(provider))

    def _offers(self, provider: Provider) -> bool:
        return any(provider.offers(piece) for piece in self._pieces.wanted)

    def _count(self, pieces: Collection[int], step: int) -> None:
        """Rarity counts partial holders only: a whole one adds the same to every piece."""
        for piece in pieces:
            self._rarity[piece] = self._rarity.get(piece, 0) + step

    def _end(self, number: int) -> None:
        self._providers[self._pieces.requests[number].provider].requests.discard(number)
        self._pieces.end(number)
