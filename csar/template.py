"""What a service template may say: an allow-list of keys, exact types, names that exist, one chain with one end.

This stands before tosca-parser, which accepts (and fetches, and loops over) far more than a stranger may ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from posixpath import basename
from typing import Any

from msgspec import Struct

from csar.profile import (
    CONTAINER,
    FEEDS,
    INPUT_TYPES,
    PORTABLE_VERSION,
    PROFILE_FILE,
    PROFILE_VERSION,
    TYPES,
    check_properties,
    check_value,
    property_schemas,
    wrong_type,
)
from csar.refusals import Finding, did_you_mean, refusal
from csar.strict_yaml import Document
from protocol.problems import InvalidArchive

Path = tuple[str | int, ...]

_TOP = frozenset(
    [
        "tosca_definitions_version",
        "description",
        "metadata",
        "imports",
        "template_name",
        "template_author",
        "template_version",
        "topology_template",
    ]
)
_TOPOLOGY = frozenset({"description", "inputs", "node_templates", "groups", "policies"})
_NODE = frozenset({"type", "description", "metadata", "properties", "requirements", "artifacts"})
_GROUP = frozenset({"type", "description", "properties", "members"})
_POLICY = frozenset({"type", "description", "properties", "targets"})
_ARTIFACT = frozenset({"type", "file", "description"})
_INPUT = frozenset({"type", "description", "default", "required", "constraints"})
_UPSTREAM = frozenset({"node", "relationship"})
_RELATIONSHIP = frozenset({"type", "properties"})
_NOT_FOR_SERVICES = frozenset(
    [
        "node_types",
        "relationship_types",
        "capability_types",
        "artifact_types",
        "data_types",
        "interface_types",
        "policy_types",
        "group_types",
        "repositories",
        "dsl_definitions",
        "tosca_default_namespace",
        "relationship_templates",
        "outputs",
        "substitution_mappings",
        "workflows",
        "interfaces",
        "capabilities",
        "attributes",
        "directives",
        "copy",
        "node_filter",
        "triggers",
        "repository",
        "deploy_path",
    ]
)
"""Sections that TOSCA knows and that a service does not need."""

_OPERATORS = frozenset(
    [
        "equal",
        "greater_than",
        "greater_or_equal",
        "less_than",
        "less_or_equal",
        "in_range",
        "valid_values",
        "length",
        "min_length",
        "max_length",
    ]
)
_FUNCTIONS = frozenset(
    ["get_input", "get_property", "get_attribute", "get_operation_output", "get_artifact", "concat", "token"]
)
_LITERAL = frozenset({"id", "name", "category", "directory", "module"})
"""Properties that say what the service is: an input must not change them."""

_INPUT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MAX_FINDINGS = 20


class Vetted(Struct, frozen=True):
    """A template that passed. `topology` is ready for tosca-parser: inputs are filled in, nothing refers outside.

    `chain` lists the node templates, upstream first; its last is the service that the archive offers.
    """

    document: Document
    topology: dict[str, Any]
    chain: tuple[str, ...]

    @property
    def service(self) -> str:
        return self.chain[-1]


def vet(document: Document) -> Vetted:
    """Raises InvalidArchive for the first thing wrong; `extra["problems"]` lists up to 20."""
    raise_first(document, _check_shape(document.value))
    topology = document.value["topology_template"]
    raise_first(document, _check_inputs(topology.get("inputs", {}), ("topology_template", "inputs")))
    filled = _fill_inputs(document, topology)
    raise_first(document, _check_contents(filled))
    return Vetted(document, filled, _chain(document, filled["node_templates"]))


def raise_first(document: Document, findings: Iterator[Finding]) -> None:
    """Raise InvalidArchive if there is any finding."""
    found = [finding for _, finding in zip(range(MAX_FINDINGS), findings, strict=False)]
    if found:
        raise as_problem(document, found)


def as_problem(document: Document, found: Sequence[Finding]) -> InvalidArchive:
    """The first finding as a refusal with file and line; the others in `problems`."""
    first, *others = found
    problems = [{"code": f.code, "line": document.line(f.path), "detail": f.detail, "fix": f.fix} for f in others]
    return refusal(
        first.code,
        first.detail,
        first.fix,
        file=document.file,
        line=document.line(first.path),
        **({"problems": problems} if problems else {}),
    )


# --- shape: sections, keys, kinds of containers ---------------------------------------------------------------------


def _check_shape(template: Mapping[str, Any]) -> Iterator[Finding]:
    yield from _check_version(template)
    yield from _keys(template, _TOP, ())
    yield from _texts(template, ("description", "template_name", "template_author"), ())
    yield from _container(template, "metadata", dict, ())
    topology = template.get("topology_template")
    at: Path = ("topology_template",)
    if not isinstance(topology, dict):
        yield Finding("missing-key", at, "there is no topology_template", "Add topology_template with node_templates.")
        return
    yield from _keys(topology, _TOPOLOGY, at)
    yield from _texts(topology, ("description",), at)
    kinds = (("inputs", dict), ("groups", dict), ("policies", list), ("node_templates", dict))
    wrong = [finding for section, kind in kinds for finding in _container(topology, section, kind, at)]
    if wrong:
        yield from wrong
        return
    if not topology.get("node_templates"):
        yield Finding("missing-key", at, "there are no node_templates", "Describe the service in one.")
        return
    for section, keys in (("node_templates", _NODE), ("groups", _GROUP), ("inputs", _INPUT)):
        yield from _check_entries(topology.get(section, {}), keys, (*at, section))
    yield from _check_policy_shape(topology.get("policies", []), (*at, "policies"))


def _check_version(template: Mapping[str, Any]) -> Iterator[Finding]:
    at: Path = ("tosca_definitions_version",)
    version = template.get("tosca_definitions_version")
    if version not in (PROFILE_VERSION, PORTABLE_VERSION):
        yield Finding(
            "template-version",
            at,
            f"tosca_definitions_version is {str(version)[:80]!r}",
            f"Write {PROFILE_VERSION}, or {PORTABLE_VERSION} with imports: [{PROFILE_FILE}].",
        )
    imports = template.get("imports", [])
    names = [i.get("file") if isinstance(i, dict) and set(i) == {"file"} else i for i in _as_list(imports)]
    for index, name in enumerate(names):
        if not _is_profile(name):
            yield Finding(
                "import-not-allowed",
                ("imports", index),
                f"the import {str(name)[:80]!r} is not allowed",
                f"Import only {PROFILE_FILE}; nothing is ever fetched.",
            )
    if version == PORTABLE_VERSION and not names:
        yield Finding("import-not-allowed", at, "the profile is not imported", f"Add imports: [{PROFILE_FILE}].")


def _is_profile(name: object) -> bool:
    return (
        isinstance(name, str)
        and basename(name) == PROFILE_FILE
        and ".." not in name
        and name[0] not in "/~"
        and ":" not in name
        and "\\" not in name
    )


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_entries(section: Mapping[str, Any], keys: frozenset[str], path: Path) -> Iterator[Finding]:
    for name, entry in section.items():
        yield from _check_entry(entry, keys, (*path, name))


def _check_entry(entry: Any, keys: frozenset[str], at: Path) -> Iterator[Finding]:
    if not isinstance(entry, dict):
        yield wrong_type(entry, "map", at)
        return
    yield from _keys(entry, keys, at)
    yield from _texts(entry, ("type", "description"), at)
    if "type" not in entry:
        yield Finding("missing-key", at, "type is missing", "Add type.")
    for key, kind in (
        ("properties", dict),
        ("metadata", dict),
        ("artifacts", dict),
        ("requirements", list),
        ("constraints", list),
        ("members", list),
        ("targets", list),
    ):
        yield from _container(entry, key, kind, at)


def _check_policy_shape(policies: Sequence[Any], path: Path) -> Iterator[Finding]:
    for index, item in enumerate(policies):
        at = (*path, index)
        if not isinstance(item, dict) or len(item) != 1:
            yield Finding("wrong-type", at, "a policy is not one name with its map", "Write - name: {type: ...}.")
            continue
        name, policy = next(iter(item.items()))
        yield from _check_entry(policy, _POLICY, (*at, name))


def _keys(given: Mapping[str, Any], allowed: frozenset[str], path: Path) -> Iterator[Finding]:
    for key in given:
        if key in allowed:
            continue
        if key in _NOT_FOR_SERVICES:
            yield Finding(
                "section-not-allowed", (*path, key), f"a service may not use {key}", "Remove it: the profile suffices."
            )
        else:
            yield Finding(
                "unknown-key", (*path, key), f"the key {key[:80]!r} is not known here", did_you_mean(key, allowed)
            )


def _texts(given: Mapping[str, Any], keys: Sequence[str], path: Path) -> Iterator[Finding]:
    for key in keys:
        if not isinstance(given.get(key, ""), str):
            yield wrong_type(given[key], "string", (*path, key))


def _container(given: Mapping[str, Any], key: str, kind: type, path: Path) -> Iterator[Finding]:
    if key in given and not isinstance(given[key], kind):
        yield wrong_type(given[key], "map" if kind is dict else "list", (*path, key))


# --- inputs ---------------------------------------------------------------------------------------------------------


def _check_inputs(inputs: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    for name, given in inputs.items():
        at = (*path, name)
        if not _INPUT_NAME.fullmatch(name):
            yield Finding("unknown-key", at, f"{name[:80]!r} cannot name an input", "Use letters, digits and _.")
        if given["type"] not in INPUT_TYPES:
            fix = did_you_mean(given["type"], INPUT_TYPES)
            yield Finding("unknown-type", (*at, "type"), f"an input cannot be a {given['type'][:80]!r}", fix)
        elif "default" not in given:
            yield Finding("input-without-default", at, f"the input {name} has no default", "Add default: ...")
        else:
            yield from check_value(given["default"], given, (*at, "default"))
        if type(given.get("required", True)) is not bool:
            yield wrong_type(given["required"], "boolean", (*at, "required"))
        yield from _check_constraints(given.get("constraints", []), (*at, "constraints"))


def _check_constraints(constraints: Sequence[Any], path: Path) -> Iterator[Finding]:
    for index, constraint in enumerate(constraints):
        at = (*path, index)
        if not isinstance(constraint, dict) or len(constraint) != 1:
            yield Finding(
                "wrong-type", at, "a constraint is not one operator with its value", "Write - operator: value."
            )
        elif "pattern" in constraint:
            yield Finding("pattern-not-allowed", at, "an input has a pattern", "Use valid_values or max_length.")
        else:
            yield from _check_operator(*next(iter(constraint.items())), at)


def _check_operator(operator: str, operand: Any, at: Path) -> Iterator[Finding]:
    if operator not in _OPERATORS:
        yield Finding("unknown-key", at, f"{operator[:80]!r} is no constraint", did_you_mean(operator, _OPERATORS))
        return
    items = operand if isinstance(operand, list) else [operand]
    needs_list = operator in ("in_range", "valid_values")
    if isinstance(operand, list) != needs_list or any(type(i) not in (str, int, float, bool) for i in items):
        yield Finding(
            "wrong-type",
            at,
            f"{operator} has a wrong operand",
            f"Write {operator}: " + ("[a, b]." if needs_list else "a value."),
        )
    elif operator == "in_range" and (len(items) != 2 or any(type(i) not in (int, float) for i in items)):
        yield Finding("wrong-type", at, "in_range needs two numbers", "Write in_range: [low, high].")


def _fill_inputs(document: Document, topology: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the topology in which each `get_input` is replaced by the input's default."""
    defaults = {name: given["default"] for name, given in topology.get("inputs", {}).items()}
    findings: list[Finding] = []

    def fill(value: Any, path: Path) -> Any:
        if isinstance(value, list):
            return [fill(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if not _FUNCTIONS & value.keys() or path[1] == "inputs":
            return {key: fill(item, (*path, key)) for key, item in value.items()}
        name = value.get("get_input")
        if (
            len(value) > 1
            or name is None
            or path[1] != "node_templates"
            or path[3] != "properties"
            or (len(path) == 5 and path[4] in _LITERAL)
        ):
            fix = "Write the value itself; get_input may stand for a node's properties other than its identity."
            findings.append(Finding("function-not-allowed", path, "a function may not stand here", fix))
        elif name not in defaults:
            detail = f"there is no input {str(name)[:80]!r}"
            findings.append(Finding("unknown-input", path, detail, did_you_mean(name, defaults)))
        else:
            return defaults[name]
        return None

    filled = {key: fill(value, ("topology_template", key)) for key, value in topology.items()}
    raise_first(document, iter(findings))
    return filled


# --- contents: types, properties, names -----------------------------------------------------------------------------


def _check_contents(topology: Mapping[str, Any]) -> Iterator[Finding]:
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
        wrong = list(_check_entry(artifact, _ARTIFACT, at))
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
            yield from _keys(target, _UPSTREAM, (*at, "upstream"))
            yield from _check_relationship(target.get("relationship", FEEDS), (*at, "upstream", "relationship"))
            target = target.get("node")
        yield from _check_names([target], nodes, (*at, "upstream"))


def _check_relationship(relationship: Any, at: Path) -> Iterator[Finding]:
    if isinstance(relationship, str):
        relationship = {"type": relationship}
    if not isinstance(relationship, dict):
        yield wrong_type(relationship, "map", at)
        return
    wrong = [*_keys(relationship, _RELATIONSHIP, at), *_container(relationship, "properties", dict, at)]
    yield from wrong
    if relationship.get("type") not in TYPES["relationship_types"]:
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


# --- the chain ------------------------------------------------------------------------------------------------------


def _upstream_of(node: Mapping[str, Any]) -> list[str]:
    targets = [item["upstream"] for item in node.get("requirements", [])]
    return [target["node"] if isinstance(target, dict) else target for target in targets]


def _chain(document: Document, nodes: Mapping[str, Any]) -> tuple[str, ...]:
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
