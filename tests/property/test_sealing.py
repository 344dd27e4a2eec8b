"""No nonce repeats, no replay is taken for new, and nobody is silenced by what is sealed under other prefixes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dht.overlay.sealing import Keyring, ReplayWindow, Sealer

KEYRING = Keyring(mesh="m", keys={1: b"k" * 32}, current=1)
DEPTH = 8
arrivals = st.lists(st.tuples(st.sampled_from([b"p", b"q", b"forged"]), st.integers(0, 40)), max_size=60)


@given(arrivals)
def test_each_nonce_is_new_at_most_once(arrived: list[tuple[bytes, int]]) -> None:
    window = ReplayWindow(depth=DEPTH)
    admitted = Counter(nonce for nonce in arrived if window.admit(*nonce))
    assert all(count == 1 for count in admitted.values())


@given(st.permutations(range(DEPTH)), arrivals)
def test_whatever_comes_under_other_prefixes_who_is_overtaken_a_little_is_heard(
    order: list[int], others: list[tuple[bytes, int]]
) -> None:
    """`order`: how the datagrams of one burst arrive."""
    window = ReplayWindow(depth=DEPTH)
    for burst in range(3):
        for nonce in others:
            window.admit(*nonce)
        assert all(window.admit(b"honest", DEPTH * burst + counter) for counter in order)


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.booleans()), max_size=40))
def test_no_nonce_repeats_whenever_a_sender_begins_anew(sendings: list[tuple[str, bool]]) -> None:
    sealer = Sealer(KEYRING)
    nonces: list[bytes] = []
    prefixes: dict[bytes, str] = {}
    for destination, anew in sendings:
        if anew:
            sealer.begin_anew(destination)
        nonces.append(sealer.seal(b"", destination)[2:14])
        assert prefixes.setdefault(nonces[-1][:10], destination) == destination
    assert len(set(nonces)) == len(nonces)
