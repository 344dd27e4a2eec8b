"""The announcement format: what is written can be read, and nothing else can."""

from __future__ import annotations

import pytest

from client.dnssd import SERVICE_TYPE, FoundController, host_name, instance_name, read_announcement, txt_properties

NODE = "ab" * 20
ROOT = "0123456789abcdef"
NAME = f"corner-abababab (eu/a).{SERVICE_TYPE}"


def written(**changed: bytes | None) -> dict[bytes, bytes | None]:
    good: dict[bytes, bytes | None] = {
        key.encode(): value.encode()
        for key, value in txt_properties(region="eu/a", mesh="home", root=ROOT, node=NODE, peer_port=7401).items()
    }
    return {**good, **{key.encode(): value for key, value in changed.items()}}


def test_what_is_written_can_be_read() -> None:
    found = read_announcement(NAME, port=7400, addresses=["10.1.0.10"], properties=written())
    assert found == FoundController(
        name=NAME,
        region="eu/a",
        mesh="home",
        root=ROOT,
        node=NODE,
        host="10.1.0.10",
        port=7400,
        peer_port=7401,
        path="/v1",
    )
    assert found.url == "http://10.1.0.10:7400"
    assert found.peer_address == "10.1.0.10:7401"


def test_txtvers_comes_first_and_keys_are_short() -> None:
    keys = list(txt_properties(region="eu/a", mesh="home", root=ROOT, node=NODE, peer_port=7401))
    assert keys[0] == "txtvers"
    assert all(len(key) <= 9 for key in keys)


@pytest.mark.parametrize(
    "changed",
    [
        {"txtvers": b"2"},
        {"txtvers": None},
        {"region": b"EU/../a"},
        {"region": b""},
        {"region": b"\xff\xfe"},
        {"mesh": b"home\nhost"},
        {"mesh": b"x" * 200},
        {"root": None},
        {"root": b"0123456789ABCDEF"},
        {"root": b"0123456789abcdef0"},
        {"node": b"ab"},
        {"node": b"AB" * 20},
        {"path": b"/v1/../../admin"},
        {"path": b"//evil.example/v1"},
        {"peer": b"0"},
        {"peer": b"65536"},
        {"peer": b"7401 "},
        {"peer": "٧٤٠١".encode()},
        {"peer": None},
    ],
)
def test_a_malformed_text_record_is_ignored(changed: dict[str, bytes | None]) -> None:
    assert read_announcement(NAME, port=7400, addresses=["10.1.0.10"], properties=written(**changed)) is None


@pytest.mark.parametrize("address", ["224.0.0.251", "0.0.0.0", "255.255.255.255", "fe80::1", "evil.example", ""])
def test_an_address_that_nobody_listens_at_is_ignored(address: str) -> None:
    assert read_announcement(NAME, port=7400, addresses=[address], properties=written()) is None


@pytest.mark.parametrize("port", [None, 0, -1, 65536])
def test_an_impossible_port_is_ignored(port: int | None) -> None:
    assert read_announcement(NAME, port=port, addresses=["10.1.0.10"], properties=written()) is None


def test_names_fit_a_dns_label_whatever_the_operator_wrote() -> None:
    site, region = "Bäckerei am Ring " * 9, "/".join(["region-with-a-long-name"] * 5)
    label = instance_name(site=site, region=region, node=NODE).removesuffix("." + SERVICE_TYPE)
    assert len(label.encode()) <= 63
    assert "-abababab (region-with" in label, "the node id keeps sites of one name apart"
    assert instance_name(site="corner", region="eu/a", node=NODE) == NAME
    host = host_name(site=site, node=NODE)
    assert host.endswith("-abababab.local.")
    assert len(host.removesuffix(".local.")) <= 63
    assert host_name(site="...", node=NODE) == "site-abababab.local."
