from __future__ import annotations

import pytest

from protocol.records import RegionRecord
from protocol.service import Strategy
from region_controller.hierarchy import Relative, candidates, lookup_names, recorded, relation, too_far, warm_within
from region_controller.summaries import Load, mark_of

NOW = 10_000.0
DIGEST = "sha256:" + "ab" * 32


def a_region(region: str, *, node: str = "", free: int = 500, agents: int = 1, age: float = 0.0) -> RegionRecord:
    return RegionRecord(
        region=region,
        node=node or region,
        addresses=("10.0.0.1:7401",),
        agents=agents,
        memory_total=1000,
        memory_free=free,
        seq=int((NOW - age) * 1000),
        expiry=int(NOW) + 60,
    )


def order(home: str, *records: RegionRecord, visited: frozenset[str] = frozenset()) -> list[str]:
    hops = candidates(home, recorded(records, NOW), me="me", visited=visited, mem=100)
    return [hop.node for hop in hops]


def test_siblings_then_their_subtrees_then_upward() -> None:
    regions = ["eu", "us", "eu/fr/paris", "eu/fr", "eu/de", "eu/de/ka/west", "eu/de/ka", "eu/de/da/mitte", "us/ny"]
    expected = [
        "eu/de/da/mitte",  # below us
        "eu/de/ka",  # sibling
        "eu/de/ka/west",  # its subtree
        "eu/de",  # parent
        "eu/fr",  # the parent's siblings
        "eu/fr/paris",
        "eu",
        "us",
        "us/ny",
    ]
    assert order("eu/de/da", *map(a_region, regions)) == expected
    assert order("eu/de/da", *map(a_region, reversed(regions))) == expected


def test_a_second_controller_of_our_own_region_comes_first() -> None:
    assert order("eu/de", a_region("eu/fr"), a_region("eu/de", node="twin"), a_region("eu/de", node="me")) == [
        "twin",
        "eu/fr",
    ]


def test_within_a_step_room_then_freshness_then_memory_then_name() -> None:
    records = [
        a_region("r/full", free=99),
        a_region("r/empty", agents=0),
        a_region("r/stale", free=900, age=40),
        a_region("r/small", free=200, age=3),
        a_region("r/large", free=800, age=10),
        a_region("r/twin", free=800, age=10),
    ]
    assert order("r/home", *records) == ["r/large", "r/twin", "r/small", "r/stale", "r/empty", "r/full"]


def test_visited_expired_and_old_news_are_left_out() -> None:
    old, new = a_region("r/b", free=10, age=9), a_region("r/b", free=700)
    expired = a_region("r/c", age=1)
    assert order("r/a", old, new, visited=frozenset({"r/b"})) == []
    assert recorded([expired], NOW + 61) == []
    assert order("r/a", new, old, a_region("r/d", free=650)) == ["r/b", "r/d"]


def test_lookup_names_climb_to_the_top() -> None:
    assert lookup_names("eu/de") == [
        "region:eu/de",
        "children:eu/de",
        "children:eu",
        "region:eu",
        "children:",
    ]


@pytest.mark.parametrize(
    ("other", "expected"),
    [("eu/de", "self"), ("eu", "parent"), ("eu/fr", "sibling"), ("eu/de/da", "child"), ("eu/fr/paris", "other")],
)
def test_relation(other: str, expected: str) -> None:
    assert relation("eu/de", other) == expected


def heard(
    region: str, *, warm: bool = False, rtt_ms: float | None = 1.0, free: int = 500, refused: bool = False
) -> Relative:
    return Relative(
        region=region,
        node=region,
        addresses=("10.0.0.1:7401",),
        age_s=1.0,
        load=Load(agents=1, largest_free=free, warm=(mark_of(DIGEST),) if warm else ()),
        rtt_s=None if rtt_ms is None else rtt_ms / 1000,
        refused=frozenset({DIGEST} if refused else ()),
        live=True,
    )


def weighed(*known: Relative) -> list[str]:
    return [h.node for h in candidates("r/home", known, me="me", visited=(), mem=100, digest=DIGEST)]


def test_within_a_step_who_runs_it_then_who_is_nearer() -> None:
    assert weighed(
        heard("r/far", rtt_ms=40, free=900),
        heard("r/unmeasured", rtt_ms=None, free=900),
        heard("r/near", rtt_ms=2),
        heard("r/roomier and as near", rtt_ms=4, free=600),
        heard("r/warm", warm=True, rtt_ms=80, free=0),
        heard("elsewhere/warm", warm=True),
    ) == ["r/warm", "r/roomier and as near", "r/near", "r/far", "r/unmeasured", "elsewhere/warm"]


def test_nearest_puts_the_round_trip_before_the_tree_and_a_bound_leaves_out_who_is_farther() -> None:
    known = [
        heard("r/sibling", rtt_ms=20),
        heard("far/away", rtt_ms=3),
        heard("r/unmeasured", rtt_ms=None),
        heard("r/refused", rtt_ms=1, refused=True),
    ]

    def order(strategy: Strategy = "spread", within_ms: float | None = None) -> list[str]:
        hops = candidates(
            "r/home", known, me="me", visited=(), mem=1, digest=DIGEST, strategy=strategy, within_ms=within_ms
        )
        return [hop.node for hop in hops]

    assert order() == ["r/sibling", "r/unmeasured", "far/away", "r/refused"]
    assert order("nearest") == ["far/away", "r/sibling", "r/unmeasured", "r/refused"]
    assert order(within_ms=10) == ["far/away", "r/refused"]
    assert too_far(None, None) is too_far(1.0, None) is too_far(0.01, 10.0) is None
    refusals = [too_far(0.02, 10.0), too_far(None, 10.0)]
    assert [why and why.detail for why in refusals] == [
        "it is 20 ms away, 10 ms are allowed",
        "how far away it is was not measured yet, 10 ms are allowed",
    ]


def test_the_nearest_that_runs_it_within_the_bound() -> None:
    known = [
        heard("r/cold"),
        heard("r/warm", warm=True, rtt_ms=9),
        heard("far/away/warm", warm=True, rtt_ms=3),
        heard("r/unmeasured", warm=True, rtt_ms=None),
        heard("r/refused", warm=True, refused=True),
    ]

    def nearest(within_ms: float, visited: tuple[str, ...] = ()) -> str | None:
        found = warm_within(within_ms / 1000, known, me="me", visited=visited, digest=DIGEST)
        return found and found.node

    assert nearest(10) == "far/away/warm"
    assert nearest(10, visited=("far/away/warm",)) == "r/warm"
    assert nearest(2) is None
