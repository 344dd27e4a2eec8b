"""The inputs of a template: declared with a default, and put in place of each `get_input`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from csar.findings import raise_first
from csar.profile import INPUT_TYPES, check_value, wrong_type
from csar.refusals import Finding, did_you_mean
from csar.strict_yaml import Document, Path
from protocol.parameters import Operator

_OPERATORS: frozenset[str] = frozenset(get_args(Operator))
_FUNCTIONS = frozenset(
    ["get_input", "get_property", "get_attribute", "get_operation_output", "get_artifact", "concat", "token"]
)
_LITERAL = frozenset({"id", "name", "category", "directory", "module"})
"""Properties that say what the service is: an input must not change them."""

_INPUT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def check_inputs(inputs: Mapping[str, Any], path: Path) -> Iterator[Finding]:
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


def fill_inputs(document: Document, topology: Mapping[str, Any]) -> dict[str, Any]:
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
        elif not isinstance(name, str) or name not in defaults:
            detail = f"there is no input {str(name)[:80]!r}"
            fix = did_you_mean(name, defaults) if defaults else "Declare it: topology_template, inputs."
            findings.append(Finding("unknown-input", path, detail, fix))
        else:
            return defaults[name]
        return None

    filled = {key: fill(value, ("topology_template", key)) for key, value in topology.items()}
    raise_first(document, iter(findings))
    return filled
