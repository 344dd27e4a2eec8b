"""YAML for hostile input: bounded, without aliases, tags or duplicate keys, and with a line for every value.

Plain scalars become booleans (as YAML 1.1 writes them: the paper's platform read that), decimal integers, decimal
floats or null; all else is text. So no value is read as a date, an octal or a base-60 number by surprise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from csar.limits import Limits
from csar.refusals import refusal

Path = tuple[str | int, ...]
"""Leads from the top of a document to a value: mapping keys and list indexes."""

_BOOLEANS = {word: value for words, value in (("true yes on", True), ("false no off", False)) for word in words.split()}
_BOOLEANS |= {form(word): value for word, value in _BOOLEANS.items() for form in (str.title, str.upper)}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_EXPONENT = r"[eE][-+]?[0-9]{1,2}"
_FLOAT = re.compile(rf"[-+]?[0-9]{{1,32}}(\.[0-9]{{0,32}}({_EXPONENT})?|{_EXPONENT})")


class Document:
    """A parsed file. `value` holds plain dicts, lists, str, int, float, bool and None."""

    def __init__(self, file: str, root: yaml.Node) -> None:
        self.file = file
        self._lines: dict[Path, int] = {}
        self._texts: dict[Path, str] = {}
        value = self._build(root, ())
        if not isinstance(value, dict):
            raise refusal("yaml-not-a-mapping", "the file is not a mapping", "Start with key: value.", file=file)
        self.value: dict[str, Any] = value

    def line(self, path: Sequence[str | int]) -> int:
        """The line of the value at `path`, or of the nearest thing above it that exists. Counts from 1."""
        at = tuple(path)
        while at not in self._lines:
            at = at[:-1]
        return self._lines[at]

    def text(self, path: Sequence[str | int]) -> str:
        """A scalar as it is written: `1.10` where the value is the float 1.1."""
        return self._texts.get(tuple(path), "")

    def _build(self, node: yaml.Node, path: Path) -> Any:
        self._lines.setdefault(path, _line_of(node))
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*path, index)) for index, item in enumerate(node.value)]
        self._texts[path] = node.value
        return _scalar(node)

    def _build_mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key, value in node.value:
            line = _line_of(key)
            if not isinstance(key, yaml.ScalarNode):
                raise refusal("yaml-key", "a key is not plain text", "Write key: value.", file=self.file, line=line)
            name = str(key.value)
            if name == "<<":
                raise refusal("yaml-alias", "merge keys are not allowed", "Write it out.", file=self.file, line=line)
            if name in built:
                raise refusal(
                    "yaml-duplicate-key",
                    f"{name[:80]!r} is given twice (first on line {self.line((*path, name))})",
                    "Remove one.",
                    file=self.file,
                    line=line,
                )
            self._lines[(*path, name)] = line
            built[name] = self._build(value, (*path, name))
        return built


def parse(data: bytes, file: str, limits: Limits) -> Document:
    """Raises InvalidArchive with file and line."""
    text = decode(data, file)
    try:
        _check_events(text, file, limits)
        root = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise refusal(
            "yaml-syntax",
            str(getattr(error, "problem", None) or error).splitlines()[0][:200],
            "Correct the YAML; indentation and colons are the usual causes.",
            file=file,
            line=mark.line + 1 if mark else None,
        ) from None
    if root is None:
        raise refusal("yaml-not-a-mapping", "the file is empty", "Describe the service in it.", file=file)
    return Document(file, root)


def decode(data: bytes, file: str) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refusal("not-utf8", "the file is not UTF-8", "Save it as UTF-8.", file=file, line=line) from None


def _check_events(text: str, file: str, limits: Limits) -> None:
    """One cheap pass before anything is built. Documents after the first are refused by `yaml.compose`."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader), start=1):
        line = _line_of(event)
        if count > limits.yaml_events:
            raise refusal(
                "yaml-too-many-events", f"more than {limits.yaml_events} elements", "Shorten it.", file=file, line=line
            )
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise refusal("yaml-alias", "anchors and aliases are not allowed", "Write it out.", file=file, line=line)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise refusal("yaml-tag", f"the tag {tag[:40]!r} is not allowed", "Remove it.", file=file, line=line)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > limits.yaml_scalar:
            raise refusal(
                "yaml-long-scalar",
                f"a value has more than {limits.yaml_scalar} characters",
                "Shorten it, or put it in a file of its own.",
                file=file,
                line=line,
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > limits.yaml_depth:
            raise refusal("yaml-too-deep", f"more than {limits.yaml_depth} levels", "Flatten it.", file=file, line=line)


def _line_of(item: yaml.Event | yaml.Node) -> int:
    return item.start_mark.line + 1 if item.start_mark else 1


def _scalar(node: yaml.Node) -> str | int | float | bool | None:
    text = str(node.value)
    if isinstance(node, yaml.ScalarNode) and node.style:  # quoted or a block
        return text
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
