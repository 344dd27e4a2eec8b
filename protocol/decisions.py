"""Why a request was placed as it was, for machines: what the `why` of an answer says in words."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from protocol.causes import Cause
from protocol.service import Strategy

MAX_PASSED_OVER = 8
MAX_WHY = 240
MAX_NAME = 512

Class = Literal["warm", "paused", "built", "cached", "cold"]
"""How much of a start was done already, best first."""
Outcome = Literal["cold", "warm", "handed-off", "refused", "would"]
Why = Annotated[str, Meta(max_length=MAX_WHY)]
Name = Annotated[str, Meta(max_length=MAX_NAME)]


class PassedOver(Struct, frozen=True, kw_only=True):
    """An agent, or with an empty `agent` a whole region, that did not get the service.

    `warmth`: how much of a start was done there, None: not known. `cause`: why it cannot; None: another was better.
    """

    region: Name
    agent: Name = ""
    warmth: Class | None = None
    cause: Cause | None = None
    why: Why = ""


class OtherService(Struct, frozen=True, kw_only=True):
    """A service that fits the description as well, and why another was taken."""

    digest: Name
    id: Name
    name: Name
    why: Why = ""


class Decision(Struct, frozen=True, kw_only=True):
    """`warmth`: the class that was chosen; None: nobody can. `strategy` and `variant`: what the service's policies made
    of it. `passed_over`: those that had most of the service first; `more`: how many are not shown. `services`, in order
    of preference, where the request was a description; `more_services` likewise."""

    warmth: Class | None = None
    strategy: Strategy = "spread"
    variant: Name | None = None
    passed_over: Annotated[tuple[PassedOver, ...], Meta(max_length=MAX_PASSED_OVER)] = ()
    more: int = 0
    services: Annotated[tuple[OtherService, ...], Meta(max_length=MAX_PASSED_OVER)] = ()
    more_services: int = 0


class PlacementView(Struct, frozen=True, kw_only=True):
    """`GET /v1/placements`: what became of requests for services.

    Equal ones count as one: `times`, of which the last was `at` (Unix s). `outcome` would: nothing was started, only
    asked. `service`: as requested; `digest` empty: which one is meant is not known. `problem`: its slug, if refused.
    """

    at: float
    outcome: Outcome
    service: str
    digest: str = ""
    region: str = ""
    agent: str = ""
    instance: str = ""
    why: str = ""
    problem: str = ""
    times: int = 1
    decision: Decision | None = None


def cut(text: str, limit: int = MAX_WHY) -> str:
    """The beginning of it, with dots where it was longer."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
