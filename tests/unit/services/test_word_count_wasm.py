"""The word count in WebAssembly: what is committed is its source, and it counts as the container does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from agent.wasm import compiler as wasm_compiler
from agent.wasm.engine import Limits, Program, Request

SERVICE = Path(__file__).parents[3] / "services" / "word_count_wasm"
LIMITS = Limits(memory=2_000_000, fuel=4_000_000_000, timeout_s=10.0)

Ask = Callable[..., bytes]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    compiled = tmp_path_factory.mktemp("wasm") / "m.cwasm"
    arguments = [str(SERVICE / "word_count.wasm"), str(compiled), str(4 << 30), "60"]
    subprocess.run([sys.executable, "-I", wasm_compiler.__file__, *arguments], check=True)
    program = Program(compiled.read_bytes())

    def ask(text: bytes, path: str = "/wordcount", method: str = "POST", content_type: str = "text/plain") -> bytes:
        variables = [("A", "b"), ("REQUEST_METHOD", method), ("CONTENT_TYPE", content_type), ("PATH_INFO", path)]
        return program.run(Request(variables, ["m.wasm"], text, lambda _: None), LIMITS)

    return ask


def counted(output: bytes) -> int:
    head, _, number = output.partition(b"\n\n")
    assert head == b"Content-Type: text/plain"
    return int(number)


def test_the_module_is_made_of_the_source_beside_it() -> None:
    text = (SERVICE / "word_count.wat").read_text()
    assert bytes(wasmtime.wat2wasm(text)) == (SERVICE / "word_count.wasm").read_bytes(), (
        "run make services/word_count_wasm/word_count.wasm"
    )


@given(st.one_of(st.text().map(str.encode), st.binary()))
def test_it_counts_what_python_counts(ask: Ask, text: bytes) -> None:
    assert counted(ask(text)) == len(text.decode("utf-8", "replace").split())


def test_every_kind_of_space_separates(ask: Ask) -> None:
    points = [p for p in (*range(0x3010), 0xFEFF, 0x10FFFF) if not 0xD800 <= p < 0xE000]
    text = "".join(f"x{chr(point)}x " for point in points)
    assert counted(ask(text.encode())) == len(text.split())


def test_words_across_pieces_are_one(ask: Ask) -> None:
    text = b"a" * 65535 + "é ".encode() + b"b " * 100_000
    assert counted(ask(text)) == 100_001


def test_other_requests_are_told_what_to_do(ask: Ask) -> None:
    assert b"POST a text file" in ask(b"", "/", "GET")
    assert ask(b"", "/else").startswith(b"Status: 404")
    assert ask(b"", "/wordcounts").startswith(b"Status: 404")
    assert ask(b"", method="GET").startswith(b"Status: 405")
    assert ask(b"", content_type="multipart/form-data; boundary=x").startswith(b"Status: 415")
