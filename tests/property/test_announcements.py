"""Anybody on the link may announce anything: reading it never fails, and what is taken is well-formed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.dnssd import instance_name, read_announcement, txt_properties
from client.sse import EventParser
from node.cli.output import readable

KEYS = [b"txtvers", b"region", b"mesh", b"root", b"path", b"node", b"peer"]
good = st.fixed_dictionaries(
    {
        b"txtvers": st.just(b"1"),
        b"region": st.sampled_from([b"eu/a", b"eu/b/c"]),
        b"mesh": st.just(b"home"),
        b"root": st.just(b"0123456789abcdef"),
        b"path": st.just(b"/v1"),
        b"node": st.just(b"ab" * 20),
        b"peer": st.just(b"7401"),
    }
)
anything = st.dictionaries(
    st.sampled_from(KEYS) | st.binary(max_size=20), st.none() | st.binary(max_size=300), max_size=8
)


@given(
    good, anything, st.none() | st.integers(-1, 70_000), st.lists(st.ip_addresses().map(str) | st.text(), max_size=3)
)
def test_reading_never_fails_and_takes_only_what_is_well_formed(
    base: dict[bytes, bytes | None], changed: dict[bytes, bytes | None], port: int | None, addresses: list[str]
) -> None:
    found = read_announcement("x", port=port, addresses=addresses, properties={**base, **changed})
    if found is not None:
        assert found.host in addresses
        assert found.port == port
        properties = txt_properties(
            region=found.region, mesh=found.mesh, root=found.root, node=found.node, peer_port=found.peer_port
        )
        again = {key.encode(): value.encode() for key, value in properties.items()}
        reread = read_announcement("x", port=port, addresses=[found.host], properties=again)
        assert reread is not None
        assert (reread.url, reread.peer_address, reread.region) == (found.url, found.peer_address, found.region)


@given(st.text(max_size=200), st.from_regex(r"[a-z]{1,32}(/[a-z]{1,32}){0,7}", fullmatch=True))
def test_an_instance_name_is_one_dns_label(site: str, region: str) -> None:
    label = instance_name(site=site, region=region, node="ab" * 20).partition("._cornerstore")[0]
    assert 1 <= len(label.encode()) <= 63
    assert "." not in label


@given(st.lists(st.binary(max_size=50)))
def test_events_do_not_depend_on_how_a_stream_is_cut(pieces: list[bytes]) -> None:
    whole, cut = EventParser(), EventParser()
    assert [e for piece in pieces for e in cut.feed(piece)] == whole.feed(b"".join(pieces))


@given(st.text())
def test_nothing_readable_moves_a_cursor(text: str) -> None:
    assert all(c.isprintable() or c == "\n" for c in readable(text))
