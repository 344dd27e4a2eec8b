"""What became of the latest requests for services, for `cornerstore status --why`. Pure; bounded."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from protocol.decisions import Outcome, PlacementView
from protocol.instances import StartAnswer, StartRequest
from protocol.problems import Problem
from region_controller.explained import in_words

MAX_KEPT = 64

_Key = tuple[str, str, str, str, str, str]


class RecentPlacements:
    """Equal ones count as one: a service that is asked for all the time must not push out all others."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, PlacementView] = OrderedDict()

    def note(self, view: PlacementView) -> None:
        key = (view.outcome, view.service, view.digest, view.region, view.agent, view.problem)
        if before := self._kept.pop(key, None):
            view = msgspec.structs.replace(view, times=before.times + 1)
        self._kept[key] = view
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def views(self) -> list[PlacementView]:
        """The latest first."""
        return list(reversed(self._kept.values()))


def answered_view(answer: StartAnswer, outcome: Outcome, at: float) -> PlacementView:
    return PlacementView(
        at=at,
        outcome=outcome,
        service=answer.service.id,
        digest=answer.service.digest,
        region=answer.region,
        agent=answer.agent,
        instance=answer.instance,
        why=answer.why,
        decision=answer.decision,
    )


def refused_view(request: StartRequest, problem: Problem, at: float) -> PlacementView:
    """With the reason of each region, where the problem has them."""
    regions = problem.extra.get("regions")
    reasons = [f"{region}: {why}" for region, why in regions.items()] if isinstance(regions, dict) else []
    return PlacementView(
        at=at,
        outcome="refused",
        service=request.service or request.category or "/",
        why=in_words([problem.detail, *reasons]),
        problem=problem.slug,
    )
