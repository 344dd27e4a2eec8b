"""The other controllers as this one hears of them now: a membership view. Pure: events come in with `now`.

Of one controller the newest (incarnation, version) counts. Ages only ever err upwards: an answer counts from when it
was asked for, and whoever passes a summary on adds how long it had it. So no chain of relays keeps a dead one alive.

Everybody talks to the nearest living ancestor, its uplink, and hears from it of the others. Without one, to whoever is
known of least rank (depth, region, node): the least of all stands in as the root. Each uplink has a lower rank than
its asker, so there are no circles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from protocol.identifiers import parent_region
from region_controller.hierarchy import Relative, step_to
from region_controller.summaries import (
    MAX_SUMMARIES,
    Exchange,
    ExchangeAnswer,
    Heard,
    Known,
    Load,
    Summary,
    Unchanged,
    summed,
)

FRESH_S = 4.0
"""A summary passed on over three links is up to 3 s old when it comes."""
GONE_S = 8.0
MAX_UPLINKS = 2
"""A parent region may have two controllers: both are told."""
RETRY_S = 1.0
RETRY_MOST_S = 8.0
MET_FOR_S = 60.0
"""How long one that was only found, and never answered, is tried."""
MISSED_FOR_S = 3600.0
"""How long one that was heard before is tried: when a long cut is healed, the mesh's records of the other side have run
out on either."""
MAX_REFUSED = 32
TOLD_WHOLE = 64
"""A view of so many is passed on as it is: in a small mesh everybody may know everybody."""

Freshness = Literal["fresh", "stale", "gone"]


class Target(Struct, frozen=True):
    """Whom to exchange summaries with. `wants_all`: it is an uplink, and tells of the others too."""

    node: str
    region: str
    addresses: tuple[str, ...]
    wants_all: bool


class _Relative(Struct):
    region: str
    node: str
    addresses: tuple[str, ...]
    summary: Summary | None = None
    heard: float = float("-inf")
    met: float = float("-inf")
    rtt_s: float | None = None
    failures: int = 0
    silent_addresses: int = 0
    retry_at: float = float("-inf")
    probed: float = float("-inf")
    refused: set[str] = msgspec.field(default_factory=set)

    @property
    def rank(self) -> tuple[int, str, str]:
        return _rank(self.region, self.node)


class RelativesView:
    """`incarnation`: Unix ms at the start of this controller."""

    def __init__(self, region: str, node: str, incarnation: int) -> None:
        self.region, self.node = region, node
        self._incarnation, self._version = incarnation, 0
        self._said: tuple[Load, Load, tuple[str, ...], bool] | None = None
        self._relatives: dict[str, _Relative] = {}

    # --- what we say ------------------------------------------------------------------------------------------------

    def own(self, load: Load, addresses: tuple[str, ...], now: float, *, leaving: bool = False) -> Summary:
        """Our summary: a new version if anything changed."""
        said = (load, self.below(now), addresses, leaving)
        if said != self._said:
            self._said, self._version = said, self._version + 1
        return Summary(
            self.region, self.node, addresses, self._incarnation, self._version, load, said[1], leaving=leaving
        )

    def below(self, now: float) -> Load:
        """The regions under ours: those right below, with what is below them.

        Two controllers of one region see the same below them: of those the one heard last counts.
        """
        under = [r for r in self._living(now) if r.region.startswith(self.region + "/")]
        paths = {r.region for r in under}
        tops = [r for r in under if not any(r.region.startswith(path + "/") for path in paths)]
        twins: dict[str, Load] = {}
        for one in sorted(tops, key=lambda r: r.heard):
            if one.summary is not None:
                twins[one.region] = one.summary.below
        return summed([*(s.load for r in tops if (s := r.summary) is not None), *twins.values()])

    def question(self, me: Summary, target: Target, now: float) -> Exchange:
        if not target.wants_all:
            return Exchange(me)
        return Exchange(me, tuple(Known(r.node, *s.stamp) for r in self._living(now) if (s := r.summary)))

    def answer(self, exchange: Exchange, me: Summary, now: float) -> ExchangeAnswer:
        """Everybody alive that is not below the asker; in full only where its version is another.

        In a large mesh, who has a controller above that is told of, too, is heard of through that one only.
        """
        if exchange.have is None:
            return ExchangeAnswer(me)
        asker, have = exchange.me, {k.node: (k.incarnation, k.version) for k in exchange.have}
        news, same = [], []
        living = self._living(now, leaving=True)
        beside = {r.region for r in living if not asker.region.startswith(r.region + "/")}
        for relative in living:
            summary = relative.summary
            if summary is None or relative.node == asker.node or relative.region.startswith(asker.region + "/"):
                continue
            if len(living) > TOLD_WHOLE and not beside.isdisjoint(_above(relative.region)):
                continue
            age_ms = int((now - relative.heard) * 1000) + 1
            if have.get(relative.node, (-1, -1)) >= summary.stamp:
                same.append(Unchanged(relative.node, age_ms))
            else:
                news.append(Heard(summary, age_ms))
        return ExchangeAnswer(me, tuple(news), tuple(same))

    # --- what we hear -----------------------------------------------------------------------------------------------

    def asked(self, exchange: Exchange, now: float) -> None:
        """Somebody told us of itself."""
        self.told(exchange.me, now)

    def answered(self, answer: ExchangeAnswer, target: Target, *, asked_at: float, now: float) -> None:
        """`asked_at`: when the question was sent."""
        if answer.me.node != target.node:
            self.failed(target.node, now)
            return
        self.told(answer.me, asked_at)
        for heard in answer.news:
            self.told(heard.summary, asked_at - heard.age_ms / 1000, now=now)
        for one in answer.same:
            relative = self._relatives.get(one.node)
            if relative is not None and relative.summary is not None:
                relative.heard = max(relative.heard, asked_at - one.age_ms / 1000)
        self.reached(target.node, now - asked_at)

    def told(self, summary: Summary, said_at: float, *, now: float | None = None) -> None:
        """`said_at`: when the controller itself said so, or later. What is gone already is not taken up."""
        if summary.node == self.node:
            self._refute(summary)
            return
        if now is not None and now - said_at > GONE_S:
            return
        relative = self._relatives.get(summary.node) or self._added(
            summary.region, summary.node, summary.addresses, said_at
        )
        if relative is None:
            return
        known = relative.summary
        if known is None or summary.stamp > known.stamp:
            relative.summary = summary
            relative.region, relative.addresses = summary.region, summary.addresses
            relative.refused.clear()
        if known is None or summary.stamp >= known.stamp:
            relative.heard = max(relative.heard, said_at)

    def _refute(self, summary: Summary) -> None:
        """An earlier life of ours had a clock that was ahead: what we say now must count as newer (SWIM, 4.2)."""
        if summary.stamp > (self._incarnation, self._version):
            self._incarnation = summary.incarnation + 1

    def met(self, region: str, node: str, addresses: tuple[str, ...], now: float) -> None:
        """The mesh's records or mDNS name a controller: a hint, until it answers."""
        if node == self.node or not addresses:
            return
        relative = self._relatives.get(node) or self._added(region, node, addresses, now, heard=False)
        if relative is not None:
            relative.met = now
            if relative.summary is None or self._freshness(relative, now) == "gone":
                relative.region, relative.addresses = region, addresses

    def _added(
        self, region: str, node: str, addresses: tuple[str, ...], now: float, *, heard: bool = True
    ) -> _Relative | None:
        """None if there is no room for one of so little use. `heard`: it lives; else it is a hint."""
        if len(self._relatives) >= MAX_SUMMARIES:
            leading = {r.region for r in self._living(now) if not self.region.startswith(r.region + "/")}

            def use(region: str, lives: bool) -> tuple[bool, bool, int]:
                """Less is better: who is heard, who is heard of through nobody else, who is near."""
                return not lives, not leading.isdisjoint(_above(region)), self._distance(region)

            of = {r.node: use(r.region, self._freshness(r, now) != "gone") for r in self._relatives.values()}
            least = max(self._relatives.values(), key=lambda r: (of[r.node], r.rank))
            if of[least.node] <= use(region, heard):
                return None
            del self._relatives[least.node]
        relative = self._relatives[node] = _Relative(region, node, addresses)
        return relative

    def _distance(self, region: str) -> int:
        """Who is forgotten last: the regions above us, for through them we hear of all others; then in the order in
        which they are asked to host."""
        return -1 if self.region.startswith(region + "/") else step_to(self.region, region)

    def reached(self, node: str, rtt_s: float) -> None:
        """It answered within `rtt_s`: smoothed as TCP does (RFC 6298, alpha 1/8)."""
        if relative := self._relatives.get(node):
            relative.rtt_s = rtt_s if relative.rtt_s is None else relative.rtt_s + (rtt_s - relative.rtt_s) / 8
            relative.failures, relative.retry_at = 0, float("-inf")

    def failed(self, node: str, now: float, jitter: float = 1.0) -> None:
        """It cannot be reached from here, whatever others say of it: left alone for a while. `jitter` from 0.5 to 1."""
        if relative := self._relatives.get(node):
            relative.retry_at = now + min(RETRY_MOST_S, RETRY_S * 2.0 ** min(relative.failures, 8)) * jitter
            relative.failures += 1
            relative.silent_addresses += 1

    def refused(self, node: str, digest: str) -> None:
        """It did not take a service: nor will it, until it says something new of itself."""
        if (relative := self._relatives.get(node)) and len(relative.refused) < MAX_REFUSED:
            relative.refused.add(digest)

    # --- whom to ask ------------------------------------------------------------------------------------------------

    def uplinks(self, now: float) -> list[Target]:
        mine = _rank(self.region, self.node)
        lower = [r for r in self._living(now) if r.retry_at <= now and r.rank < mine]
        ancestors = [r for r in lower if self.region.startswith(r.region + "/")]
        if ancestors:
            nearest = max(len(r.region) for r in ancestors)
            chosen = sorted((r for r in ancestors if len(r.region) == nearest), key=lambda r: r.node)[:MAX_UPLINKS]
        else:
            chosen = sorted(lower, key=lambda r: r.rank)[:1]
        return [_target(r, wants_all=True) for r in chosen]

    def probe(self, now: float) -> Target | None:
        """One of the others in turn (as SWIM does): is it reached from here, and in which time?

        A missed root comes first: through it everybody else is heard again.
        """
        linked = {t.node for t in self.uplinks(now)}
        others = [r for r in self._reachable(now) if r.node not in linked]
        least = min([_rank(self.region, self.node), *(r.rank for r in self._living(now))])
        chosen = min(others, key=lambda r: (r.rank >= least, r.probed, r.rank), default=None)
        if chosen is None:
            return None
        chosen.probed = now
        return _target(chosen, wants_all=False)

    def relatives(self, now: float) -> list[Relative]:
        """All that are alive, as hand-off weighs them: see `Relative`."""
        return [
            Relative(
                region=s.region,
                node=s.node,
                addresses=s.addresses,
                age_s=max(0.0, now - r.heard),
                load=s.load,
                below=s.below,
                rtt_s=r.rtt_s,
                reachable=r.failures == 0,
                refused=frozenset(r.refused),
                live=True,
            )
            for r in self._living(now)
            if (s := r.summary) is not None
        ]

    def resting(self, now: float) -> set[str]:
        """Node ids of those that did not answer us of late, and are left alone."""
        return {r.node for r in self._relatives.values() if r.retry_at > now}

    def sweep(self, now: float) -> list[str]:
        """Forget who is gone. Returns their node ids."""
        over = [r.node for r in self._relatives.values() if not self._looked_for(r, now)]
        for node in over:
            del self._relatives[node]
        return over

    def freshness(self, node: str, now: float) -> Freshness:
        relative = self._relatives.get(node)
        return "gone" if relative is None else self._freshness(relative, now)

    def _freshness(self, relative: _Relative, now: float) -> Freshness:
        age = now - relative.heard
        return "fresh" if age <= FRESH_S else "stale" if age <= GONE_S else "gone"

    def _living(self, now: float, *, leaving: bool = False) -> list[_Relative]:
        return [
            r
            for r in self._relatives.values()
            if r.summary is not None and self._freshness(r, now) != "gone" and (leaving or not r.summary.leaving)
        ]

    def _reachable(self, now: float) -> Sequence[_Relative]:
        """Those alive, and those that were met lately or are missed: only asking shows whether they are back."""
        return [
            r
            for r in self._relatives.values()
            if r.retry_at <= now and self._looked_for(r, now) and not (_left(r) and r.met <= r.heard)
        ]

    def _looked_for(self, relative: _Relative, now: float) -> bool:
        patience_s = GONE_S if _left(relative) else MISSED_FOR_S
        return now - relative.heard <= patience_s or now - relative.met <= MET_FOR_S


def _left(relative: _Relative) -> bool:
    """It said goodbye."""
    return relative.summary is not None and relative.summary.leaving


def _above(region: str) -> Iterator[str]:
    while region := parent_region(region):
        yield region


def _rank(region: str, node: str) -> tuple[int, str, str]:
    return region.count("/"), region, node


def _target(relative: _Relative, *, wants_all: bool) -> Target:
    """Its addresses, beginning with the one that answered last: after each failure the next one has its turn."""
    first = relative.silent_addresses % len(relative.addresses)
    return Target(relative.node, relative.region, relative.addresses[first:] + relative.addresses[:first], wants_all)
