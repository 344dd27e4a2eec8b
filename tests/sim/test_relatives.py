"""Forty controllers in three levels on virtual time: who is alive is known to all within 10 s, whatever happened."""

from __future__ import annotations

import hashlib
import random

from region_controller.relatives import GONE_S, RelativesView, Target
from region_controller.summaries import Load, Summary

AGREE_S = 10.0
REGIONS = ["eu", *(f"eu/{c}" for c in "abc"), *(f"eu/{c}/{n}" for c in "abc" for n in range(12))]
LEAF = Load(agents=1, memory_total=100, memory_free=100, largest_free=100)


def node(region: str) -> str:
    return hashlib.sha256(region.encode()).hexdigest()[:40]


class Mesh:
    """Ticks of one second. Whoever is up is in the mesh's records, which everyone reads every 5 s."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.views: dict[str, RelativesView] = {}
        self.cut: set[frozenset[str]] = set()
        self.records = True
        self.messages: dict[str, int] = dict.fromkeys(REGIONS, 0)
        self._lives = 0
        for region in REGIONS:
            self.start(region)

    def start(self, region: str) -> None:
        self._lives += 1
        self.views[region] = RelativesView(region, node(region), self._lives)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            for region in self.chance.sample(sorted(self.views), len(self.views)):
                self.now += 1.0 / len(self.views)
                self._tick(self.views[region])

    def _tick(self, view: RelativesView) -> None:
        if int(self.now) % 5 == 0:
            line = [r for r in self.views if self.records and self._found_by(view.region, r)]
            for region in line:
                view.met(region, node(region), (f"{region.replace('/', '.')}:1",), self.now)
        view.sweep(self.now)
        probe = view.probe(self.now)
        for target in [*view.uplinks(self.now), *([probe] if probe else [])]:
            self._exchange(view, target)

    @staticmethod
    def _found_by(home: str, other: str) -> bool:
        """The records at `hierarchy.lookup_names`: ancestors, their children, our own children."""
        parent = other.rpartition("/")[0]
        above, beside_the_line = (home + "/").startswith(other + "/"), not parent or home.startswith(parent + "/")
        return home == parent or above or beside_the_line

    def _exchange(self, view: RelativesView, target: Target) -> None:
        self.messages[view.region] += 1
        other = self.views.get(target.region)
        if other is None or frozenset({view.region, target.region}) in self.cut:
            view.failed(target.node, self.now, self.chance.uniform(0.5, 1.0))
            return
        self.messages[target.region] += 1
        question = view.question(self._own(view), target, self.now)
        other.asked(question, self.now)
        answer = other.answer(question, self._own(other), self.now)
        view.answered(answer, target, asked_at=self.now, now=self.now + 0.02)

    def _own(self, view: RelativesView) -> Summary:
        return view.own(LEAF, (f"{view.region.replace('/', '.')}:1",), self.now)

    def seen(self, region: str) -> set[str]:
        return {r.region for r in self.views[region].relatives(self.now)}

    def wrongly_alive(self) -> set[tuple[str, str]]:
        return {(v, r) for v in self.views for r in self.seen(v) if r not in self.views}

    def siblings_agree(self) -> bool:
        """Everyone sees every living sibling, and the root all of its children."""
        parents = {r: r.rpartition("/")[0] for r in self.views}
        return all(
            other in self.seen(region)
            for region, parent in parents.items()
            for other in self.views
            if other != region and (parents[other] == parent or other == parent)
        )


def test_a_dead_parent_is_bridged_and_the_tree_re_forms_when_it_returns() -> None:
    mesh = Mesh(1)
    mesh.run(AGREE_S)
    assert mesh.siblings_agree()
    root = mesh.views["eu"]
    assert root.below(mesh.now).agents == len(REGIONS) - 1

    del mesh.views["eu/a"]
    mesh.run(AGREE_S)
    assert mesh.wrongly_alive() == set()
    assert mesh.siblings_agree(), "orphans hear of each other from the grandparent"
    assert {t.region for t in mesh.views["eu/a/0"].uplinks(mesh.now)} == {"eu"}

    mesh.start("eu/a")
    mesh.run(AGREE_S)
    assert mesh.siblings_agree()
    assert {t.region for t in mesh.views["eu/a/0"].uplinks(mesh.now)} == {"eu/a"}


def test_without_the_root_a_child_of_it_stands_in() -> None:
    mesh = Mesh(2)
    mesh.run(AGREE_S)
    del mesh.views["eu"]
    mesh.run(AGREE_S)
    assert mesh.wrongly_alive() == set()
    assert mesh.siblings_agree()
    assert [t.region for c in "abc" for t in mesh.views[f"eu/{c}"].uplinks(mesh.now)] == ["eu/a", "eu/a"]


def test_siblings_that_are_cut_from_each_other_hear_of_each_other_and_know_that_they_are_cut() -> None:
    mesh = Mesh(3)
    mesh.run(AGREE_S)
    mesh.cut.add(frozenset({"eu/b/1", "eu/b/2"}))
    mesh.run(4 * AGREE_S)
    (other,) = (r for r in mesh.views["eu/b/1"].relatives(mesh.now) if r.region == "eu/b/2")
    assert other.age_s < GONE_S
    assert mesh.views["eu/b/1"].freshness(node("eu/b/2"), mesh.now) == "fresh"
    assert mesh.views["eu/b/1"]._relatives[node("eu/b/2")].failures > 0
    mesh.cut.clear()
    mesh.run(4 * AGREE_S)
    assert mesh.views["eu/b/1"]._relatives[node("eu/b/2")].failures == 0


def test_a_subtree_that_was_cut_off_for_minutes_is_back_within_10_s_without_any_record() -> None:
    mesh = Mesh(5)
    mesh.run(AGREE_S)
    inside = {r for r in REGIONS if (r + "/").startswith("eu/a/")}
    mesh.cut = {frozenset({i, o}) for i in inside for o in REGIONS if o not in inside}
    mesh.records = False  # they live for a minute
    mesh.run(600.0)
    assert mesh.seen("eu/a/0") == inside - {"eu/a/0"}
    assert mesh.seen("eu") & inside == set()
    mesh.cut.clear()
    mesh.run(AGREE_S)
    assert mesh.siblings_agree()


def test_messages_grow_with_the_children_only() -> None:
    mesh = Mesh(4)
    mesh.run(AGREE_S)
    mesh.messages = dict.fromkeys(REGIONS, 0)
    mesh.run(20.0)
    per_s = {region: count / 20.0 for region, count in mesh.messages.items()}
    assert max(per_s[r] for r in REGIONS if r.count("/") == 2) < 8
    assert per_s["eu/a"] < 12 + 8
    assert per_s["eu"] < 3 + 8
