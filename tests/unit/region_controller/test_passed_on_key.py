"""A request that is passed on twice is known again by the one who gets it."""

from __future__ import annotations

from region_controller.passing_on import passed_on_key

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def test_the_same_request_gets_the_same_key() -> None:
    assert passed_on_key("of the phone", DIGEST, ("lease",)) == passed_on_key("of the phone", DIGEST, ("lease",))


def test_another_request_gets_another() -> None:
    keys = {
        passed_on_key("of the phone", DIGEST, ()),
        passed_on_key("of another", DIGEST, ()),
        passed_on_key("of the phone", OTHER, ()),
        passed_on_key("of the phone", DIGEST, ("lease",)),
        passed_on_key(None, DIGEST, ()),
        passed_on_key(None, DIGEST, ()),
    }
    assert len(keys) == 6
    assert all(8 <= len(key) <= 64 for key in keys)
