"""The nodes, groups and policies of a template: types of the profile, exact types of values, names that exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from csar.findings import as_problem, check_container, check_keys
from csar.profile import CONTAINER, FEEDS, TYPES, check_properties, property_schemas, wrong_type
from csar.refusals import Finding, did_you_mean
from csar.strict_yaml import Document, Path
from csar.template_shape import check_entry

_ARTIFACT = frozenset({"type", "file", "description"})
_UPSTREAM = frozenset({"node", "relationship"})
_RELATIONSHIP = frozenset({"type", "properties"})


def check_contents(topology: Mapping[str, Any]) -> Iterator[Finding]:
    at: Path = ("topology_template",)
    nodes = topology["node_templates"]
    for name, node in nodes.items():
        here = (*at, "node_templates", name)
        yield from _check_typed("node_types", node, here)
        yield from _check_artifacts(node.get("artifacts", {}), (*here, "artifacts"))
        yield from _check_requirements(node.get("requirements", []), nodes, (*here, "requirements"))
    for name, group in topology.get("groups", {}).items():
        here = (*at, "groups", name)
        yield from _check_typed("group_types", group, here)
        yield from _check_members(group, nodes, here)
    for index, item in enumerate(topology.get("policies", [])):
        name, policy = next(iter(item.items()))
        here = (*at, "policies", index, name)
        yield from _check_typed("policy_types", policy, here)
        yield from _check_names(policy.get("targets", []), nodes, (*here, "targets"))


def _check_typed(section: str, entry: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    kind = entry["type"]
    if kind not in TYPES[section]:
        yield _unknown_type(section, kind, path)
        return
    yield from check_properties(
        entry.get("properties", {}),
        property_schemas(section, kind),
        (*path, "properties") if "properties" in entry else path,
    )


def _unknown_type(section: str, kind: str, path: Path) -> Finding:
    what = section.removesuffix("_types")
    return Finding(
        "unknown-type", (*path, "type"), f"there is no {what} type {kind[:80]!r}", did_you_mean(kind, TYPES[section])
    )


def _check_artifacts(artifacts: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    for name, artifact in artifacts.items():
        at = (*path, name)
        wrong = list(check_entry(artifact, _ARTIFACT, at))
        yield from wrong
        if wrong:
            continue
        if artifact["type"] not in TYPES["artifact_types"]:
            yield _unknown_type("artifact_types", artifact["type"], at)
        if not isinstance(artifact.get("file"), str):
            yield Finding("missing-key", at, "an artifact has no file", "Add file: with a path inside the archive.")


def _check_requirements(requirements: Sequence[Any], nodes: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    for index, item in enumerate(requirements):
        at = (*path, index)
        if not isinstance(item, dict) or list(item) != ["upstream"]:
            yield Finding("unknown-key", at, "a requirement is not upstream", "Write - upstream: name of a node.")
            continue
        target = item["upstream"]
        if isinstance(target, dict):
            yield from check_keys(target, _UPSTREAM, (*at, "upstream"))
            yield from _check_relationship(target.get("relationship", FEEDS), (*at, "upstream", "relationship"))
            target = target.get("node")
        yield from _check_names([target], nodes, (*at, "upstream"))


def _check_relationship(relationship: Any, at: Path) -> Iterator[Finding]:
    if isinstance(relationship, str):
        relationship = {"type": relationship}
    if not isinstance(relationship, dict):
        yield wrong_type(relationship, "map", at)
        return
    wrong = [*check_keys(relationship, _RELATIONSHIP, at), *check_container(relationship, "properties", dict, at)]
    yield from wrong
    if str(relationship.get("type")) not in TYPES["relationship_types"]:
        yield _unknown_type("relationship_types", str(relationship.get("type")), at)
    elif not wrong:
        schemas = property_schemas("relationship_types", FEEDS)
        yield from check_properties(relationship.get("properties", {}), schemas, (*at, "properties"))


def _check_members(group: Mapping[str, Any], nodes: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    members = group.get("members", [])
    if not members:
        yield Finding("missing-key", path, "the group has no members", "Add members: [name of a node].")
    yield from _check_names(members, nodes, (*path, "members"))
    for index, member in enumerate(members):
        if isinstance(member, str) and member in nodes and nodes[member]["type"] != CONTAINER:
            detail = f"{member[:80]!r} is not a docker_container"
            yield Finding("group-member", (*path, "members", index), detail, "Only containers join a bridge network.")


def _check_names(names: Sequence[Any], nodes: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    for name in names:
        if not isinstance(name, str) or name not in nodes:
            detail = f"there is no node template {str(name)[:80]!r}"
            yield Finding("unknown-node", path, detail, did_you_mean(name, nodes))


def _upstream_of(node: Mapping[str, Any]) -> list[str]:
    targets = [item["upstream"] for item in node.get("requirements", [])]
    return [target["node"] if isinstance(target, dict) else target for target in targets]


def order_chain(document: Document, nodes: Mapping[str, Any]) -> tuple[str, ...]:
    """Upstream first, the offered service last."""
    upstream = {name: _upstream_of(node) for name, node in nodes.items()}
    at: Path = ("topology_template", "node_templates")
    try:
        order = tuple(TopologicalSorter(upstream).static_order())
    except CycleError as error:
        circle = " <- ".join(error.args[1])[:200]
        finding = Finding("chain-cycle", (*at, error.args[1][0]), f"services feed each other: {circle}", "Break it.")
        raise as_problem(document, [finding]) from None
    feeding = {name for names in upstream.values() for name in names}
    ends = [name for name in nodes if name not in feeding]
    if len(ends) != 1:
        detail = f"the archive describes several separate services: {', '.join(ends)[:200]}"
        fix = "Pack one service an archive, or join them with requirements: [upstream: name]."
        raise as_problem(document, [Finding("ambiguous-service", (*at, ends[1]), detail, fix)])
    return order
