"""Thin image archives lack the layers of their base and nothing else."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from csar import pack
from csar.thin_image import thin_image
from protocol.problems import BadRequest

DESCRIPTION = """tosca_definitions_version: tosca_simple_profile_for_microservices_1_0_0
topology_template:
  node_templates:
    service:
      type: tosca.nodes.microservices.docker_container
      properties: {id: a, name: a, category: /a, container_port: 80, mem_requirement: 16}
      artifacts:
        image: {type: tosca.artifacts.microservices.OCIImage, file: image.tar}
"""


def image(path: Path, *layers: str) -> Path:
    """An image archive whose layers' contents are their names."""
    files = [f"{layer}/layer.tar" for layer in layers]
    manifest = [{"Config": "config.json", "RepoTags": ["a:1"], "Layers": files}]
    config = {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}" for layer in layers]}}
    with tarfile.open(path, "w") as archive:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            *((f, f.encode()) for f in dict.fromkeys(files)),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def test_the_base_s_layers_are_left_out(tmp_path: Path) -> None:
    whole, base = image(tmp_path / "whole", "b1", "b2", "own"), image(tmp_path / "base", "b1", "b2")
    assert thin_image(whole, base, tmp_path / "thin")
    assert names(tmp_path / "thin") == ["config.json", "own/layer.tar", "manifest.json"]


def test_a_file_that_is_needed_again_stays(tmp_path: Path) -> None:
    whole, base = image(tmp_path / "whole", "b1", "b2", "b1"), image(tmp_path / "base", "b1", "b2")
    assert thin_image(whole, base, tmp_path / "thin")
    assert names(tmp_path / "thin") == ["config.json", "b1/layer.tar", "manifest.json"]


def test_an_image_of_another_base_is_not_copied(tmp_path: Path) -> None:
    whole, base = image(tmp_path / "whole", "b1", "own"), image(tmp_path / "base", "other")
    assert not thin_image(whole, base, tmp_path / "thin")
    assert not (tmp_path / "thin").exists()


def test_what_is_no_image_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"no tar")
    with pytest.raises(BadRequest, match="base is no image archive"):
        thin_image(image(tmp_path / "whole", "b1"), tmp_path / "base", tmp_path / "thin")


def test_pack_thins_the_images_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / "service.yaml").write_text(DESCRIPTION)
    image(folder / "image.tar", "b1", "own")
    pack(folder, tmp_path / "a.csar", over=image(tmp_path / "base", "b1"))
    with zipfile.ZipFile(tmp_path / "a.csar") as archive, tarfile.open(fileobj=archive.open("image.tar")) as packed:
        assert packed.getnames() == ["config.json", "own/layer.tar", "manifest.json"]
    with pytest.raises(BadRequest, match="no image that is built on"):
        pack(folder, tmp_path / "b.csar", over=image(tmp_path / "other", "b7"))
