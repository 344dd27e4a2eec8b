"""Opening, reading and extracting: bounded, whole or not at all, never outside."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from csar import Limits, Parser, extract_directory, extract_file
from csar.archive import open_archive
from protocol.problems import Conflict, InvalidArchive, NotFound
from tests.unit.csar.samples import word_count, write_zip, zip_bytes


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    files = {**word_count(), "wordcount/src/app.py": b"print(1)\n", "wordcount/empty/": b"", "other/x": b"x"}
    return write_zip(tmp_path / "a.csar", files)


def test_a_folder_is_extracted_and_nothing_else(archive: Path, tmp_path: Path) -> None:
    dest = tmp_path / "context"
    extract_directory(archive, "wordcount", dest)
    files = {str(p.relative_to(dest)) for p in dest.rglob("*")}
    assert files == {"Dockerfile", "src", "src/app.py", "empty"}
    assert (dest / "src/app.py").read_bytes() == b"print(1)\n"


def test_the_root_is_a_folder_too(archive: Path, tmp_path: Path) -> None:
    extract_directory(archive, "", tmp_path / "all")
    assert (tmp_path / "all/wordcount/Dockerfile").is_file()
    assert (tmp_path / "all/other/x").is_file()


def test_an_unknown_folder_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive) as caught:
        extract_directory(archive, "wordcoun", tmp_path / "context")
    assert caught.value.extra["code"] == "file-missing"
    assert not (tmp_path / "context").exists()


def test_only_an_empty_folder_is_written_to(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context/mine").write_text("keep")
    with pytest.raises(Conflict):
        extract_directory(archive, "wordcount", tmp_path / "context")
    assert (tmp_path / "context/mine").read_text() == "keep"


def test_a_link_is_not_followed(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "context").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict):
        extract_directory(archive, "wordcount", tmp_path / "context")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_damage_found_on_the_way_removes_what_was_written(tmp_path: Path) -> None:
    files = {**word_count(), "wordcount/a": b"first", "wordcount/z": b"some content"}
    data = bytearray(zip_bytes(files, zipfile.ZIP_STORED))
    data[data.index(b"some content")] ^= 0xFF
    path = tmp_path / "damaged.csar"
    path.write_bytes(data)
    with pytest.raises(InvalidArchive) as caught:
        extract_directory(path, "wordcount", tmp_path / "context")
    assert (caught.value.extra["code"], caught.value.extra["file"]) == ("corrupt-entry", "wordcount/z")
    assert not (tmp_path / "context").exists()


def test_a_lie_about_the_size_writes_no_more_than_declared(tmp_path: Path) -> None:
    """The directory says 10 bytes, the data unpacks to 1 MB."""
    data = bytearray(zip_bytes({**word_count(), "wordcount/z": bytes(1_000_000)}))
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = (10).to_bytes(4, "little")
    path = tmp_path / "liar.csar"
    path.write_bytes(data)
    with pytest.raises(InvalidArchive) as caught:
        extract_file(path, "wordcount/z", tmp_path / "z")
    assert caught.value.extra["code"] == "corrupt-entry"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["liar.csar"]


def test_modes_are_plain_but_for_the_executable_bit(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.csar", word_count())
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("wordcount/run.sh")
        info.external_attr = 0o104755 << 16  # set-user-id
        archive.writestr(info, b"#!/bin/sh\n")
    previous = os.umask(0o022)
    try:
        extract_directory(path, "wordcount", tmp_path / "context")
    finally:
        os.umask(previous)
    modes = {p.name: p.stat().st_mode & 0o7777 for p in (tmp_path / "context").iterdir()}
    assert modes == {"Dockerfile": 0o644, "run.sh": 0o755}


def test_one_file_replaces_what_was_there(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    extract_file(archive, "other/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"x"


def test_a_file_that_is_not_there(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive) as caught:
        extract_file(archive, "other", tmp_path / "x")
    assert caught.value.extra["code"] == "file-missing"


def test_no_such_archive(tmp_path: Path) -> None:
    with pytest.raises(NotFound), open_archive(tmp_path / "none.csar", Limits()):
        pass


def test_limits_of_the_node_are_kept(archive: Path) -> None:
    size = archive.stat().st_size
    with open_archive(archive, Limits(archive_bytes=size)) as opened:
        assert "service.yaml" in opened.files
    with pytest.raises(InvalidArchive) as caught, open_archive(archive, Limits(archive_bytes=size - 1)):
        pass
    assert caught.value.extra["code"] == "archive-too-large"
    with pytest.raises(InvalidArchive) as caught, open_archive(archive, Limits(unpacked_bytes=100)):
        pass
    assert caught.value.extra["code"] == "unpacked-too-large"


def test_a_parser_extracts_within_its_own_limits(archive: Path, tmp_path: Path) -> None:
    generous, strict = Parser(), Parser(Limits(unpacked_bytes=100))
    generous.extract_directory(archive, "wordcount", tmp_path / "context")
    generous.extract_file(archive, "other/x", tmp_path / "x")
    assert (tmp_path / "context/Dockerfile").is_file()
    assert (tmp_path / "x").read_bytes() == b"x"
    with pytest.raises(InvalidArchive):
        strict.extract_directory(archive, "wordcount", tmp_path / "other")
    with pytest.raises(InvalidArchive):
        strict.extract_file(archive, "other/x", tmp_path / "y")


def test_folders_are_known_without_entries_of_their_own(archive: Path) -> None:
    with open_archive(archive, Limits()) as opened:
        assert opened.folders == {"TOSCA-Metadata", "wordcount", "wordcount/src", "wordcount/empty", "other"}


def test_an_archive_comment_is_fine(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        opened.comment = b"made by hand"
    with open_archive(archive, Limits()) as checked:
        checked.verify()
