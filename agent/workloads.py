"""What a start request and a description make of each other. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from agent.lifecycle import ENGINE_AWAY, NOT_READY, Instance
from protocol.causes import Cause
from protocol.instances import PortBinding
from protocol.link import Start
from protocol.problems import BadRequest, EngineUnavailable, NoCapacity, Problem, RelaxationRefused, StartFailed
from protocol.service import Allowed, ServiceDescriptor


def environment_of(descriptor: ServiceDescriptor, command: Start) -> dict[str, str]:
    """The described parameters with the request's values, then what the variant sets.

    Raises BadRequest for a parameter or variant that the service does not describe, or a value that it does not allow.
    """
    unknown = sorted(command.parameters.keys() - descriptor.parameters.keys())
    if unknown:
        known = ", ".join(sorted(descriptor.parameters)) or "none"
        raise BadRequest(f"the service has no parameter {unknown[0][:80]!r}", fix=f"Its parameters: {known}.")
    for name, text in command.parameters.items():
        descriptor.parameters[name].check(name, text)
    check_variant(descriptor, command.variant)
    variant = descriptor.variants[command.variant] if command.variant is not None else None
    defaults = {name: parameter.default for name, parameter in descriptor.parameters.items()}
    return {**defaults, **command.parameters, **(variant.environment if variant is not None else {})}


def check_variant(descriptor: ServiceDescriptor, variant: str | None) -> None:
    """Raises BadRequest for one that the service does not describe."""
    if variant is not None and variant not in descriptor.variants:
        known = ", ".join(sorted(descriptor.variants))
        fix = f"Its variants: {known}." if known else "It has none: leave the variant out."
        raise BadRequest(f"the service has no variant {variant[:80]!r}", fix=fix)


def check_labels(descriptor: ServiceDescriptor, labels: Mapping[str, str]) -> None:
    """Raises NoCapacity unless the agent has every label that the service's placement policy requires.

    A controller asks only agents that fit its record of the service; the archive itself has the last word.
    """
    required = sorted(descriptor.placement.required_labels.items())
    missing = ", ".join(f"{name}={value}" for name, value in required if labels.get(name) != value)
    if missing:
        raise NoCapacity(
            f"label {missing} is required",
            fix="Set it under [agent.labels] in config.toml of a machine that fits.",
            cause=Cause.LABEL,
        )


def check_relaxations(descriptor: ServiceDescriptor, *, region: Allowed, machine: Allowed) -> None:
    """Raises RelaxationRefused unless both allow all that the service needs beyond the hardened defaults."""
    _check_allowed(descriptor, region, "in this region", "[controller] in config.toml of its controller", Cause.POLICY)
    _check_allowed(descriptor, machine, "on this machine", "[agent.docker] in its config.toml", Cause.CONFINEMENT)


def _check_allowed(descriptor: ServiceDescriptor, allowed: Allowed, where: str, table: str, cause: Cause) -> None:
    wanted = descriptor.relaxations
    refused = set() if allowed.capabilities is None else set(wanted.capabilities) - set(allowed.capabilities)
    if refused:
        raise RelaxationRefused(
            f"the service wants capabilities that are not allowed {where}: {', '.join(sorted(refused))}",
            fix=f"Allow them under {table}: allow_capabilities = {json.dumps(sorted(refused))}.",
            cause=cause,
        )
    if allowed.max_processes is not None and (wanted.max_processes or 0) > allowed.max_processes:
        raise RelaxationRefused(
            f"the service wants {wanted.max_processes} processes, {allowed.max_processes} are allowed {where}",
            fix=f"Allow them under {table}: max_processes = {wanted.max_processes}.",
            cause=cause,
        )


def memory_of(descriptor: ServiceDescriptor, variant: str | None) -> int:
    """MB that the variant, or else the service, needs."""
    special = descriptor.variants[variant].mem_requirement if variant is not None else None
    return descriptor.mem_requirement if special is None else special


def alive_time_of(descriptor: ServiceDescriptor, command: Start) -> int:
    """In s, 0: until stopped. What is described holds unless the client asked for something, or the region cuts it."""
    if command.alive_time is not None:
        return command.alive_time
    described, most = descriptor.alive_time, command.at_most_alive_s
    return min(described or most, most) if most else described


def waits_for_message(descriptor: ServiceDescriptor) -> bool:
    """Whether the service itself says when it is ready. A module cannot send: that its port answers must do."""
    return descriptor.wait_for_start and descriptor.kind != "wasm_module"


def probed_port(ports: Sequence[PortBinding]) -> int | None:
    """The container port at which the service must answer to be ready; None if it has no TCP port."""
    return next((p.container_port for p in ports if p.protocol == "tcp"), None)


def awaited(instance: Instance, ports: Sequence[PortBinding]) -> str:
    """What an instance lacks to be ready."""
    return "no alive message yet" if instance.wait_for_start else f"port {probed_port(ports)}/tcp does not answer"


def not_started(instance: Instance, ports: Sequence[PortBinding]) -> Problem:
    """Why an instance that was starting is now in another state than running."""
    if instance.reason == ENGINE_AWAY:
        return EngineUnavailable(
            f"the container engine went away while instance {instance.instance} was starting",
            fix="Start the engine again (systemctl start docker) and repeat the request.",
        )
    if instance.reason == NOT_READY:
        return StartFailed(
            f"instance {instance.instance} was not ready in time: {awaited(instance, ports)}",
            fix=(
                "With `wait_for_start` the service must send the alive message; see docs/csar.md."
                if instance.wait_for_start
                else "Let the description name the port that the service listens on, on all addresses (0.0.0.0)."
            )
            + " A slow service needs a longer `ready_timeout_s` of the agent and more `--wait` (`wait_s`).",
            reason=instance.reason,
            log=list(instance.log),
        )
    return StartFailed(
        f"instance {instance.instance} ended before it was ready: {instance.reason}",
        fix="Read the log; a service must stay up and answer on its first TCP port.",
        reason=instance.reason,
        log=list(instance.log),
    )
