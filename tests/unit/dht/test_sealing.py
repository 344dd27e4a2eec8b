from __future__ import annotations

import msgspec
import pytest

from dht.overlay.sealing import MAX_DATAGRAM, MAX_PLAINTEXT, Keyring, ReplayWindow, Sealer
from protocol.problems import TooLarge

OLD, NEW = b"o" * 32, b"n" * 32
BEFORE = Keyring(mesh="m", keys={1: OLD}, current=1)
DURING = Keyring(mesh="m", keys={1: OLD, 2: NEW}, current=2)
AFTER = Keyring(mesh="m", keys={2: NEW}, current=2)


def test_what_one_member_seals_another_opens_once() -> None:
    datagram = Sealer(BEFORE).seal(b"hello")
    receiver = Sealer(BEFORE)
    assert receiver.open(datagram) == b"hello"
    assert receiver.open(datagram) is None


def test_the_largest_message_fills_a_datagram_and_a_larger_one_never_leaves() -> None:
    sealer = Sealer(BEFORE)
    assert len(sealer.seal(b"x" * MAX_PLAINTEXT)) == MAX_DATAGRAM
    with pytest.raises(TooLarge):
        sealer.seal(b"x" * (MAX_PLAINTEXT + 1))


@pytest.mark.parametrize(
    "keyring",
    [
        Keyring(mesh="other", keys={1: OLD}, current=1),
        Keyring(mesh="m", keys={1: NEW}, current=1),
        Keyring(mesh="m", keys={3: OLD}, current=3),
    ],
    ids=["other mesh name", "other key", "unknown key id"],
)
def test_strangers_cannot_open(keyring: Keyring) -> None:
    assert Sealer(keyring).open(Sealer(BEFORE).seal(b"hello")) is None


def test_every_changed_bit_is_noticed() -> None:
    datagram = Sealer(BEFORE).seal(b"hello")
    for at in range(len(datagram)):
        changed = datagram[:at] + bytes([datagram[at] ^ 1]) + datagram[at + 1 :]
        assert Sealer(BEFORE).open(changed) is None, at


@pytest.mark.parametrize("size", [0, 1, 14, 29, MAX_DATAGRAM + 1])
def test_impossible_sizes_do_not_open(size: int) -> None:
    assert Sealer(BEFORE).open(b"\1" * size) is None


def test_a_key_is_replaced_without_a_flag_day() -> None:
    assert Sealer(DURING).open(Sealer(BEFORE).seal(b"a")) == b"a"
    assert Sealer(DURING).open(Sealer(AFTER).seal(b"b")) == b"b"
    assert Sealer(AFTER).open(Sealer(BEFORE).seal(b"c")) is None
    rotated = Sealer(BEFORE)
    rotated.use(AFTER)
    assert Sealer(AFTER).open(rotated.seal(b"d")) == b"d"


def test_nonces_differ_within_and_across_restarts() -> None:
    nonces = [sealer.seal(b"")[2:14] for sealer in (Sealer(BEFORE), Sealer(BEFORE)) for _ in range(100)]
    assert len(set(nonces)) == 200


def test_a_spent_counter_draws_a_new_prefix() -> None:
    prefixes = iter([b"first---", b"second--"])
    sealer = Sealer(BEFORE, random=lambda n: next(prefixes))
    assert sealer.seal(b"")[2:14] == b"first---" + bytes(4)
    sealer._counter = 2**32 - 1
    assert sealer.seal(b"")[2:14] == b"first---\xff\xff\xff\xff"
    assert sealer.seal(b"")[2:14] == b"second--" + bytes(4)


def test_a_keyring_needs_its_current_key() -> None:
    with pytest.raises(ValueError, match="not in the keyring"):
        Keyring(mesh="m", keys={1: OLD}, current=2)


def test_the_replay_window_admits_overtaking_but_not_the_distant_past() -> None:
    window = ReplayWindow(depth=4)
    assert [window.admit(b"p", n) for n in (5, 3, 5, 3, 2, 1, 9, 5, 8)] == [
        True,
        True,
        False,
        False,
        True,
        False,
        True,
        False,
        True,
    ]


def test_the_replay_window_forgets_the_least_recent_sender() -> None:
    window = ReplayWindow(senders=2)
    assert [window.admit(p, 0) for p in (b"a", b"b", b"c", b"c", b"b", b"a")] == [True, True, True, False, False, True]


def test_a_keyring_never_shows_its_keys() -> None:
    assert "oooo" not in repr(BEFORE) + str(BEFORE.__rich_repr__())
    assert msgspec.json.decode(msgspec.json.encode(DURING), type=Keyring) == DURING
