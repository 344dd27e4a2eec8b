"""Which address a machine shows to its neighbours."""

from __future__ import annotations

import pytest

from client.lan import (
    InterfaceAddress,
    choose_browsing_addresses,
    choose_lan_address,
    interface_addresses,
    is_near,
    lan_address,
    own_networks,
)

LO = InterfaceAddress("lo", "127.0.0.1")
DOCKER = InterfaceAddress("docker0", "172.17.0.1")
BRIDGE = InterfaceAddress("br-0123456789ab", "172.18.0.1")
ETH = InterfaceAddress("eth0", "10.1.0.10")
WLAN = InterfaceAddress("wlan0", "192.168.1.7")
OWN_BRIDGE = InterfaceAddress("br0", "10.2.0.1")


@pytest.mark.parametrize(
    ("addresses", "source", "chosen"),
    [
        ([LO, ETH, WLAN], "192.168.1.7", "192.168.1.7"),
        ([LO, DOCKER, ETH], None, "10.1.0.10"),
        ([DOCKER, LO, BRIDGE, ETH], "172.17.0.1", "10.1.0.10"),
        ([DOCKER, BRIDGE, OWN_BRIDGE], None, "10.2.0.1"),
        ([LO, DOCKER], "172.17.0.1", "127.0.0.1"),
        ([LO], None, "127.0.0.1"),
        ([], "10.9.9.9", "127.0.0.1"),
    ],
)
def test_the_default_routes_address_wins_but_never_a_container_bridge(
    addresses: list[InterfaceAddress], source: str | None, chosen: str
) -> None:
    assert choose_lan_address(addresses, source) == chosen


def test_announcements_from_container_bridges_are_not_heard() -> None:
    assert choose_browsing_addresses([LO, DOCKER, ETH, BRIDGE]) == ["127.0.0.1", "10.1.0.10"]
    assert choose_browsing_addresses([DOCKER]) == ["127.0.0.1"]


def test_this_machine_has_an_ipv4_address() -> None:
    assert len(lan_address().split(".")) == 4


def test_near_is_what_no_router_stands_before() -> None:
    networks = own_networks([InterfaceAddress("eth0", "10.1.0.10", 24), InterfaceAddress("docker0", "172.17.0.1", 16)])
    assert is_near("10.1.0.77:7401", networks)
    for far in ("10.2.0.77:7401", "172.17.0.2:7401", "host.example:7401", "[2001:db8::1]:7401", ""):
        assert not is_near(far, networks), far
    assert is_near("127.0.0.1:7401", own_networks(interface_addresses()))
