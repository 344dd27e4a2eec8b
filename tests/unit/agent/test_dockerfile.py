"""FROM lines are rewritten, and nothing else is."""

from __future__ import annotations

import pytest

from agent.docker.dockerfile import rewrite_from
from agent.docker.images import build_failed, image_tag

ALIASES = {"python:3.6-alpine": "local/exact", "python:3.*": "local/pattern", "debian": "local/debian"}


@pytest.mark.parametrize(
    ("line", "rewritten"),
    [
        ("FROM python:3.6-alpine\n", "FROM local/exact\n"),
        ("from python:3.6-alpine\r\n", "from local/exact\r\n"),
        ("FROM python:3.9-slim AS build\n", "FROM local/pattern AS build\n"),
        ("FROM --platform=linux/amd64 python:3.6", "FROM --platform=linux/amd64 local/pattern"),
        ("FROM docker.io/library/python:3.6-alpine\n", "FROM local/exact\n"),
        ("FROM library/debian:latest\n", "FROM local/debian\n"),
        ("FROM debian\n", "FROM local/debian\n"),
        ("FROM debian:12\n", "FROM debian:12\n"),
        ("FROM scratch\n", "FROM scratch\n"),
        ("FROM registry.local:5000/debian\n", "FROM registry.local:5000/debian\n"),
        ("# FROM debian\n", "# FROM debian\n"),
        ("RUN echo \\\nFROM debian\n", "RUN echo \\\nFROM debian\n"),
        ("COPY --from=debian /a /b\n", "COPY --from=debian /a /b\n"),
    ],
)
def test_bases_are_mapped_to_local_images(line: str, rewritten: str) -> None:
    assert rewrite_from(line, ALIASES) == rewritten


def test_an_earlier_stage_of_that_name_is_no_image() -> None:
    text = "FROM python:3.6 AS debian\nFROM debian\nCOPY --from=0 /a /a\n"
    assert rewrite_from(text, ALIASES) == "FROM local/pattern AS debian\nFROM debian\nCOPY --from=0 /a /a\n"


def test_a_tag_is_of_the_digest_and_of_a_special_artifact() -> None:
    digest = "sha256:" + "ab" * 32
    assert image_tag(digest, None) == "cornerstore/svc:" + "ab" * 16
    assert image_tag(digest, "small") != image_tag(digest, "large") != image_tag(digest, None)


@pytest.mark.parametrize(
    ("step", "image"),
    [
        ("Step 1/9 : FROM python:3.11-slim", "python:3.11-slim"),
        ("Step 4/9 : from --platform=linux/amd64 debian:12 AS build", "debian:12"),
    ],
)
def test_a_base_image_that_nobody_gives_is_named_with_the_line_to_write(step: str, image: str) -> None:
    problem = build_failed(
        "Get registry-1.docker.io: dial tcp: i/o timeout", ["Step 1/9 : FROM other", step, "dial tcp"]
    )
    assert f'"{image}" = "cornerstore/python:3.11"' in problem.fix
    assert "base_image_aliases" not in build_failed("exit code 1", [step]).fix
