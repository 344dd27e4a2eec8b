"""A vetted template and its archive become a `ServiceDescriptor`: what the two must say together is checked here."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from posixpath import normpath
from typing import Any

import msgspec

from csar.archive import Archive
from csar.findings import as_problem
from csar.profile import CONTAINER, PLACEMENT, QOS, short_name
from csar.refusals import Finding, did_you_mean
from csar.strict_yaml import Path
from csar.template import Vetted
from protocol.identifiers import check_category
from protocol.parameters import Constraint, Parameter
from protocol.problems import BadRequest, InvalidRecord
from protocol.records import check_publishable
from protocol.service import (
    Artifact,
    BridgeNetwork,
    ContainerPort,
    PlacementPolicy,
    QualityOfService,
    Relaxations,
    ServiceDescriptor,
    Variant,
)

WASM_MAGIC = b"\0asm"
WASM_PORT = ContainerPort(8080, "tcp", "HTTP")
"""A module listens nowhere: its runtime does for it. The number only names the port."""

_PRIVATE = tuple(ipaddress.IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
_PREFIXES = range(16, 30)


def build_descriptor(vetted: Vetted, archive: Archive) -> ServiceDescriptor:
    """Raises InvalidArchive with file and line for whatever the archive does not keep of the template's promises."""
    return _Builder(vetted, archive).build()


