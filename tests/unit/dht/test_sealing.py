from __future__ import annotations

import msgspec
import pytest

from dht.overlay.sealing import MAX_DATAGRAM, MAX_PLAINTEXT, Keyring, ReplayWindow, Sealer
from protocol.problems import TooLarge

OLD, NEW = b"o" * 32, b"n" * 32
BEFORE = Keyring(mesh="m", keys={1: OLD}, current=1)
DURING = Keyring(mesh="m", keys={1: OLD, 2: NEW}, current=2)
AFTER = Keyring(mesh="m", keys={2: NEW}, current=2)


def said(sealer: Sealer, datagram: bytes) -> bytes | None:
    """What it opens to."""
    opened = sealer.open(datagram)
    return None if opened is None else opened.plaintext


def test_what_one_member_seals_another_opens_and_knows_again() -> None:
    sender, receiver = Sealer(BEFORE), Sealer(BEFORE)
    first, second = (receiver.open(sender.seal(b"hello", "p")) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.plaintext == second.plaintext == b"hello"
    assert [receiver.is_first(nonce) for nonce in (first.nonce, second.nonce, first.nonce)] == [True, True, False]


def test_the_largest_message_fills_a_datagram_and_a_larger_one_never_leaves() -> None:
    sealer = Sealer(BEFORE)
    assert len(sealer.seal(b"x" * MAX_PLAINTEXT, "p")) == MAX_DATAGRAM
    with pytest.raises(TooLarge):
        sealer.seal(b"x" * (MAX_PLAINTEXT + 1), "p")


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
    assert Sealer(keyring).open(Sealer(BEFORE).seal(b"hello", "p")) is None


def test_every_changed_bit_is_noticed() -> None:
    datagram = Sealer(BEFORE).seal(b"hello", "p")
    for at in range(len(datagram)):
        changed = datagram[:at] + bytes([datagram[at] ^ 1]) + datagram[at + 1 :]
        assert Sealer(BEFORE).open(changed) is None, at


@pytest.mark.parametrize("size", [0, 1, 14, 29, MAX_DATAGRAM + 1])
def test_impossible_sizes_do_not_open(size: int) -> None:
    assert Sealer(BEFORE).open(b"\1" * size) is None


def test_a_key_is_replaced_without_a_flag_day() -> None:
    assert said(Sealer(DURING), Sealer(BEFORE).seal(b"a", "p")) == b"a"
    assert said(Sealer(DURING), Sealer(AFTER).seal(b"b", "p")) == b"b"
    assert said(Sealer(AFTER), Sealer(BEFORE).seal(b"c", "p")) is None
    rotated = Sealer(BEFORE)
    rotated.use(AFTER)
    assert said(Sealer(AFTER), rotated.seal(b"d", "p")) == b"d"


def nonces(sealer: Sealer, destination: str, count: int) -> list[bytes]:
    return [sealer.seal(b"", destination)[2:14] for _ in range(count)]


def test_nonces_differ_within_and_across_restarts_and_destinations() -> None:
    drawn = [n for sealer in (Sealer(BEFORE), Sealer(BEFORE)) for to in "pq" for n in nonces(sealer, to, 100)]
    assert len(set(drawn)) == 400


def test_a_prefix_is_for_one_destination_until_its_counter_is_spent_or_silence_is_noticed() -> None:
    prefixes = iter(b"prefix %d  " % n for n in range(4))
    sealer = Sealer(BEFORE, random=lambda n: next(prefixes))
    assert nonces(sealer, "p", 2) == [b"prefix 0  \0\0", b"prefix 0  \0\1"]
    assert nonces(sealer, "q", 1) == [b"prefix 1  \0\0"]
    assert nonces(sealer, "p", 2**16 - 2)[-1] == b"prefix 0  \xff\xff"
    assert nonces(sealer, "p", 2) == [b"prefix 2  \0\0", b"prefix 2  \0\1"]
    sealer.begin_anew("p")
    assert nonces(sealer, "p", 1) == [b"prefix 3  \0\0"]
    assert nonces(sealer, "q", 1) == [b"prefix 1  \0\1"]


def test_a_destination_long_forgotten_gets_a_new_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.overlay.sealing.MAX_DESTINATIONS", 2)
    sealer = Sealer(BEFORE)
    first = nonces(sealer, "p", 1)[0]
    nonces(sealer, "q", 1)
    assert nonces(sealer, "p", 1)[0][:10] == first[:10]
    nonces(sealer, "r", 1)
    nonces(sealer, "s", 1)
    assert nonces(sealer, "p", 1)[0][:10] != first[:10]


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
