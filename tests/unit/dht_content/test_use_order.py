from __future__ import annotations

from dht.blobs.use_order import UseOrder


def test_every_use_comes_after_all_before_it_also_those_of_an_earlier_life() -> None:
    use = UseOrder()
    use.restore({"a": 7, "b": 3})
    assert use.touch("b") > 7
    with use.holding("a"):
        assert use.order()["a"] > use.order()["b"]
    use.forget("b")
    assert set(use.order()) == {"a"}


def test_what_two_hold_is_held_until_both_let_go() -> None:
    use = UseOrder()
    with use.holding("a"):
        with use.holding("a"):
            assert use.held() == {"a"}
        assert use.held() == {"a"}
    assert use.held() == set()
