"""The store: signed records in a Kademlia overlay, and content in verified chunks."""

from dht.content_routes import content_routes
from dht.content_server import serving_content
from dht.directory import DirectoryConfig, NetworkDirectory, running_directory
from dht.exchange import ContentConfig, Exchange, running_content
from dht.memory_content import MemoryContent, Swarm
from dht.memory_directory import MemoryDirectory, MemoryMesh
from dht.overlay import Tuning
from dht.sealing import Keyring
from dht.set_client import SetClient
from dht.set_serving import set_routes

__all__ = [
    "ContentConfig",
    "DirectoryConfig",
    "Exchange",
    "Keyring",
    "MemoryContent",
    "MemoryDirectory",
    "MemoryMesh",
    "NetworkDirectory",
    "SetClient",
    "Swarm",
    "Tuning",
    "content_routes",
    "running_content",
    "running_directory",
    "serving_content",
    "set_routes",
]
