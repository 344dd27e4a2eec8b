"""A service's parameters: what a client may set at a start, and what it may set it to (TOSCA 1.3, section 3.6.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from protocol.problems import BadRequest

Scalar = str | int | float | bool
Operator = Literal[
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


class Constraint(Struct, frozen=True):
    """`operands`: the allowed values, the two ends of a range, or the one value that is compared with."""

    operator: Operator
    operands: tuple[Scalar, ...]


class Parameter(Struct, frozen=True):
    """An input of the description. Values travel as text and reach the service in its environment."""

    default: str
    type: Literal["string", "integer", "float", "boolean"] = "string"
    constraints: tuple[Constraint, ...] = ()

    def check(self, name: str, text: str) -> None:
        """Raises BadRequest unless `text` is of the type and meets every constraint."""
        value = self._value(name, text)
        for constraint in self.constraints:
            if not _HOLDS[constraint.operator](value, constraint.operands):
                allowed = ", ".join(str(operand) for operand in constraint.operands)
                raise BadRequest(
                    f"the parameter {name} may not be {text[:80]!r}",
                    fix=f"It must meet {constraint.operator}: {allowed}.",
                )

    def _value(self, name: str, text: str) -> Scalar:
        try:
            match self.type:
                case "integer":
                    return int(text)
                case "float":
                    return float(text)
                case "boolean":
                    return {"true": True, "false": False}[text]
                case _:
                    return text
        except (ValueError, KeyError):
            raise BadRequest(f"the parameter {name} is no {self.type}: {text[:80]!r}") from None


def _ordered(holds: Callable[[float, float], bool]) -> Callable[[Scalar, tuple[Scalar, ...]], bool]:
    """A comparison of numbers; anything else fails it."""

    def check(value: Scalar, operands: tuple[Scalar, ...]) -> bool:
        limit = operands[0]
        return isinstance(value, int | float) and isinstance(limit, int | float) and holds(value, limit)

    return check


def _sized(holds: Callable[[int, Scalar], bool]) -> Callable[[Scalar, tuple[Scalar, ...]], bool]:
    return lambda value, operands: isinstance(value, str) and holds(len(value), operands[0])


_HOLDS: dict[Operator, Callable[[Scalar, tuple[Scalar, ...]], bool]] = {
    "equal": lambda value, operands: value == operands[0],
    "valid_values": lambda value, operands: value in operands,
    "greater_than": _ordered(lambda value, limit: value > limit),
    "greater_or_equal": _ordered(lambda value, limit: value >= limit),
    "less_than": _ordered(lambda value, limit: value < limit),
    "less_or_equal": _ordered(lambda value, limit: value <= limit),
    "in_range": lambda value, operands: (
        _HOLDS["greater_or_equal"](value, operands[:1]) and _HOLDS["less_or_equal"](value, operands[1:])
    ),
    "length": _sized(lambda size, limit: size == limit),
    "min_length": _sized(lambda size, limit: isinstance(limit, int) and size >= limit),
    "max_length": _sized(lambda size, limit: isinstance(limit, int) and size <= limit),
}
