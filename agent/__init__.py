"""The edge agent: runs services from archives, keeps their time, and says what became of them."""

from agent.agent import Agent, AgentConfig, running_agent
from agent.docker_runtime import DockerConfig, DockerRuntime, running_docker

__all__ = ["Agent", "AgentConfig", "DockerConfig", "DockerRuntime", "running_agent", "running_docker"]
