"""The category tree: counts, order, and its bound."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol.instances import Category
from region_controller import categories
from region_controller.categories import MAX_SHOWN, category_tree


def all_of(tree: Category) -> Iterator[Category]:
    yield tree
    for child in tree.children:
        yield from all_of(child)


def test_a_subtree_counts_each_service_once() -> None:
    published = [("1", "/image/faces"), ("1", "/image/faces"), ("2", "/image"), ("3", "/text"), ("1", "/text")]
    tree = category_tree(published)
    assert {one.category: one.services for one in all_of(tree)} == {"/": 4, "/image": 2, "/image/faces": 1, "/text": 2}
    assert [child.category for child in tree.children] == ["/image", "/text"]
    assert {one.more for one in all_of(tree)} == {0}


def test_of_a_category_and_of_one_that_is_not_there() -> None:
    published = [("1", "/image/faces"), ("2", "/images"), ("3", "/")]
    assert category_tree(published, "/image") == Category("/image", 1, (Category("/image/faces", 1),))
    assert category_tree(published, "/sound") == Category("/sound", 0)
    assert category_tree([]) == Category("/", 0)


def test_of_too_many_those_with_the_most_services_are_shown_with_all_above_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(categories, "MAX_SHOWN", 5)
    published = [(str(n), f"/made/up/{n}") for n in range(9)] + [(f"t{n}", "/text/count") for n in range(20)]
    tree = category_tree(published)
    assert [one.category for one in all_of(tree)] == ["/", "/made", "/made/up", "/text", "/text/count"]
    assert {one.category: one.more for one in all_of(tree) if one.more} == {"/made/up": 9}
    assert len(category_tree(published, "/made/up").children) == 4, "whoever looks there sees some"


def test_ten_thousand_invented_categories_are_cut() -> None:
    tree = category_tree((str(n), "/" + "/".join(f"{n:05}{depth}" for depth in range(8))) for n in range(10_000))
    assert sum(1 for _ in all_of(tree)) == MAX_SHOWN
    assert tree.services == 10_000
