"""Tokens survive copying, and nothing that was changed on the way passes for one."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrap.tokens import PREFIX, Token, decode_token, encode_token
from protocol.addresses import is_address
from protocol.problems import JoinRefused

segments = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)
hosts = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda a: f"[{a}]"), st.just("site-1.local"))
addresses = st.builds(lambda host, port: f"{host}:{port}", hosts, st.integers(1, 65_535)).filter(is_address)
tokens = st.builds(
    Token,
    mesh=segments,
    region=st.lists(segments, min_size=1, max_size=8).map("/".join),
    addresses=st.lists(addresses, min_size=1, max_size=8).map(tuple),
    fingerprint=st.binary(min_size=32, max_size=32),
    invite=st.binary(min_size=8, max_size=8),
    secret=st.binary(min_size=20, max_size=20),
    expires=st.integers(0, 2**40),
)


@given(tokens)
def test_round_trip(token: Token) -> None:
    text = encode_token(token)
    assert text.startswith(PREFIX)
    assert len(text.split()) == 1
    assert decode_token(text) == token


@given(tokens, st.integers(20, 100))
def test_a_terminal_may_wrap_it(token: Token, width: int) -> None:
    text = encode_token(token)
    wrapped = "\n".join(text[i : i + width] for i in range(0, len(text), width))
    assert decode_token(f"  {wrapped}\r\n") == token


@given(tokens, st.data())
def test_any_other_character_is_refused(token: Token, data: st.DataObject) -> None:
    text = encode_token(token)
    position = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(
        st.sampled_from([c for c in string.ascii_letters + string.digits + "-_=+/.,é" if c != text[position]])
    )
    with pytest.raises(JoinRefused) as refused:
        decode_token(text[:position] + other + text[position + 1 :])
    assert refused.value.extra["code"] == "token"
    assert refused.value.fix


@given(tokens, st.data())
def test_a_cut_or_doubled_token_is_refused(token: Token, data: st.DataObject) -> None:
    text = encode_token(token)
    length = data.draw(st.integers(0, len(text) - 1))
    for mangled in (text[:length], text + text[length:], text + text):
        with pytest.raises(JoinRefused):
            decode_token(mangled)


@given(st.text(max_size=400), st.booleans())
def test_rubbish_is_refused(text: str, prefixed: bool) -> None:
    with pytest.raises(JoinRefused) as refused:
        decode_token(PREFIX + text if prefixed else text)
    assert refused.value.extra["code"] == "token"
