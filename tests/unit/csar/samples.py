"""Archives for tests: an honest word count as a dict of files, and ways to bend it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

META = "TOSCA-Metadata/TOSCA.meta"
META_TEXT = "TOSCA-Meta-File-Version: 1.0\nCSAR-Version: 1.1\nCreated-By: a test\nEntry-Definitions: service.yaml\n"

TEMPLATE = """\
tosca_definitions_version: tosca_simple_profile_for_microservices_1_0_0
description: Counts words.
topology_template:
  node_templates:
    word_count:
      type: tosca.nodes.microservices.docker_container
      properties:
        id: wc01
        name: wordcount
        mem_requirement: 50
        directory: wordcount
        category: /text/count
        container_port: 8080
"""

WASM = b"\0asm\x01\0\0\0"


def word_count(template: str = TEMPLATE) -> dict[str, bytes]:
    return {META: META_TEXT.encode(), "service.yaml": template.encode(), "wordcount/Dockerfile": b"FROM python:3.6\n"}


def edited(old: str, new: str) -> dict[str, bytes]:
    """The word count with one piece of its template replaced; `old` must occur."""
    assert old in TEMPLATE
    return word_count(TEMPLATE.replace(old, new))


def with_lines(lines: str) -> dict[str, bytes]:
    """The word count with further properties, one a line."""
    return word_count(TEMPLATE + "".join(f"        {line}\n" for line in lines.splitlines()))


def below_topology(lines: str) -> dict[str, bytes]:
    """The word count with further sections of the topology."""
    return word_count(TEMPLATE + "".join(f"  {line}\n" for line in lines.splitlines()))


def zip_bytes(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    path.write_bytes(zip_bytes(files))
    return path
