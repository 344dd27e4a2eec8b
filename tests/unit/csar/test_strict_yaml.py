"""YAML values are what they look like, and every one has its line."""

from __future__ import annotations

from typing import Any

import pytest

from csar.limits import Limits
from csar.strict_yaml import Document, parse
from protocol.problems import InvalidArchive


def document(text: str) -> Document:
    return parse(text.encode(), "service.yaml", Limits())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("50", 50),
        ("-1", -1),
        ("1.10", 1.1),
        ("1.", 1.0),
        ("2e3", 2000.0),
        ("010", "010"),
        ("-010", "-010"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("9" * 20, "9" * 20),
        ("true", True),
        ("Yes", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("'50'", "50"),
        ('"true"', "true"),
        ("|\n  text\n  more", "text\nmore\n"),
        ("[1, a, {b: c}]", [1, "a", {"b": "c"}]),
    ],
)
def test_values(written: str, meant: Any) -> None:
    value = document(f"k: {written}\n").value["k"]
    assert (value, type(value)) == (meant, type(meant))


def test_keys_stay_text() -> None:
    assert document("8080: a\nyes: b\nnull: c\n").value == {"8080": "a", "yes": "b", "null": "c"}


def test_lines_and_texts() -> None:
    parsed = document("a: 1.10\nb:\n  - x\n  - c: y\n    d: z\n")
    assert parsed.line(("a",)) == 1
    assert parsed.line(("b", 1, "d")) == 5
    assert parsed.line(("b", 1, "not there")) == 4
    assert parsed.line(()) == 1
    assert parsed.text(("a",)) == "1.10"


def test_a_byte_order_mark_and_crlf_are_fine() -> None:
    assert parse(b"\xef\xbb\xbfa: b\r\nc: d\r\n", "service.yaml", Limits()).value == {"a": "b", "c": "d"}


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("a: b\nc: [\n", "yaml-syntax", 3),
        ("a: b\n\na: c\n", "yaml-duplicate-key", 3),
        ("a: b\nc: &x d\n", "yaml-alias", 2),
        ("a:\n  b: !x y\n", "yaml-tag", 2),
        ("a:\n  ? {b: c}\n  : d\n", "yaml-key", 2),
    ],
)
def test_errors_name_the_line(text: str, code: str, line: int) -> None:
    with pytest.raises(InvalidArchive) as caught:
        document(text)
    assert caught.value.extra == {"code": code, "file": "service.yaml", "line": line}
    assert caught.value.detail.startswith(f"service.yaml:{line}: ")
