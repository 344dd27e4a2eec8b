"""What counts as an address of a listener, beside what Python's `ipaddress` and RFC 1123 say."""

from __future__ import annotations

import ipaddress
import string

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.addresses import in_words, is_address
from protocol.records import Address

ports = st.integers(1, 65_535)
labels = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?", fullmatch=True)
GROUP = st.text("0123456789abcdefABCDEF", min_size=1, max_size=5)


@given(st.ip_addresses(v=4), ports)
@example(ipaddress.IPv4Address("255.255.255.255"), 1)
@example(ipaddress.IPv4Address("127.0.0.1"), 65_535)
def test_an_ipv4_address_is_one_unless_nobody_can_have_it(host: ipaddress.IPv4Address, port: int) -> None:
    assert is_address(f"{host}:{port}") is (1 <= host.packed[0] < 224)


@given(st.ip_addresses(v=6), ports, st.booleans())
@example(ipaddress.IPv6Address("::"), 1, True)
@example(ipaddress.IPv6Address("::"), 1, False)
@example(ipaddress.IPv6Address("::1"), 1, False)
@example(ipaddress.IPv6Address("ff02::1"), 1, False)
@example(ipaddress.IPv6Address("ff02::1"), 1, True)
@example(ipaddress.IPv6Address("::ffff:e000:1"), 1, False)
@example(ipaddress.IPv6Address("::ffff:0.0.0.0"), 1, True)
def test_an_ipv6_address_stands_in_brackets_however_it_is_spelled(
    host: ipaddress.IPv6Address, port: int, long: bool
) -> None:
    text = host.exploded if long else str(host)
    nobody = host.is_unspecified or host.is_multicast or host.ipv4_mapped is not None
    assert is_address(f"[{text}]:{port}") is not nobody
    assert not is_address(f"{text}:{port}")
    assert not is_address(f"[{text}%eth0]:{port}")


@given(st.lists(st.one_of(GROUP, st.just("")), min_size=1, max_size=10).map(":".join))
@example("1::2::3")
@example(":1")
@example("1:2:3:4:5:6:7::")
@example("::2:3:4:5:6:7:8")
def test_what_is_accepted_in_brackets_is_ipv6(text: str) -> None:
    if is_address(f"[{text}]:1"):
        ipaddress.IPv6Address(text)
    else:
        try:
            host = ipaddress.IPv6Address(text)
        except ValueError:
            return
        assert host.is_unspecified or host.is_multicast or host.ipv4_mapped or "ffff" in text.casefold()


@given(st.lists(labels, min_size=1, max_size=4), ports)
def test_a_host_name_is_one_unless_it_ends_like_a_number(names: list[str], port: int) -> None:
    last = names[-1].casefold()
    number = last.isdigit() or (last.startswith("0x") and not last[2:].strip(string.hexdigits))
    host = ".".join(names)
    try:
        nobody = not 1 <= ipaddress.IPv4Address(host).packed[0] < 224
    except ValueError:
        nobody = number
    assert is_address(f"{host}:{port}") is not nobody


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "host", "host:", "host:0", "host:65536", "host:01", "host:99999", "host:1\n", " host:1", "ho st:1"),
        *("-host:1", "host-:1", "a..b:1", ".a:1", "a.:1", "a_b:1", "a/b:1", "user@host:1", "h\u00f6st:1", "host:1:2"),
        *("127.1:1", "2130706433:1", "0x7f000001:1", "0x:1", "a.0x1f:1", "1.2.3.4.5:1", "01.2.3.4:1", "256.1.1.1:1"),
        *("0.0.0.0:1", "0.1.2.3:1", "224.0.0.251:1", "240.0.0.1:1", "[]:1", "[1.2.3.4]:1", "[::ffff:1.2.3.4]:1"),
        "a" * 64 + ":1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    assert not is_address(text)


def test_a_record_holds_addresses_only_and_no_long_ones() -> None:
    msgspec.convert("site.example.org:7401", Address)
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert("0.0.0.0:7401", Address)
    assert in_words(str(refused.value)) == "Expected an address such as 192.0.2.7:7401"
    for text in ("0.0.0.0:7401", ".".join(["a" * 40] * 3) + ":7401", "host:1\n"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text, Address)
