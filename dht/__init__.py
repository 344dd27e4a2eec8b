"""The store: signed records in a Kademlia overlay, and content in verified chunks over HTTP."""

from dht.directory import DirectoryConfig, NetworkDirectory, running_directory
from dht.memory_directory import MemoryDirectory, MemoryMesh
from dht.sealing import Keyring

__all__ = [
    "DirectoryConfig",
    "Keyring",
    "MemoryDirectory",
    "MemoryMesh",
    "NetworkDirectory",
    "running_directory",
]
