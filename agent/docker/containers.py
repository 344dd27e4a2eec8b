"""What a service's container is created with, and what an inspection of one says. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from docker.types import LogConfig

from agent.docker.networks import Bridge
from agent.runtime import Attachment, Condition, RuntimeInstance, Workload
from protocol.service import DEFAULT_PROCESSES

NODE_LABEL = "cornerstore.node"
INSTANCE_LABEL = "cornerstore.instance"
DIGEST_LABEL = "cornerstore.digest"
FIRST_NETWORK_LABEL = "cornerstore.first-network"
SANDBOX_LABEL = "cornerstore.sandbox"
"""On the containers of `agent.docker.sandboxes`, which hold a network for an instance and are none."""


MIN_MEMORY = 6 << 20
"""Docker refuses less."""

_CONDITIONS = {"running": Condition.RUNNING, "restarting": Condition.RUNNING, "paused": Condition.PAUSED}


_JOINED = "container:"


def node_prefix(node: str) -> str:
    return f"cs-{node[:8]}"


def container_name(node: str, instance: str) -> str:
    return f"{node_prefix(node)}-{instance}"


def host_options(workload: Workload, first: Bridge, *, sandbox: str | None, nano_cpus: int | None) -> dict[str, Any]:
    """Arguments of `create_host_config`. With a `sandbox` (a container's id) the network is the sandbox's.

    Everything is taken away that services in the wild do not need: capabilities, new privileges, other processes'
    memory (no swap beyond the limit), process table, unbounded logs. The root file system stays writable and the
    user is the image's, because the paper's services run as root and write beside their code. `init`: Python as
    process 1 ignores SIGTERM, and a stop would take 10 s. What a service needs back of that is in its workload, and
    the operator has allowed it.
    """
    memory = max(workload.mem * 10**6, MIN_MEMORY)
    if sandbox is not None:
        network: dict[str, Any] = {"network_mode": f"{_JOINED}{sandbox}"}
    else:
        network = {
            "network_mode": first.name,
            "extra_hosts": {"agent": first.gateway} if first.gateway else {},
            "port_bindings": {f"{p.container_port}/{p.protocol}": (p.host, p.port) for p in workload.published},
        }
    return {
        **network,
        "mem_limit": memory,
        "memswap_limit": memory,
        "pids_limit": workload.relaxations.max_processes or DEFAULT_PROCESSES,
        "nano_cpus": nano_cpus,
        "cap_drop": ["ALL"],
        "cap_add": list(workload.relaxations.capabilities),
        "security_opt": ["no-new-privileges:true"],
        "init": True,
        "log_config": LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m", "max-file": "2"}),
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


def joined_sandbox(container: Mapping[str, Any]) -> str | None:
    """Id of the sandbox whose network a container joined, from an inspection or a listing; None if it has its own."""
    mode = str(container["HostConfig"]["NetworkMode"])
    return mode.removeprefix(_JOINED) if mode.startswith(_JOINED) else None


def networks_of(inspection: Mapping[str, Any]) -> list[str]:
    """Names of the container's own networks, the one that it is reached by first."""
    first = inspection["Config"]["Labels"].get(FIRST_NETWORK_LABEL, "")
    return sorted(inspection["NetworkSettings"]["Networks"], key=lambda name: (name != first, name))


def attachments_of(inspection: Mapping[str, Any], bridges: Sequence[Bridge]) -> tuple[Attachment, ...]:
    """`bridges` are the container's own networks as `networks_of` orders them."""
    networks = inspection["NetworkSettings"]["Networks"]
    return tuple(
        Attachment(bridge.name, networks[bridge.name]["IPAddress"], bridge.gateway)
        for bridge in bridges
        if networks[bridge.name].get("IPAddress")
    )


def condition_of(inspection: Mapping[str, Any]) -> Condition:
    return _CONDITIONS.get(inspection["State"]["Status"], Condition.EXITED)


def seen(inspection: Mapping[str, Any], attachments: tuple[Attachment, ...]) -> RuntimeInstance:
    state, labels = inspection["State"], inspection["Config"]["Labels"]
    condition = condition_of(inspection)
    return RuntimeInstance(
        instance=labels[INSTANCE_LABEL],
        digest=labels.get(DIGEST_LABEL, ""),
        condition=condition,
        attachments=attachments if condition is not Condition.EXITED else (),
        exit_code=state["ExitCode"] if condition is Condition.EXITED else None,
        out_of_memory=bool(state.get("OOMKilled")),
    )
