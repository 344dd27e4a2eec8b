"""What a service's container is created with, and what an inspection of one says. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from docker.types import LogConfig

from agent.docker_networks import Bridge
from agent.runtime import Attachment, Condition, RuntimeInstance, Workload

NODE_LABEL = "cornerstore.node"
INSTANCE_LABEL = "cornerstore.instance"
DIGEST_LABEL = "cornerstore.digest"
FIRST_NETWORK_LABEL = "cornerstore.first-network"

MIN_MEMORY = 6 << 20
"""Docker refuses less."""

_CONDITIONS = {"running": Condition.RUNNING, "restarting": Condition.RUNNING, "paused": Condition.PAUSED}


def container_name(node: str, instance: str) -> str:
    return f"cs-{node[:8]}-{instance}"


def host_options(workload: Workload, first: Bridge, *, pids_limit: int, nano_cpus: int | None) -> dict[str, Any]:
    """Arguments of `create_host_config`.

    Everything is taken away that services in the wild do not need: capabilities, new privileges, other processes'
    memory (no swap beyond the limit), process table, unbounded logs. The root file system stays writable and the
    user is the image's, because the paper's services run as root and write beside their code. `init`: Python as
    process 1 ignores SIGTERM, and a stop would take 10 s.
    """
    memory = max(workload.mem * 10**6, MIN_MEMORY)
    return {
        "network_mode": first.name,
        "extra_hosts": {"agent": first.gateway} if first.gateway else {},
        "mem_limit": memory,
        "memswap_limit": memory,
        "pids_limit": pids_limit,
        "nano_cpus": nano_cpus,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "init": True,
        "log_config": LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m", "max-file": "2"}),
        "port_bindings": {f"{p.container_port}/{p.protocol}": (p.host, p.port) for p in workload.published},
    }


def container_options(workload: Workload, first: Bridge, node: str) -> dict[str, Any]:
    """Arguments of `create_container`, without the host configuration."""
    return {
        "image": workload.image,
        "name": container_name(node, workload.instance),
        "environment": workload.environment,
        "ports": [(p.container_port, p.protocol) for p in workload.published],
        "labels": {
            NODE_LABEL: node,
            INSTANCE_LABEL: workload.instance,
            DIGEST_LABEL: workload.digest,
            FIRST_NETWORK_LABEL: first.name,
        },
    }


def networks_of(inspection: Mapping[str, Any]) -> list[str]:
    """Names of the container's networks, the one that it is reached by first."""
    first = inspection["Config"]["Labels"].get(FIRST_NETWORK_LABEL, "")
    return sorted(inspection["NetworkSettings"]["Networks"], key=lambda name: (name != first, name))


def seen(inspection: Mapping[str, Any], bridges: Sequence[Bridge]) -> RuntimeInstance:
    """`bridges` are the container's networks as `networks_of` orders them."""
    state, labels = inspection["State"], inspection["Config"]["Labels"]
    networks = inspection["NetworkSettings"]["Networks"]
    attachments = tuple(
        Attachment(bridge.name, networks[bridge.name]["IPAddress"], bridge.gateway)
        for bridge in bridges
        if networks[bridge.name].get("IPAddress")
    )
    condition = _CONDITIONS.get(state["Status"], Condition.EXITED)
    return RuntimeInstance(
        instance=labels[INSTANCE_LABEL],
        digest=labels.get(DIGEST_LABEL, ""),
        condition=condition,
        attachments=attachments,
        exit_code=state["ExitCode"] if condition is Condition.EXITED else None,
        out_of_memory=bool(state.get("OOMKilled")),
    )
