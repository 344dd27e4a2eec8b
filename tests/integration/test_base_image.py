"""The base image holds what a service needs where there is neither a registry nor the Internet."""

from __future__ import annotations

import io
import secrets
import subprocess
import sys
import tarfile
from pathlib import Path

import docker
import pytest

pytestmark = pytest.mark.docker
REPOSITORY = Path(__file__).parents[2]
OFFLINE_SERVICE = """\
FROM cornerstore/python:3.11
RUN pip install bottle flask && python -m pip --version
"""


def run(engine: docker.DockerClient, image: str, *command: str) -> str:
    output = engine.containers.run(image, list(command), network_mode="none", remove=True)
    assert isinstance(output, bytes)
    return output.decode().strip()


def test_python_finds_its_compiled_modules(engine: docker.DockerClient, base_image: str) -> None:
    modules = "bz2,ctypes,hashlib,lzma,multiprocessing,readline,sqlite3,ssl,uuid,venv,zlib,bottle,flask"
    script = f"import {modules}; print(ssl.create_default_context().cert_store_stats()['x509_ca'] > 50)"
    assert run(engine, base_image, "python", "-c", script) == "True"


def test_the_standard_library_is_compiled(engine: docker.DockerClient, base_image: str) -> None:
    assert run(engine, base_image, "python", "-c", "import json, os; print(os.path.exists(json.__cached__))") == "True"


def test_a_service_with_pinned_frameworks_builds_without_a_network(
    engine: docker.DockerClient, base_image: str
) -> None:
    tag = f"cornerstore-test/offline:{secrets.token_hex(4)}"  # removed by tag: other builds may share its layers
    dockerfile = io.BytesIO(OFFLINE_SERVICE.encode())
    engine.images.build(fileobj=dockerfile, network_mode="none", tag=tag, rm=True, forcerm=True)
    try:
        assert run(engine, tag, "sh", "-c", "wc -l < /etc/passwd") == "2"
    finally:
        engine.images.remove(tag)


def test_the_saved_archive_is_the_image_in_the_engine(
    engine: docker.DockerClient, base_image: str, tmp_path: Path
) -> None:
    file = tmp_path / "image.tar"
    subprocess.run([sys.executable, str(REPOSITORY / "scripts/base-image"), "--save", str(file)], check=True)
    with tarfile.open(file) as archive:
        configuration = next(name for name in archive.getnames() if name.endswith(".json") and name != "manifest.json")
    assert engine.images.get(base_image).id == "sha256:" + configuration.removesuffix(".json")
