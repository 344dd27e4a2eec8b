"""Who is told to call a service at its own address, and who to go through the controller."""

from __future__ import annotations

import pytest

from region_controller.reachability import way_to


@pytest.mark.parametrize(
    ("host", "client", "opens", "way"),
    [
        ("10.1.0.11", "10.1.0.12", True, "direct"),
        ("10.2.0.11", "10.1.0.12", False, "relay"),  # behind a router that lets nobody in
        ("127.0.0.1", "127.0.0.1", True, "direct"),  # all on one machine
        ("127.0.0.1", "10.1.0.12", True, "relay"),
        ("0.0.0.0", "10.1.0.12", True, "relay"),
        ("192.168.1.20", "8.8.8.8", True, "relay"),  # a phone on the public Internet, a service at home
        ("192.168.1.20", "100.64.0.7", True, "direct"),  # behind its carrier's translation: nobody can say
        ("8.8.4.4", "8.8.8.8", True, "direct"),
        ("10.1.0.11", "", True, "direct"),
        ("edge.example", "8.8.8.8", True, "direct"),
        ("127.0.0.1", "::ffff:127.0.0.1", True, "direct"),
        ("::1", "fe80::1%eth0", True, "relay"),
    ],
)
def test_the_way_to_a_service(host: str, client: str, opens: bool, way: str) -> None:
    assert way_to(host, client, opens=opens) == way
