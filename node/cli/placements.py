"""Why services are where they are, as people read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from node.cli.output import styled
from protocol.decisions import Decision, PassedOver, PlacementView

if TYPE_CHECKING:
    from rich.text import Text

_HAD = {
    "warm": "runs it",
    "paused": "has it frozen",
    "built": "has it built",
    "cached": "has its archive",
    "cold": "has nothing of it",
}


def placement_lines(views: Sequence[PlacementView], now: float) -> list[Text]:
    """A heading for each placement, its reason below, then who did not get it."""
    lines = []
    for view in views:
        lines.append(_heading(view, now))
        lines.append(styled(f"  {view.why}", "dim"))
        lines += [styled(f"  {text}", "dim") for text in instead_of(view.decision)]
    return lines


def _heading(view: PlacementView, now: float) -> Text:
    where = f" on agent {view.agent[:8]} of {view.region}" if view.agent else ""
    if view.outcome == "would":
        return styled(f"{view.service} would be placed{where or ' nowhere here'}", "bold")
    times = f", {view.times} times" if view.times > 1 else ""
    outcome = f"refused ({view.problem})" if view.outcome == "refused" else view.outcome
    said = f"{view.service} {outcome}{where}{times}"
    return styled(said, "yellow" if view.outcome == "refused" else "bold").append(
        f", {max(0.0, now - view.at):.0f} s ago", "not bold"
    )


def instead_of(decision: Decision | None) -> list[str]:
    """Who did not get it and why, one a line."""
    if decision is None:
        return []
    lines = [f"not {_who(one)}: {_why(one)}" for one in decision.passed_over]
    if decision.more:
        lines.append(f"and {decision.more} more")
    lines += [f"not {other.id} ({other.name}): {other.why}" for other in decision.services]
    if decision.more_services:
        lines.append(f"and {decision.more_services} more services")
    return lines


def _who(one: PassedOver) -> str:
    return f"agent {one.agent[:8]} of {one.region}" if one.agent else f"region {one.region}"


def _why(one: PassedOver) -> str:
    """What a refused agent had of it is worth a word."""
    had = _HAD.get(one.warmth or "")
    return f"{had}, but {one.why}" if one.cause is not None and had and one.warmth != "cold" else one.why
