"""The Kademlia overlay: who is near a key, and how to ask them. The only importer of the kademlia package."""

from dht.overlay.datagrams import Address, DatagramTransport, OpenTransport, udp_transport
from dht.overlay.network import Overlay, running_overlay
from dht.overlay.reading import ReadOutcome
from dht.overlay.set_reading import WholeSets
from dht.overlay.storing import StoreOutcome
from dht.overlay.tuning import Tuning

__all__ = [
    "Address",
    "DatagramTransport",
    "OpenTransport",
    "Overlay",
    "ReadOutcome",
    "StoreOutcome",
    "Tuning",
    "WholeSets",
    "running_overlay",
    "udp_transport",
]