class _Builder:
    def __init__(self, vetted: Vetted, archive: Archive) -> None:
        self._vetted, self._archive = vetted, archive
        self._document = vetted.document
        self._topology = vetted.topology
        self._node: Mapping[str, Any] = self._topology["node_templates"][vetted.service]
        self._at: Path = ("topology_template", "node_templates", vetted.service)
        self._properties: Mapping[str, Any] = self._node.get("properties", {})

    def build(self) -> ServiceDescriptor:
        given = self._properties
        artifacts = self._artifacts()
        container = self._node["type"] == CONTAINER
        timeout = given.get("timeout")
        descriptor = ServiceDescriptor(
            id=given["id"],
            name=given["name"],
            kind="docker_container" if container else "wasm_module",
            category=self._category(),
            mem_requirement=given["mem_requirement"],
            entry=self._document.file,
            description=(self._node.get("description") or self._document.value.get("description", "")).strip(),
            version=self._version(),
            inputs=tuple(given.get("inputs", ())),
            outputs=tuple(given.get("outputs", ())),
            alive_time=given.get("alive_time", 60),
            wait_for_start=given.get("wait_for_start", False),
            ports=self._ports() if container else (WASM_PORT,),
            directory=self._directory(artifacts) if container else None,
            networks=self._networks(),
            artifacts=artifacts,
            variants=self._variants(artifacts),
            parameters=self._parameters(),
            upstream=tuple(self._id_of(name) for name in self._vetted.chain[:-1]),
            quality=msgspec.convert(self._policy(QOS), QualityOfService),
            placement=msgspec.convert(self._policy(PLACEMENT), PlacementPolicy),
            relaxations=Relaxations(tuple(given.get("capabilities", ())), given.get("max_processes")),
            module=None if container else self._module(artifacts),
            fuel=given.get("fuel"),
            timeout=None if timeout is None else float(timeout),
        )
        try:
            check_publishable(descriptor)
        except InvalidRecord as error:
            fix = "Use fewer or shorter inputs, outputs, labels and variants, or a shorter name or category."
            raise self._refuse("not-publishable", self._at, error.detail, fix) from None
        return descriptor

    def _refuse(self, code: str, path: Path, detail: str, fix: str) -> Exception:
        return as_problem(self._document, [Finding(code, path, detail, fix)])

    def _property(self, name: str) -> Path:
        return (*self._at, "properties", name)

    def _id_of(self, node: str) -> str:
        return str(self._topology["node_templates"][node]["properties"]["id"])

    def _category(self) -> str:
        text = self._properties["category"]
        try:
            category = check_category(text)
        except BadRequest as error:
            raise self._refuse("category", self._property("category"), error.detail, error.fix) from None
        if category == "/" or {".", ".."} & set(category.split("/")):
            fix = "A category is a path such as /image/object_detection."
            raise self._refuse("category", self._property("category"), f"{text[:80]!r} is not a category", fix)
        return category

    def _version(self) -> str:
        """As written, so that 1.10 stays 1.10."""
        for path in (("metadata", "template_version"), ("template_version",)):
            if text := self._document.text(path):
                return text[:64]
        return ""

    def _parameters(self) -> dict[str, Parameter]:
        inputs = ("topology_template", "inputs")
        return {
            name: Parameter(
                default=self._document.text((*inputs, name, "default")),
                type=given["type"],
                constraints=tuple(_constraint(c) for c in given.get("constraints", [])),
            )
            for name, given in self._topology.get("inputs", {}).items()
        }

    def _ports(self) -> tuple[ContainerPort, ...]:
        given = self._properties
        if "container_port" in given and "container_ports" in given:
            detail, fix = "container_port and container_ports are both given", "Keep container_ports."
            raise self._refuse("duplicate-port", self._property("container_port"), detail, fix)
        listed = given.get("container_ports", [])
        ports = tuple(msgspec.convert(p, ContainerPort) for p in listed)
        if "container_port" in given:
            ports = (ContainerPort(given["container_port"]),)
        if not ports:
            fix = "Add container_port: 8080, or whichever port the service listens on."
            raise self._refuse("port-missing", self._at, "the container names no port", fix)
        seen: set[tuple[int, str]] = set()
        for index, port in enumerate(ports):
            if (port.port, port.protocol) in seen:
                path = (*self._property("container_ports"), index)
                raise self._refuse("duplicate-port", path, f"{port.port}/{port.protocol} is given twice", "Remove one.")
            seen.add((port.port, port.protocol))
        return ports

    # --- files ------------------------------------------------------------------------------------------------------

    def _path(self, text: str, path: Path) -> str:
        """A path of the template as the archive spells it; `./x/` is `x`."""
        clean = normpath(text)
        if text.startswith("/") or ".." in text.split("/") or "\\" in text or ":" in text or clean == ".":
            detail = f"{text[:80]!r} does not stay inside the archive"
            raise self._refuse("path-in-template", path, detail, "Write a path relative to the archive's root.")
        return clean

    def _artifacts(self) -> tuple[Artifact, ...]:
        return tuple(self._artifact(name, given) for name, given in self._node.get("artifacts", {}).items())

    def _artifact(self, name: str, given: Mapping[str, Any]) -> Artifact:
        at = (*self._at, "artifacts", name, "file")
        file = self._path(given["file"], at)
        kind = short_name(given["type"])
        is_folder = kind == "DockerBuildContext"
        if file not in (self._archive.folders if is_folder else self._archive.files):
            what = "folder" if is_folder else "file"
            fix = f"Add it, or correct the name. {did_you_mean(file, self._near(is_folder))}"
            raise self._refuse("artifact-missing", at, f"there is no {what} {file[:80]!r} in the archive", fix)
        return msgspec.convert({"name": name, "kind": kind, "file": file}, Artifact)

    def _near(self, is_folder: bool) -> list[str]:
        return sorted(self._archive.folders if is_folder else self._archive.files)[:20]

    def _directory(self, artifacts: tuple[Artifact, ...]) -> str | None:
        """The folder with the Dockerfile, or None where the archive brings the image."""
        at = self._property("directory")
        directory = next((a.file for a in artifacts if a.kind == "DockerBuildContext"), None)
        if "directory" in self._properties:
            directory = self._path(self._properties["directory"], at)
        if directory is not None and f"{directory}/Dockerfile" not in self._archive.files:
            fix = f"Add {directory[:80]}/Dockerfile, or correct directory."
            detail = f"there is no {directory[:80]}/Dockerfile in the archive"
            raise self._refuse("dockerfile-missing", at, detail, fix)
        if directory is None and not any(a.kind == "OCIImage" for a in artifacts):
            fix = "Add directory: with the folder that holds the Dockerfile, or an OCIImage artifact."
            raise self._refuse("dockerfile-missing", self._at, "the container has nothing to run", fix)
        return directory

    def _module(self, artifacts: tuple[Artifact, ...]) -> str:
        at = self._property("module")
        modules = [a.file for a in artifacts if a.kind == "WasmModule"]
        if "module" in self._properties:
            modules = [self._path(self._properties["module"], at)]
        if len(modules) != 1 or modules[0] not in self._archive.files:
            detail = f"there is no module {modules[0][:80]!r} in the archive" if modules else "no module is named"
            raise self._refuse("module-missing", at, detail, "Add module: with the path of a .wasm file.")
        if not self._archive.starts_with(modules[0], WASM_MAGIC):
            detail = f"{modules[0][:80]!r} is not a WebAssembly module"
            raise self._refuse("module-missing", at, detail, "Compile it to .wasm (binary, not text).")
        return modules[0]

    def _variants(self, artifacts: tuple[Artifact, ...]) -> dict[str, Variant]:
        variants = {n: msgspec.convert(v, Variant) for n, v in self._properties.get("variants", {}).items()}
        names = [a.name for a in artifacts]
        for name, variant in variants.items():
            if variant.artifact is not None and variant.artifact not in names:
                path = (*self._property("variants"), name, "artifact")
                detail = f"the node has no artifact {variant.artifact[:80]!r}"
                raise self._refuse("unknown-artifact", path, detail, did_you_mean(variant.artifact, names))
        return variants

    # --- groups and policies ----------------------------------------------------------------------------------------

    def _networks(self) -> tuple[BridgeNetwork, ...]:
        """All groups are checked; those that the service is a member of are its networks."""
        joined: list[BridgeNetwork] = []
        names: set[str] = set()
        subnets: list[ipaddress.IPv4Network] = []
        for group_name, group in self._topology.get("groups", {}).items():
            at: Path = ("topology_template", "groups", group_name, "properties")
            network = msgspec.convert(group["properties"], BridgeNetwork)
            if network.name in names:
                detail = f"two groups are the network {network.name!r}"
                raise self._refuse("duplicate-network", (*at, "name"), detail, "Make it one group.")
            names.add(network.name)
            if network.subnet is not None:
                subnets.append(self._subnet(network.subnet, subnets, (*at, "subnet")))
            if self._vetted.service in group["members"]:
                joined.append(network)
        return tuple(joined)

    def _subnet(self, text: str, others: list[ipaddress.IPv4Network], path: Path) -> ipaddress.IPv4Network:
        fix = "Write a private IPv4 network such as 172.30.0.0/24, or leave it out."
        try:
            subnet = ipaddress.IPv4Network(text)
        except ValueError as error:
            raise self._refuse("subnet", path, str(error)[:120], fix) from None
        if subnet.prefixlen not in _PREFIXES or not any(subnet.subnet_of(p) for p in _PRIVATE):
            raise self._refuse("subnet", path, f"{text} is not a private network between /16 and /29", fix)
        if any(subnet.overlaps(other) for other in others):
            raise self._refuse("subnet", path, f"{text} overlaps another group's subnet", fix)
        return subnet

    def _policy(self, kind: str) -> dict[str, Any]:
        """The properties of the one policy of this type that applies to the service."""
        found = list(self._policies(kind))
        if len(found) > 1:
            detail = f"two {short_name(kind)} policies apply to {self._vetted.service}"
            raise self._refuse("duplicate-policy", found[1][0], detail, "Keep one.")
        return found[0][1] if found else {}

    def _policies(self, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        for index, item in enumerate(self._topology.get("policies", [])):
            for name, policy in item.items():
                applies = self._vetted.service in policy.get("targets", [self._vetted.service])
                if policy["type"] == kind and applies:
                    yield ("topology_template", "policies", index, name), policy.get("properties", {})


def _constraint(given: dict[str, Any]) -> Constraint:
    """`{operator: operand}`, as vetted."""
    ((operator, operand),) = given.items()
    operands = tuple(operand) if isinstance(operand, list) else (operand,)
    return msgspec.convert({"operator": operator, "operands": operands}, Constraint)
