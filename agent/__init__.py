"""The edge agent: runs services from their archives on this machine, and answers to its region's controller."""

from agent.agent import Agent, AgentConfig, running_agent
from agent.docker_images import BuildSettings
from agent.docker_runtime import DockerConfig, DockerRuntime, running_docker
from agent.link import KnownControllers, Locator
from agent.memory_runtime import MemoryRuntime, running_memory_runtime
from agent.runtime import Runtime
from agent.wasm_runtime import WasmRuntime, running_wasm

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
