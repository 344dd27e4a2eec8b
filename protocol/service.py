"""What a CSAR says of its service, after every check: the result of `csar` and the input of `agent`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from protocol.parameters import Parameter

Kind = Literal["docker_container", "wasm_module"]
ArtifactKind = Literal["DockerBuildContext", "OCIImage", "WasmModule"]
Transport = Literal["tcp", "udp", "sctp"]


class ContainerPort(Struct, frozen=True):
    port: int
    protocol: Transport = "tcp"
    description: str = ""


class BridgeNetwork(Struct, frozen=True):
    """TOSCA group `docker_bridge_network`: a Docker bridge that the service joins. `subnet` in CIDR, or none."""

    name: str
    internal: bool = False
    subnet: str | None = None


class Artifact(Struct, frozen=True):
    """`file` is a path inside the archive."""

    name: str
    kind: ArtifactKind
    file: str


class Variant(Struct, frozen=True):
    accuracy: float | None = None
    latency_ms: float | None = None
    mem_requirement: int | None = None
    environment: dict[str, str] = {}
    artifact: str | None = None


class QualityOfService(Struct, frozen=True):
    max_latency_ms: float | None = None
    min_accuracy: float | None = None


Strategy = Literal["spread", "colocate", "nearest"]


class PlacementPolicy(Struct, frozen=True):
    strategy: Strategy = "spread"
    required_labels: dict[str, str] = {}


LinuxCapability = Literal["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"]
"""What a container may be given back of root's powers: those that act on its own files and processes alone."""


class Relaxations(Struct, frozen=True):
    """What a container needs beyond the hardened defaults. `max_processes` None: the site's own limit will do."""

    capabilities: tuple[LinuxCapability, ...] = ()
    max_processes: int | None = None


DEFAULT_PROCESSES = 256
"""A container's processes and threads, unless its description asks for another limit and is allowed it."""


class Allowed(Struct, frozen=True):
    """How far services may be less confined than by default. None: whoever says so leaves it to others."""

    capabilities: tuple[LinuxCapability, ...] | None = None
    max_processes: int | None = None


HARDENED = Allowed((), DEFAULT_PROCESSES)
"""No further than by default."""


class ServiceDescriptor(Struct, frozen=True, kw_only=True):
    """`mem_requirement` in MB (10^6 bytes), `alive_time` in s (0: until stopped), `timeout` in s.

    `parameters` are the template's inputs; a start may set them. `entry` is the path of the
    TOSCA file inside the archive, `directory` the folder that holds the Dockerfile.
    """

    id: str
    name: str
    kind: Kind
    category: str
    mem_requirement: int
    entry: str
    description: str = ""
    version: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    alive_time: int = 60
    wait_for_start: bool = False
    ports: tuple[ContainerPort, ...] = ()
    directory: str | None = None
    networks: tuple[BridgeNetwork, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    variants: dict[str, Variant] = {}
    parameters: dict[str, Parameter] = {}
    upstream: tuple[str, ...] = ()
    quality: QualityOfService = QualityOfService()
    placement: PlacementPolicy = PlacementPolicy()
    relaxations: Relaxations = Relaxations()
    module: str | None = None
    fuel: int | None = None
    timeout: float | None = None
