from __future__ import annotations

import pytest

from protocol.problems import NoCapacity, Problem


def test_a_problem_comes_back_as_its_own_class() -> None:
    told = Problem.from_dict(NoCapacity("full", fix="wait", regions={"eu": "full"}, retry_after=5).to_dict())
    assert isinstance(told, NoCapacity)
    assert (told.detail, told.fix, told.retry_after) == ("full", "wait", 5)
    assert told.extra["regions"] == {"eu": "full"}


@pytest.mark.parametrize("member", ["self", "status", "slug", "extra", "kind"])
def test_a_strangers_members_are_only_members(member: str) -> None:
    told = Problem.from_dict({"type": "x", "detail": "odd", member: 1})
    assert (type(told), told.detail, told.status) == (Problem, "odd", 500)
