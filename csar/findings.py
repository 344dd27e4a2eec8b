"""What is wrong with a template, collected with places, and raised as one refusal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from csar.profile import wrong_type
from csar.refusals import Finding, did_you_mean, refusal
from csar.strict_yaml import Document, Path
from protocol.problems import InvalidArchive

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

MAX_FINDINGS = 20


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


def check_keys(given: Mapping[str, Any], allowed: frozenset[str], path: Path) -> Iterator[Finding]:
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


def check_texts(given: Mapping[str, Any], keys: Sequence[str], path: Path) -> Iterator[Finding]:
    for key in keys:
        if not isinstance(given.get(key, ""), str):
            yield wrong_type(given[key], "string", (*path, key))


def check_container(given: Mapping[str, Any], key: str, kind: type, path: Path) -> Iterator[Finding]:
    if key in given and not isinstance(given[key], kind):
        yield wrong_type(given[key], "map" if kind is dict else "list", (*path, key))
