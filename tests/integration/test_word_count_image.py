"""The word count as the paper's platform would run it: its Dockerfile, on the image that stands in for `python:3.6`."""

from __future__ import annotations

import secrets
import urllib.error
import urllib.request
from pathlib import Path

import docker
import pytest

from tests.waiting import until

pytestmark = pytest.mark.docker
CONTEXT = Path(__file__).parents[2] / "services/word_count/wordcount"


async def test_the_word_count_runs_hardened_in_its_64_megabytes(
    engine: docker.DockerClient, base_image: str, tmp_path: Path
) -> None:
    tag = f"cornerstore-test/word-count:{secrets.token_hex(4)}"  # removed by tag: other builds may share its layers
    for file in filter(Path.is_file, CONTEXT.iterdir()):
        text = file.read_text().replace("FROM python:3.6-alpine", f"FROM {base_image}")
        (tmp_path / file.name).write_text(text)
    engine.images.build(path=str(tmp_path), network_mode="none", tag=tag, rm=True, forcerm=True)
    container = engine.containers.run(
        tag,
        detach=True,
        mem_limit="64m",
        memswap_limit="64m",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        pids_limit=64,
        user="65534:65534",
    )
    try:
        container.reload()
        address = container.attrs["NetworkSettings"]["IPAddress"]

        def post(body: bytes) -> str:
            with urllib.request.urlopen(f"http://{address}:8080/wordcount", data=body, timeout=20) as answer:
                return str(answer.read().decode())

        def ready() -> bool:
            try:
                return post(b"") == "0"
            except urllib.error.URLError:
                return False

        await until(ready)
        assert post(b"some words " * 3_000_000) == "6000000"  # 33 MB
        container.stop(timeout=5)
        assert container.wait()["StatusCode"] == 0
    finally:
        container.remove(force=True)
        engine.images.remove(tag)
