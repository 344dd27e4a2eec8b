"""A decision as machines are told of it: rules' own terms become the bounded structs of `protocol.decisions`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from protocol.causes import Cause
from protocol.decisions import MAX_PASSED_OVER, Class, Decision, PassedOver, cut
from protocol.service import Strategy
from region_controller.agents import Warmth
from region_controller.placement import Nobody, Placement, Rival
from region_controller.resolution import Resolved

CLASS: Mapping[Warmth, Class] = {
    Warmth.WARM: "warm",
    Warmth.PAUSED: "paused",
    Warmth.BUILT: "built",
    Warmth.CACHED: "cached",
    Warmth.COLD: "cold",
}
MAX_WORDS = 1_000
"""Of a whole reason in words, which grows with each region that hands a request on."""


def decided(
    choice: Placement | Nobody, region: str, resolved: Resolved, *, strategy: Strategy, variant: str | None
) -> Decision:
    """What was chosen in `region` among its agents, or that none of them can."""
    return Decision(
        warmth=CLASS[choice.warmth] if isinstance(choice, Placement) else None,
        strategy=strategy,
        variant=variant,
        passed_over=tuple(_passed_over(region, rival) for rival in choice.rivals),
        more=choice.more,
        services=resolved.others,
        more_services=resolved.more,
    )


def _passed_over(region: str, rival: Rival) -> PassedOver:
    return PassedOver(
        region=region, agent=rival.node, warmth=CLASS[rival.warmth], cause=rival.cause, why=cut(rival.why)
    )


def region_passed_over(region: str, cause: Cause | None, why: str) -> PassedOver:
    return PassedOver(region=region, cause=cause, why=cut(why))


def handed_on(ours: Decision, regions: Sequence[PassedOver], theirs: Decision | None) -> Decision:
    """A decision that another region took, after ours: the regions that could not, our agents, then theirs."""
    theirs = theirs or Decision()
    everybody = [*_first_half(regions), *ours.passed_over, *theirs.passed_over]
    shown = tuple(everybody[:MAX_PASSED_OVER])
    total = len(regions) + len(ours.passed_over) + ours.more + len(theirs.passed_over) + theirs.more
    return msgspec.structs.replace(ours, warmth=theirs.warmth, passed_over=shown, more=total - len(shown))


def _first_half(regions: Sequence[PassedOver]) -> Sequence[PassedOver]:
    """Agents want to be seen, too."""
    return regions[: MAX_PASSED_OVER // 2]


def in_words(parts: Iterable[str]) -> str:
    return cut("; ".join(part for part in parts if part), MAX_WORDS)
