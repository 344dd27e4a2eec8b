"""Fifty regions on virtual time: requests find room where there is some, whoever dies; nobody is over-committed."""

from __future__ import annotations

import hashlib

from tests.region_mesh import Outcome, RegionMesh, Service, tree

AGREE_S = 10.0
REGIONS = tree(50)
LEAVES = [region for region in REGIONS if region.count("/") == 2]


def a_service(number: int, mem: int = 256) -> Service:
    return Service("sha256:" + hashlib.sha256(str(number).encode()).hexdigest(), mem)


def flooded(mesh: RegionMesh, region: str, count: int, first: int = 0) -> list[Outcome]:
    """Requests for so many different services, 20 a second."""
    outcomes = []
    for number in range(first, first + count):
        outcomes.append(mesh.ask(region, a_service(number)))
        mesh.run(0.05)
    return outcomes


def test_what_one_region_cannot_host_others_do_and_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        mesh = RegionMesh(REGIONS, 1)
        mesh.run(AGREE_S)
        runs.append(flooded(mesh, LEAVES[0], 120))
    assert all(one.placed for one in runs[0])
    assert {one.region.rpartition("/")[0] for one in runs[0] if one.hops == 1} >= {"r/m0"}, "siblings first"
    assert max(one.hops for one in runs[0]) <= 2
    assert [(one.region, one.asked) for one in runs[0]] == [(one.region, one.asked) for one in runs[1]]


def test_what_fits_nowhere_is_refused_after_each_region_was_asked_once() -> None:
    mesh = RegionMesh(REGIONS, 4)
    mesh.run(AGREE_S)
    outcome = mesh.ask(LEAVES[0], a_service(0, mem=9_000))
    assert not outcome.placed
    assert outcome.asked == len(REGIONS) - 1


def test_with_its_parent_and_the_root_dead_a_region_still_finds_room_at_once() -> None:
    mesh = RegionMesh(REGIONS, 2)
    mesh.run(AGREE_S)
    for region in ("r/m0", "r"):
        mesh.kill(region)
    outcomes = flooded(mesh, LEAVES[0], 120)
    assert all(one.placed for one in outcomes)
    mesh.run(AGREE_S)
    assert mesh.wrongly_alive() == set()
    assert mesh.siblings_agree()


def test_a_full_mesh_says_so_and_has_room_again_when_instances_end() -> None:
    mesh = RegionMesh(REGIONS[:3], 3, alive_s=20.0)
    mesh.run(AGREE_S)
    outcomes = flooded(mesh, "r/m0", 150)
    assert not all(one.placed for one in outcomes)
    assert max(one.asked for one in outcomes) == 2, "each of the others once"
    assert all(one.placed for one in outcomes if one.possible)
    mesh.run(30.0)
    assert mesh.ask("r/m0", a_service(999)).placed
