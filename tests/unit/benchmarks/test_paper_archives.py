"""Archives for the experiments: lean, and each time new."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from benchmarks.paper.archives import base_of, lean, variant

DOCKERFILE = "FROM python:3.11-slim\nCOPY wheels wheels\nRUN pip install wheels/*.whl\nCOPY . .\n"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.csar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("service.yaml", "topology")
        archive.writestr("src/Dockerfile", DOCKERFILE)
        archive.writestr("src/wheels/numpy.whl", b"many bytes")
        archive.writestr("src/model.onnx", b"model")
    return path


def test_a_lean_archive_has_no_wheels_and_does_not_ask_for_them(whole: Path, tmp_path: Path) -> None:
    lean(whole, tmp_path / "lean.csar")
    with zipfile.ZipFile(tmp_path / "lean.csar") as archive:
        assert archive.namelist() == ["service.yaml", "src/Dockerfile", "src/model.onnx"]
        assert archive.read("src/Dockerfile") == b"FROM python:3.11-slim\nCOPY . .\n"
        assert archive.read("src/model.onnx") == b"model"


def test_the_wheels_become_a_base_image_in_place_of_the_archives_own(whole: Path, tmp_path: Path) -> None:
    assert base_of(whole, tmp_path / "base", "local/python") == "python:3.11-slim"
    assert (tmp_path / "base/wheels/numpy.whl").read_bytes() == b"many bytes"
    assert (tmp_path / "base/Dockerfile").read_text().startswith("FROM local/python\nCOPY wheels /wheels\n")


def test_an_archive_without_wheels_needs_no_base(whole: Path, tmp_path: Path) -> None:
    lean(whole, tmp_path / "lean.csar")
    assert base_of(tmp_path / "lean.csar", tmp_path / "base", "local/python") is None


def test_two_variants_are_the_same_service_with_different_bytes(whole: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.csar", tmp_path / "other.csar"
    variant(whole, one)
    variant(whole, other)
    assert one.read_bytes() != other.read_bytes()
    with zipfile.ZipFile(one) as archive, zipfile.ZipFile(whole) as before:
        assert {*archive.namelist()} - {*before.namelist()} == {"variant.txt"}
        assert archive.read("src/model.onnx") == before.read("src/model.onnx")
