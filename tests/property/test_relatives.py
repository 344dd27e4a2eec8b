"""The view of other controllers, whatever comes in: versions only grow, and hearsay never makes anybody younger."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from region_controller.relatives import GONE_S, RelativesView, Target
from region_controller.summaries import ExchangeAnswer, Heard, Summary

NODES = ("a" * 40, "b" * 40)
UPLINK = Target("c" * 40, "eu", ("10.0.0.1:1",), wants_all=True)

# Of which node, which incarnation and version, spoken how long ago in ms, and how much later it is heard.
words = st.tuples(
    st.sampled_from(NODES), st.integers(1, 3), st.integers(1, 5), st.integers(0, 12_000), st.floats(0.0, 5.0)
)


@given(st.lists(words, max_size=30))
def test_versions_grow_and_ages_are_never_less_than_the_truth(heard: list[tuple[str, int, int, int, float]]) -> None:
    view, now = RelativesView("eu/x", "d" * 40, 1), 100.0
    spoken: dict[str, float] = {}
    stamps: dict[str, tuple[int, int]] = {}
    for node, incarnation, version, age_ms, later in heard:
        now += later
        summary = Summary("eu/y", node, ("10.0.0.2:1",), incarnation, version)
        answer = ExchangeAnswer(Summary("eu", UPLINK.node, UPLINK.addresses, 1, 1), (Heard(summary, age_ms),))
        view.answered(answer, UPLINK, asked_at=now, now=now + 0.01)
        spoken[node] = max(spoken.get(node, float("-inf")), now - age_ms / 1000)
        living = {r.node: r for r in view.relatives(now)}
        assert set(living) <= {UPLINK.node} | {n for n, at in spoken.items() if now - at <= GONE_S + 1e-6}
        for relative in living.values():
            if relative.node != UPLINK.node:
                assert relative.age_s >= now - spoken[relative.node] - 1e-6
        for one in NODES:
            if (known := view._relatives.get(one)) and known.summary:
                assert known.summary.stamp >= stamps.get(one, (0, 0))
                stamps[one] = known.summary.stamp
    assert view.relatives(now + GONE_S + 1.0) == []
