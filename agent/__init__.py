"""The edge agent: runs services from their archives on this machine, and answers to its region's controller.

Names are imported when they are first asked for: the process of `agent.wasm_host` needs a few modules of this package,
and would take twice as long to start, and 14 MB more, with all that the others import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.agent import Agent, AgentConfig, running_agent
    from agent.docker_images import BuildSettings
    from agent.docker_runtime import DockerConfig, DockerRuntime, running_docker
    from agent.link import KnownControllers, Locator
    from agent.memory_runtime import MemoryRuntime, running_memory_runtime
    from agent.runtime import Runtime
    from agent.wasm_runtime import WasmRuntime, running_wasm

_HOMES = {
    "Agent": "agent.agent",
    "AgentConfig": "agent.agent",
    "BuildSettings": "agent.docker_images",
    "DockerConfig": "agent.docker_runtime",
    "DockerRuntime": "agent.docker_runtime",
    "KnownControllers": "agent.link",
    "Locator": "agent.link",
    "MemoryRuntime": "agent.memory_runtime",
    "Runtime": "agent.runtime",
    "WasmRuntime": "agent.wasm_runtime",
    "running_agent": "agent.agent",
    "running_docker": "agent.docker_runtime",
    "running_memory_runtime": "agent.memory_runtime",
    "running_wasm": "agent.wasm_runtime",
}

__all__ = [
    "Agent",
    "AgentConfig",
    "BuildSettings",
    "DockerConfig",
    "DockerRuntime",
    "KnownControllers",
    "Locator",
    "MemoryRuntime",
    "Runtime",
    "WasmRuntime",
    "running_agent",
    "running_docker",
    "running_memory_runtime",
    "running_wasm",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)
