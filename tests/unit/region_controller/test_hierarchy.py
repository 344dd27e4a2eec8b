from __future__ import annotations

import pytest

from protocol.records import RegionRecord
from region_controller.hierarchy import candidates, lookup_names, recorded, relation

NOW = 10_000.0


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
