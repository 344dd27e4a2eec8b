"""A set arrives as it was sent, however the network cuts it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dht.ordering import OrderedSet
from dht.records.set_wire import SetDecoder, encoded, encoded_size
from protocol.problems import CorruptContent


@given(st.sets(st.binary(min_size=1, max_size=1024), max_size=20), st.lists(st.integers(1, 3000)), st.integers(0, 20))
def test_cut_anywhere_and_resumed_anywhere(envelopes: set[bytes], cuts: list[int], from_: int) -> None:
    ordered = OrderedSet(envelopes)
    after = ordered.positions[from_] if from_ < len(ordered.positions) else b""
    wanted = ordered.after(after)
    body, got = encoded(wanted), []
    assert len(body) == encoded_size(wanted)
    decoder = SetDecoder(after)
    for size in [*cuts, len(body)]:
        piece, body = body[:size], body[size:]
        got += decoder.feed(piece)
    assert (got, decoder.is_between) == (wanted, True)


@given(st.binary(max_size=4000))
def test_noise_never_yields_what_is_out_of_order(noise: bytes) -> None:
    decoder = SetDecoder(b"")
    try:
        got = decoder.feed(noise)
    except CorruptContent:
        return
    assert OrderedSet(got).envelopes == got
