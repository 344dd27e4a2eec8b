"""The sections and keys of a template: an allow-list, and the right kind of container everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from posixpath import basename
from typing import Any

from csar.findings import check_container, check_keys, check_texts
from csar.profile import PORTABLE_VERSION, PROFILE_FILE, PROFILE_VERSION, wrong_type
from csar.refusals import Finding
from csar.strict_yaml import Path

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
_INPUT = frozenset({"type", "description", "default", "required", "constraints"})


def check_shape(template: Mapping[str, Any]) -> Iterator[Finding]:
    yield from _check_version(template)
    yield from check_keys(template, _TOP, ())
    yield from check_texts(template, ("description", "template_name", "template_author"), ())
    yield from check_container(template, "metadata", dict, ())
    topology = template.get("topology_template")
    at: Path = ("topology_template",)
    if not isinstance(topology, dict):
        yield Finding("missing-key", at, "there is no topology_template", "Add topology_template with node_templates.")
        return
    yield from check_keys(topology, _TOPOLOGY, at)
    yield from check_texts(topology, ("description",), at)
    kinds = (("inputs", dict), ("groups", dict), ("policies", list), ("node_templates", dict))
    wrong = [finding for section, kind in kinds for finding in check_container(topology, section, kind, at)]
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
        yield from check_entry(entry, keys, (*path, name))


def check_entry(entry: Any, keys: frozenset[str], at: Path) -> Iterator[Finding]:
    if not isinstance(entry, dict):
        yield wrong_type(entry, "map", at)
        return
    yield from check_keys(entry, keys, at)
    yield from check_texts(entry, ("type", "description"), at)
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
        yield from check_container(entry, key, kind, at)


def _check_policy_shape(policies: Sequence[Any], path: Path) -> Iterator[Finding]:
    for index, item in enumerate(policies):
        at = (*path, index)
        if not isinstance(item, dict) or len(item) != 1:
            yield Finding("wrong-type", at, "a policy is not one name with its map", "Write - name: {type: ...}.")
            continue
        name, policy = next(iter(item.items()))
        yield from check_entry(policy, _POLICY, (*at, name))
