"""A folder becomes an archive: the same every time, valid, and only if it is."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from csar import describe, describe_sync, pack
from protocol.problems import BadRequest, InvalidArchive
from tests.unit.csar.samples import META, TEMPLATE, word_count


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for name, data in word_count().items():
        if name != META:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


def entries(archive: Path) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(archive) as opened:
        return {entry.filename: entry for entry in opened.infolist()}


def test_a_packed_folder_is_valid_and_has_a_meta_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "wc.csar"
    packed = pack(source, out)
    assert packed == describe_sync(out)
    assert packed.id == "wc01"
    assert list(entries(out)) == [META, "service.yaml", "wordcount/Dockerfile"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "wc.csar"]


async def test_describe_is_there_for_one_archive(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "wc.csar")
    assert (await describe(tmp_path / "wc.csar")).name == "wordcount"


def test_time_mode_and_order_do_not_matter(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "a.csar")
    dockerfile = source / "wordcount/Dockerfile"
    os.utime(dockerfile, (1, 1))
    dockerfile.chmod(0o600)
    pack(source, tmp_path / "b.csar")
    assert (tmp_path / "a.csar").read_bytes() == (tmp_path / "b.csar").read_bytes()


def test_images_modules_and_models_are_stored_and_text_is_deflated(source: Path, tmp_path: Path) -> None:
    (source / "image.tar").write_bytes(b"t" * 5000)
    (source / "m.wasm").write_bytes(b"w" * 5000)
    (source / "model.onnx").write_bytes(bytes(range(256)) * 4097)
    (source / "notes.txt").write_bytes(b"n" * 5000)
    pack(source, tmp_path / "wc.csar")
    found = {name: entry.compress_type for name, entry in entries(tmp_path / "wc.csar").items()}
    assert {found[n] for n in ("image.tar", "m.wasm", "model.onnx")} == {zipfile.ZIP_STORED}
    assert {found[n] for n in ("notes.txt", "service.yaml", META)} == {zipfile.ZIP_DEFLATED}


def test_what_is_no_part_of_a_service_stays_out(source: Path, tmp_path: Path) -> None:
    for name in (".git/config", "wordcount/__pycache__/a.pyc", "old.csar"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")
    pack(source, tmp_path / "wc.csar")
    assert list(entries(tmp_path / "wc.csar")) == [META, "service.yaml", "wordcount/Dockerfile"]


def test_a_portable_template_gets_the_profile_beside_it(source: Path, tmp_path: Path) -> None:
    profile = "tosca_simple_profile_for_microservices_1_0_0"
    portable = TEMPLATE.replace(profile, f"tosca_simple_yaml_1_3\nimports: [{profile}.yaml]")
    (source / "service.yaml").write_text(portable)
    assert pack(source, tmp_path / "wc.csar").id == "wc01"
    assert f"{profile}.yaml" in entries(tmp_path / "wc.csar")


def test_an_invalid_service_leaves_the_old_archive_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "wc.csar"
    pack(source, out)
    before = out.read_bytes()
    (source / "wordcount/Dockerfile").unlink()
    with pytest.raises(InvalidArchive) as caught:
        pack(source, out)
    assert caught.value.extra["code"] == "dockerfile-missing"
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "wc.csar"]


def test_a_link_is_not_packed(source: Path, tmp_path: Path) -> None:
    (source / "wordcount/passwd").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArchive) as caught:
        pack(source, tmp_path / "wc.csar")
    assert (caught.value.extra["code"], caught.value.extra["file"]) == ("special-file", "wordcount/passwd")


def test_the_output_does_not_lie_in_the_source(source: Path) -> None:
    with pytest.raises(BadRequest):
        pack(source, source / "wordcount" / "wc.csar")
    assert not (source / "wordcount/wc.csar").exists()


@pytest.mark.parametrize("out", ["nowhere/wc.csar"])
def test_the_output_needs_a_folder(source: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(BadRequest):
        pack(source, tmp_path / out)


def test_the_source_is_a_folder(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        pack(source / "service.yaml", tmp_path / "wc.csar")
