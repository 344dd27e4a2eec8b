from __future__ import annotations

from protocol.decisions import Outcome, PlacementView
from protocol.instances import StartRequest
from protocol.problems import NoCapacity
from region_controller.recent import MAX_KEPT, RecentPlacements, refused_view


def a_view(service: str, at: float, outcome: Outcome = "warm", why: str = "") -> PlacementView:
    return PlacementView(at=at, outcome=outcome, service=service, why=why)


def test_a_service_in_demand_pushes_nobody_out() -> None:
    recent = RecentPlacements()
    recent.note(a_view("seldom", 1.0))
    for second in range(2, 1000):
        recent.note(a_view("often", float(second), why=f"at {second}"))
    recent.note(a_view("often", 1000.0, "refused"))
    told = [(v.service, v.outcome, v.times, v.at) for v in recent.views()]
    assert told == [("often", "refused", 1, 1000.0), ("often", "warm", 998, 999.0), ("seldom", "warm", 1, 1.0)]
    assert recent.views()[1].why == "at 999"


def test_the_oldest_makes_room() -> None:
    recent = RecentPlacements()
    for number in range(MAX_KEPT + 5):
        recent.note(a_view(f"s{number}", float(number)))
    views = recent.views()
    assert (len(views), views[0].service, views[-1].service) == (MAX_KEPT, f"s{MAX_KEPT + 4}", "s5")


def test_a_refusal_keeps_the_reason_of_each_region_and_has_an_end() -> None:
    problem = NoCapacity("nobody can", regions={"eu/a": "agent a: full", "eu/b": "it has no agents"})
    view = refused_view(StartRequest(category="/text"), problem, 5.0)
    assert view.service == "/text"
    assert view.why == "nobody can; eu/a: agent a: full; eu/b: it has no agents"
    assert view.problem == "no-capacity"
    many = NoCapacity("nobody can", regions={f"eu/{i}": "x" * 50 for i in range(1000)})
    assert len(refused_view(StartRequest(service="s"), many, 5.0).why) == 1000
