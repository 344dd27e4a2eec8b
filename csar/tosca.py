"""tosca-parser, the judge of TOSCA semantics. The only importer of it, and it runs in the worker process alone.

It gets a dict that `csar.template` vetted: no path, no import, no URL, no types of its own. It is not thread-safe
(its `ExceptionCollector` is one for the process) and it changes its input, so each check works on a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, ClassVar

from toscaparser.common.exception import ExceptionCollector, ValidationError
from toscaparser.properties import Property
from toscaparser.tosca_template import ToscaTemplate

from csar.frames import Complaint
from csar.profile import PROFILE, PROFILE_VERSION, property_schemas

_TYPE_SECTIONS = tuple(section for section in PROFILE if section.endswith("_types"))
_DEFINITIONS: dict[str, Any] = {name: body for section in _TYPE_SECTIONS for name, body in PROFILE[section].items()}
_TEXT = {"type": "string"}
_MAX_MESSAGE = 300


class MicroserviceTemplate(ToscaTemplate):
    """`ToscaTemplate` that knows the shipped profile, without touching the global type table."""

    MAIN_TEMPLATE_VERSIONS: ClassVar = [*ToscaTemplate.MAIN_TEMPLATE_VERSIONS, PROFILE_VERSION]
    VALID_TEMPLATE_VERSIONS: ClassVar = [*ToscaTemplate.VALID_TEMPLATE_VERSIONS, PROFILE_VERSION]

    def _get_all_custom_defs(self, imports: Any = None, path: Any = None) -> dict[str, Any]:
        return deepcopy(_DEFINITIONS)

    def _tpl_relationship_types(self) -> dict[str, Any]:
        return deepcopy(dict(PROFILE["relationship_types"]))


def complaints(topology: dict[str, Any]) -> list[Complaint]:
    """Everything tosca-parser has against the topology: each property by itself first, so that it has a place."""
    topology = _widened(topology)
    found = [
        Complaint(path, message) for path, schema, value in _values(topology) for message in _judge(path, schema, value)
    ]
    return found or [Complaint((), message) for message in _judge_whole(topology)]


def _values(topology: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any], Any]]:
    """Every value that has a schema, with its path from the top of the template."""
    top = "topology_template"
    for name, given in topology.get("inputs", {}).items():
        yield (top, "inputs", name, "default"), given, given["default"]
    sections: list[tuple[str, tuple[str | int, ...], Mapping[str, Any]]] = [
        *(("node_types", (top, "node_templates", n), node) for n, node in topology["node_templates"].items()),
        *(("group_types", (top, "groups", n), group) for n, group in topology.get("groups", {}).items()),
        *(
            ("policy_types", (top, "policies", index, n), policy)
            for index, item in enumerate(topology.get("policies", []))
            for n, policy in item.items()
        ),
    ]
    for section, path, entry in sections:
        schemas = property_schemas(section, entry["type"])
        for name, value in entry.get("properties", {}).items():
            yield (*path, "properties", name), schemas[name], value


def _widened(topology: dict[str, Any]) -> dict[str, Any]:
    """A copy in which the integers at float properties are floats: tosca-parser takes 5 for no float."""
    copy = deepcopy(topology)
    for path, schema, value in list(_values(copy)):
        holder: Any = {"topology_template": copy}
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = _widen(value, schema)
    return copy


def _widen(value: Any, schema: Mapping[str, Any]) -> Any:
    kind = schema["type"]
    if kind == "float":
        return float(value)
    if isinstance(value, list):
        return [_widen(item, schema.get("entry_schema", _TEXT)) for item in value]
    if kind == "map":
        return {key: _widen(item, schema.get("entry_schema", _TEXT)) for key, item in value.items()}
    if isinstance(value, dict):
        fields = PROFILE["data_types"][kind]["properties"]
        return {key: _widen(item, fields[key]) for key, item in value.items()}
    return value


def _judge(path: tuple[str | int, ...], schema: Mapping[str, Any], value: Any) -> list[str]:
    ExceptionCollector.start()
    try:
        Property(str(path[-1]), deepcopy(value), deepcopy(dict(schema)), deepcopy(_DEFINITIONS)).validate()
    except Exception as error:  # noqa: BLE001 - it raises TypeError, AttributeError, IndexError over odd values
        return [_message(error)]
    finally:
        ExceptionCollector.stop()
    return [_message(error) for error in ExceptionCollector.exceptions]


def _judge_whole(topology: dict[str, Any]) -> list[str]:
    template = {"tosca_definitions_version": PROFILE_VERSION, "topology_template": deepcopy(topology)}
    try:
        MicroserviceTemplate(yaml_dict_tpl=template)
    except ValidationError:
        return [_message(error) for error in ExceptionCollector.exceptions]
    except Exception as error:  # noqa: BLE001 - as above
        return [_message(error)]
    finally:
        ExceptionCollector.stop()
    return []


def _message(error: Exception) -> str:
    """The first line: later ones hold stack traces and local paths."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_MAX_MESSAGE]
