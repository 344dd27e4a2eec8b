"""What is told of a decision that several regions took part in stays short, and leaves nobody out of the count."""

from __future__ import annotations

import msgspec

from protocol.causes import Cause
from protocol.decisions import MAX_PASSED_OVER, MAX_WHY, Decision, PassedOver
from region_controller.agents import Warmth
from region_controller.explained import decided, handed_on, in_words, region_passed_over
from region_controller.placement import Nobody, Rival
from region_controller.resolution import Resolved
from tests.one_region import a_service


def ours(agents: int) -> Decision:
    rivals = tuple(Rival(f"a{n}", Warmth.COLD, "is full", Cause.MEMORY) for n in range(agents))
    return decided(Nobody({}, rivals), "here", Resolved(a_service(), "named"), strategy="nearest", variant="lean")


def test_regions_that_could_not_our_agents_and_theirs_are_told_in_that_order() -> None:
    theirs = Decision(warmth="built", passed_over=(PassedOver(region="there", agent="b", why="is busier"),), more=2)
    asked = [region_passed_over("beside", Cause.EMPTY, "it has no agents")]
    decision = handed_on(ours(2), asked, theirs)
    assert [one.region for one in decision.passed_over] == ["beside", "here", "here", "there"]
    assert (decision.warmth, decision.variant, decision.strategy, decision.more) == ("built", "lean", "nearest", 2)
    assert handed_on(ours(1), [], None).warmth is None, "nobody took it"


def test_however_many_were_asked_an_answer_stays_short_and_counts_them_all() -> None:
    asked = [region_passed_over(f"r{n}", Cause.MEMORY, "x" * 1_000) for n in range(300)]
    theirs = Decision(warmth="cold", passed_over=ours(MAX_PASSED_OVER).passed_over, more=10)
    decision = handed_on(ours(3), asked, theirs)
    assert len(decision.passed_over) == MAX_PASSED_OVER
    assert len(decision.passed_over) + decision.more == 300 + 3 + MAX_PASSED_OVER + 10
    assert {one.region[0] for one in decision.passed_over} == {"r", "h"}, "regions do not push out our own agents"
    assert max(len(one.why) for one in decision.passed_over) == MAX_WHY
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision
    assert len(in_words(["x" * 5_000])) == 1_000
