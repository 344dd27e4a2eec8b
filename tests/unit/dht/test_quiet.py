from __future__ import annotations

from dht.quiet import MAX_REMEMBERED, QUIET_S, Quiet


def test_the_same_is_said_once_and_again_after_a_while() -> None:
    quiet = Quiet()
    assert [quiet.may_say("full", now) for now in (5.0, 6.0, 5.0 + QUIET_S, 6.0 + QUIET_S)] == [
        True,
        False,
        True,
        False,
    ]


def test_something_else_is_said_at_once_and_what_is_remembered_is_bounded() -> None:
    quiet = Quiet()
    assert all(quiet.may_say(str(number), 0.0) for number in range(MAX_REMEMBERED + 1))
    assert quiet.may_say("0", 1.0), "forgotten, so that others are remembered"
    assert not quiet.may_say(str(MAX_REMEMBERED), 1.0)
