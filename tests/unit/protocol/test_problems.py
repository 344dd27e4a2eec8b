"""Problems survive the wire, whatever a hostile sender puts into them."""

from __future__ import annotations

import math

import pytest

from protocol.problems import AmbiguousService, Problem, Unavailable


def test_a_problem_comes_back_as_its_class() -> None:
    sent = AmbiguousService("two fit", fix="Name one.", candidates=[{"id": "a"}])
    back = Problem.from_dict(sent.to_dict())
    assert type(back) is AmbiguousService
    assert (back.detail, back.fix, back.extra) == (sent.detail, sent.fix, sent.extra)


def test_members_named_as_parameters_do_no_harm() -> None:
    back = Problem.from_dict({"type": "unknown", "self": 1, "detail": "d", "extra": 2, "fix": 3})
    assert (back.extra["self"], back.extra["extra"], back.detail, back.fix) == (1, 2, "d", "3")


@pytest.mark.parametrize("value", [math.inf, math.nan, "5", None])
def test_a_time_to_wait_is_a_finite_number(value: object) -> None:
    assert Unavailable("away", retry_after=value).retry_after is None
