"""Where a service's group may have the subnet that it states."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from agent.docker.networks import admissible, routed_networks

# What /proc/net/route shows on a machine of 10.1.0.0/24 with a Docker bridge; the first line is the default route.
TABLE = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100010A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
POOLS = (IPv4Network("172.16.0.0/12"),)


def test_the_route_table_is_read_without_the_default_route() -> None:
    assert routed_networks(TABLE) == [IPv4Network("10.1.0.0/24"), IPv4Network("172.17.0.0/16")]


@pytest.mark.parametrize(
    ("subnet", "allowed"),
    [
        ("172.30.5.0/24", True),
        ("172.17.9.0/24", False),  # inside Docker's own bridge
        ("172.16.0.0/12", False),  # swallows it
        ("10.1.0.0/25", False),  # would take the machine off its LAN
        ("10.2.0.0/16", False),  # another site's, for all this machine knows
        ("192.168.1.0/24", False),
    ],
)
def test_a_subnet_is_used_inside_the_pools_and_beside_every_route(subnet: str, allowed: bool) -> None:
    assert admissible(subnet, POOLS, routed_networks(TABLE)) is allowed
