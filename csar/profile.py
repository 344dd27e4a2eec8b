"""The shipped TOSCA profile (`profile.yaml`): its types, and the exact Python types that their properties take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from csar.refusals import Finding, did_you_mean

PROFILE_VERSION = "tosca_simple_profile_for_microservices_1_0_0"
PORTABLE_VERSION = "tosca_simple_yaml_1_3"
PROFILE_FILE = PROFILE_VERSION + ".yaml"
"""The import name of the portable flavour. It is recognised, never opened."""

PROFILE_TEXT = Path(__file__).with_name("profile.yaml").read_text(encoding="utf-8")
PROFILE: Mapping[str, Any] = yaml.safe_load(PROFILE_TEXT)

CONTAINER = "tosca.nodes.microservices.docker_container"
WASM = "tosca.nodes.microservices.wasm_module"
NETWORK = "tosca.groups.microservices.docker_bridge_network"
QOS = "tosca.policies.microservices.QoS"
PLACEMENT = "tosca.policies.microservices.Placement"
FEEDS = "tosca.relationships.microservices.Feeds"

TYPES: Mapping[str, frozenset[str]] = {
    "node_types": frozenset({CONTAINER, WASM}),
    "group_types": frozenset({NETWORK}),
    "policy_types": frozenset({QOS, PLACEMENT}),
    "relationship_types": frozenset({FEEDS}),
    "artifact_types": frozenset(PROFILE["artifact_types"]),
}
"""What a template may use, by section of the profile."""

_PLAIN: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "float": (float, int),
    "boolean": (bool,),
    "list": (list,),
    "map": (dict,),
}
INPUT_TYPES = frozenset({"string", "integer", "float", "boolean"})
_TEXT = {"type": "string"}


def short_name(type_name: str) -> str:
    """`docker_container` for `tosca.nodes.microservices.docker_container`."""
    return type_name.rpartition(".")[2]


def property_schemas(section: str, type_name: str) -> dict[str, Mapping[str, Any]]:
    """The type's properties with those it inherits: name to TOSCA schema."""
    schemas: dict[str, Mapping[str, Any]] = {}
    definition = PROFILE[section].get(type_name)
    while definition:
        schemas = {**definition.get("properties", {}), **schemas}
        definition = PROFILE[section].get(definition["derived_from"])
    return schemas


def check_properties(
    given: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]], path: tuple[str | int, ...]
) -> Iterator[Finding]:
    """Unknown names, absent names and wrong types. Constraints are tosca-parser's work."""
    for name, value in given.items():
        if name in schemas:
            yield from check_value(value, schemas[name], (*path, name))
        else:
            fix = did_you_mean(name, schemas)
            yield Finding("unknown-property", (*path, name), f"there is no property {name[:80]!r}", fix)
    for name, schema in schemas.items():
        if schema.get("required", True) and name not in given:
            yield Finding(
                "missing-property", path, f"the property {name} is missing", f"Add {name} ({schema['type']})."
            )


def check_value(value: Any, schema: Mapping[str, Any], path: tuple[str | int, ...]) -> Iterator[Finding]:
    """Exact types: a bool is no integer, and null is nothing at all."""
    kind = schema["type"]
    allowed = _PLAIN.get(kind, (dict,))
    if type(value) not in allowed:
        yield wrong_type(value, kind, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from check_value(item, schema.get("entry_schema", _TEXT), (*path, index))
    elif kind == "map":
        for key, item in value.items():
            yield from check_value(item, schema.get("entry_schema", _TEXT), (*path, key))
    elif isinstance(value, dict):
        yield from check_properties(value, PROFILE["data_types"][kind]["properties"], path)


def wrong_type(value: object, expected: str, path: tuple[str | int, ...]) -> Finding:
    shown = {bool: "boolean", int: "integer", float: "float", str: "string", list: "list", dict: "map"}
    found = "nothing" if value is None else f"{shown[type(value)]} {str(value)[:60]!r}"
    name = path[-1] if path else "the template"
    hint = 'Put it in quotes: "..."' if expected == "string" and isinstance(value, int | float) else ""
    if expected in ("integer", "float") and isinstance(value, str) and not _quoted_number(value):
        hint = "Write the number alone, without a unit."
    return Finding(
        "wrong-type", path, f"{name} is {found}", hint or f"Write {_ARTICLES.get(expected, 'a map of ' + expected)}."
    )


def _quoted_number(text: str) -> bool:
    return text.strip().lstrip("+-").replace(".", "", 1).isdigit()


_ARTICLES = {
    "string": "text",
    "integer": "a whole number, without quotes",
    "float": "a number, without quotes",
    "boolean": "true or false, without quotes",
    "list": "a list: [a, b] or one - item a line",
    "map": "a map: one key: value a line",
}
