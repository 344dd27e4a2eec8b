"""Whatever the bytes, the outcome is a descriptor or InvalidArchive, and nothing appears outside the target."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from csar import Parser, extract_directory, pack
from csar.limits import Limits
from csar.meta import entry_from_meta
from csar.strict_yaml import parse
from protocol.problems import InvalidArchive
from tests.unit.csar.samples import TEMPLATE, word_count, zip_bytes

HONEST = zip_bytes(word_count())
patient = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    parser = Parser()
    yield parser
    parser.close()


def open_safely(parser: Parser, data: bytes) -> None:
    """Describe and extract; only InvalidArchive may come out, and nothing may appear beside the target."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = folder / "a.csar"
        archive.write_bytes(data)
        with contextlib.suppress(InvalidArchive):
            parser.describe_sync(archive)
        with contextlib.suppress(InvalidArchive):
            extract_directory(archive, "", folder / "inside")
        assert {p.name for p in folder.iterdir()} <= {"a.csar", "inside"}
        assert all(p.is_file() or p.is_dir() for p in folder.rglob("*"))
        assert not any(p.is_symlink() for p in folder.rglob("*"))


@patient
@given(st.binary(max_size=2000))
@example(b"")
@example(b"PK\x05\x06" + bytes(18))
def test_arbitrary_bytes(parser: Parser, data: bytes) -> None:
    open_safely(parser, data)


@patient
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_bytes_between_a_header_and_an_end(parser: Parser, front: bytes, directory: bytes) -> None:
    end = b"PK\x05\x06" + bytes(4) + b"\x01\x00\x01\x00" + len(directory).to_bytes(4, "little")
    data = b"PK\x03\x04" + front
    open_safely(parser, data + directory + end + len(data).to_bytes(4, "little") + bytes(2))


@patient
@given(st.lists(st.tuples(st.integers(0, len(HONEST) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_mutated_zips(parser: Parser, changes: list[tuple[int, int]]) -> None:
    data = bytearray(HONEST)
    for at, value in changes:
        data[at] = value
    open_safely(parser, bytes(data))


_file_names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


@patient
@given(st.dictionaries(_file_names, st.binary(max_size=50), max_size=6))
@example({"../x": b"1", "a": b"2"})
@example({"a": b"1", "a/b": b"2"})
def test_zips_with_arbitrary_names(parser: Parser, files: dict[str, bytes]) -> None:
    open_safely(parser, zip_bytes({**word_count(), **files}))


_words = st.sampled_from(
    [*TEMPLATE.split(), "null", "true", "[]", "{}", "1.5", "*a", "&a", "!x", "<<", "get_input", "-"]
)


@patient
@given(st.lists(st.tuples(st.integers(0, len(TEMPLATE.split()) - 1), _words), min_size=1, max_size=4))
def test_templates_with_exchanged_words(parser: Parser, changes: list[tuple[int, str]]) -> None:
    text = TEMPLATE
    for index, word in changes:
        text = text.replace(TEMPLATE.split()[index], word, 1)
    open_safely(parser, zip_bytes(word_count(text)))


_WORDS = (
    *("type", "properties", "members", "targets", "default", "constraints", "node", "relationship", "upstream", "file"),
    *("get_input", "concat", "tosca.nodes.microservices.wasm_module"),
)
_keys = st.text(max_size=8) | st.sampled_from(_WORDS)
_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=8,
)
_SECTIONS = ["inputs", "groups", "policies", "node_templates", "description"]


@patient
@given(st.sampled_from(_SECTIONS), _plain, st.booleans())
def test_templates_with_arbitrary_sections(parser: Parser, section: str, value: object, named: bool) -> None:
    template = yaml.safe_load(TEMPLATE)
    template["topology_template"][section] = {"x": value} if named else value
    open_safely(parser, zip_bytes(word_count(yaml.safe_dump(template))))


@patient
@given(
    st.sampled_from(["properties", "requirements", "artifacts", "metadata", "type"]),
    _plain,
    st.sampled_from(["x", "id", "upstream", "variants", "container_ports", "category", "inputs"]),
)
def test_nodes_with_arbitrary_values(parser: Parser, key: str, value: object, name: str) -> None:
    template = yaml.safe_load(TEMPLATE)
    node = template["topology_template"]["node_templates"]["word_count"]
    if isinstance(node.get(key), dict):
        node[key][name] = value
    else:
        node[key] = [{name: value}] if key == "requirements" else {name: value}
    open_safely(parser, zip_bytes(word_count(yaml.safe_dump(template))))


@given(st.binary(max_size=500))
def test_yaml_is_a_document_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidArchive):
        assert isinstance(parse(data, "f", Limits()).value, dict)


@given(st.text(max_size=200))
def test_meta_names_a_file_of_the_archive_or_is_refused(text: str) -> None:
    with contextlib.suppress(InvalidArchive):
        assert entry_from_meta(text, ["a.yaml"]) == "a.yaml"


_names = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.txt", fullmatch=True)


@settings(deadline=None, max_examples=5)
@given(st.dictionaries(_names, st.binary(max_size=3000), max_size=5))
def test_pack_and_extract_give_the_folder_back_and_the_same_bytes(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        wanted = {**word_count(), **files}
        for path, data in wanted.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(data)
        pack(source, Path(name) / "a.csar")
        pack(source, Path(name) / "b.csar")
        assert (Path(name) / "a.csar").read_bytes() == (Path(name) / "b.csar").read_bytes()
        back = Path(name) / "back"
        extract_directory(Path(name) / "a.csar", "", back)
        assert {str(p.relative_to(back)): p.read_bytes() for p in back.rglob("*") if p.is_file()} == wanted
