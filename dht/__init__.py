"""The store: signed records in a Kademlia overlay, and content in verified chunks.

Names are imported when they are first asked for: the process of `agent.wasm_host` needs a few modules of this package,
and would take twice as long to start, and 14 MB more, with all that the others import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dht.content_server import serving_content
    from dht.directory import DirectoryConfig, NetworkDirectory, running_directory
    from dht.exchange import ContentConfig, Exchange, running_content
    from dht.memory_content import MemoryContent, Swarm
    from dht.memory_directory import MemoryDirectory, MemoryMesh
    from dht.overlay import Tuning
    from dht.sealing import Keyring
    from dht.set_client import SetClient
    from dht.set_serving import set_routes

_HOMES = {
    "ContentConfig": "dht.exchange",
    "DirectoryConfig": "dht.directory",
    "Exchange": "dht.exchange",
    "Keyring": "dht.sealing",
    "MemoryContent": "dht.memory_content",
    "MemoryDirectory": "dht.memory_directory",
    "MemoryMesh": "dht.memory_directory",
    "NetworkDirectory": "dht.directory",
    "SetClient": "dht.set_client",
    "Swarm": "dht.memory_content",
    "Tuning": "dht.overlay",
    "running_content": "dht.exchange",
    "running_directory": "dht.directory",
    "serving_content": "dht.content_server",
    "set_routes": "dht.set_serving",
}

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
    "running_content",
    "running_directory",
    "serving_content",
    "set_routes",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)
