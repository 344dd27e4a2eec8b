"""Which of this machine's addresses face the local network, and which belong to containers."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

import ifaddr
from msgspec import Struct

LOOPBACK = "127.0.0.1"
_CONTAINER_INTERFACE = re.compile(
    r"docker.*|br-[0-9a-f]{12}|veth.*|virbr.*|cni.*|podman.*|lxcbr.*|lxdbr.*|flannel.*|cali.*|kube.*"
)


class InterfaceAddress(Struct, frozen=True):
    """One IPv4 address of one network interface; `prefix`: how many of its bits name the network."""

    interface: str
    address: str
    prefix: int = 32

    @property
    def is_loopback(self) -> bool:
        return ipaddress.IPv4Address(self.address).is_loopback

    @property
    def is_for_containers(self) -> bool:
        """True on the bridges of container engines: nobody on the LAN reaches these."""
        return _CONTAINER_INTERFACE.fullmatch(self.interface) is not None


def choose_lan_address(addresses: Sequence[InterfaceAddress], default_source: str | None) -> str:
    """The address to announce: the default route's, else the first that is neither loopback nor for containers,
    else 127.0.0.1. `default_source`: the address from which packets to the default route leave, if there is one.
    """
    candidates = [a.address for a in addresses if not a.is_loopback and not a.is_for_containers]
    if default_source in candidates:
        return default_source
    return candidates[0] if candidates else LOOPBACK


def choose_browsing_addresses(addresses: Sequence[InterfaceAddress]) -> list[str]:
    """Where to listen for announcements: everywhere but on container bridges, where tenants could forge them."""
    return [a.address for a in addresses if not a.is_for_containers] or [LOOPBACK]


def interface_addresses() -> list[InterfaceAddress]:
    """All IPv4 addresses of this machine."""
    return [
        InterfaceAddress(adapter.name, str(ip.ip), ip.network_prefix)
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if ip.is_IPv4
    ]


def own_networks(addresses: Sequence[InterfaceAddress]) -> list[ipaddress.IPv4Network]:
    """What is reached without a router: the networks of all interfaces but the container bridges."""
    facing = [f"{a.address}/{a.prefix}" for a in addresses if not a.is_for_containers]
    return [ipaddress.IPv4Network(network, strict=False) for network in facing]


def is_near(address: str, networks: Sequence[ipaddress.IPv4Network]) -> bool:
    """Whether `host:port` is in one of the networks. Host names and IPv6 addresses are not."""
    try:
        host = ipaddress.IPv4Address(address.rpartition(":")[0])
    except ValueError:
        return False
    return any(host in network for network in networks)


def default_route_source() -> str | None:
    """The source address of the default route. Connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): routed by default, never by a local prefix
        except OSError:
            return None
        return str(probe.getsockname()[0])


def lan_address() -> str:
    """The one address at which others on the local network reach this machine."""
    return choose_lan_address(interface_addresses(), default_route_source())
