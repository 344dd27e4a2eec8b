"""Values of parameters are held to their type and their constraints."""

from __future__ import annotations

import pytest

from protocol.parameters import Constraint, Parameter
from protocol.problems import BadRequest

NUMBER = Parameter("1", "integer", (Constraint("in_range", (1, 8)),))
LANGUAGE = Parameter("en", "string", (Constraint("valid_values", ("en", "de")),))
SHORT = Parameter("", "string", (Constraint("max_length", (3,)),))
POSITIVE = Parameter("1.0", "float", (Constraint("greater_than", (0,)),))


@pytest.mark.parametrize(
    ("parameter", "text"),
    [(NUMBER, "8"), (LANGUAGE, "de"), (SHORT, "abc"), (POSITIVE, "0.5"), (Parameter("true", "boolean"), "false")],
)
def test_what_is_allowed_passes(parameter: Parameter, text: str) -> None:
    parameter.check("p", text)


@pytest.mark.parametrize(
    ("parameter", "text"),
    [
        (NUMBER, "9"),
        (NUMBER, "0"),
        (NUMBER, "two"),
        (LANGUAGE, "fr"),
        (SHORT, "abcd"),
        (POSITIVE, "0"),
        (POSITIVE, "nan"),
        (Parameter("true", "boolean"), "yes"),
    ],
)
def test_what_is_not_is_refused_by_name(parameter: Parameter, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parameter.check("size", text)
    assert "size" in caught.value.detail


def test_the_fix_says_what_is_allowed() -> None:
    with pytest.raises(BadRequest) as caught:
        LANGUAGE.check("language", "fr")
    assert "en, de" in caught.value.fix
