"""Image archives lose the names they claim and keep everything else."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from agent.image_archive import without_tags
from protocol.problems import BuildFailed

IMAGE = {"Config": "c0ffee.json", "RepoTags": ["python:3.11"], "Layers": ["1/layer.tar"]}


def archive(path: Path, manifest: Any) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in {
            "c0ffee.json": b"{}",
            "1/layer.tar": b"layer",
            "repositories": b'{"python": {"3.11": "1"}}',
            "manifest.json": json.dumps(manifest).encode(),
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_the_copy_is_nameless(tmp_path: Path) -> None:
    copy = tmp_path / "copy.tar"
    assert without_tags(archive(tmp_path / "image.tar", [IMAGE]), copy) == "sha256:c0ffee"
    with tarfile.open(copy) as tar:
        assert sorted(tar.getnames()) == ["1/layer.tar", "c0ffee.json", "manifest.json"]
        opened = tar.extractfile("manifest.json")
        assert opened is not None
        assert json.load(opened) == [{**IMAGE, "RepoTags": None}]


@pytest.mark.parametrize("manifest", [[], [IMAGE, IMAGE], {}, [1], [{"RepoTags": []}]])
def test_anything_but_one_image_is_refused(tmp_path: Path, manifest: Any) -> None:
    with pytest.raises(BuildFailed):
        without_tags(archive(tmp_path / "image.tar", manifest), tmp_path / "copy.tar")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(b"not a tar")
    with pytest.raises(BuildFailed):
        without_tags(tmp_path / "image.tar", tmp_path / "copy.tar")
