"""Image archives lose the names they claim and keep everything else."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from agent.docker.image_archive import NamelessArchive
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


def pieces(path: Path, size: int = 700) -> list[bytes]:
    whole = path.read_bytes()
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def test_the_copy_is_nameless(tmp_path: Path) -> None:
    archived = NamelessArchive(pieces(archive(tmp_path / "image.tar", [IMAGE])))
    copy = b"".join(archived)
    assert archived.image == "sha256:c0ffee"
    with tarfile.open(fileobj=io.BytesIO(copy)) as tar:
        assert sorted(tar.getnames()) == ["1/layer.tar", "c0ffee.json", "manifest.json"]
        opened = tar.extractfile("manifest.json")
        assert opened is not None
        assert json.load(opened) == [{**IMAGE, "RepoTags": None}]


@pytest.mark.parametrize("manifest", [[], [IMAGE, IMAGE], {}, [1], [{"RepoTags": []}]])
def test_anything_but_one_image_is_refused(tmp_path: Path, manifest: Any) -> None:
    with pytest.raises(BuildFailed):
        b"".join(NamelessArchive(pieces(archive(tmp_path / "image.tar", manifest))))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed):
        b"".join(NamelessArchive([b"not a tar"]))


def test_an_archive_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    whole = archive(tmp_path / "image.tar", [IMAGE]).read_bytes()
    with pytest.raises(BuildFailed):
        b"".join(NamelessArchive([whole[:1100]]))


def test_pieces_may_be_cut_anywhere(tmp_path: Path) -> None:
    path = archive(tmp_path / "image.tar", [IMAGE])
    assert b"".join(NamelessArchive(pieces(path, 1))) == b"".join(NamelessArchive(pieces(path, 1 << 20)))
