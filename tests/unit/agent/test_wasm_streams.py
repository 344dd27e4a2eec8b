"""`fd_write` of a guest whose numbers are hostile, on a memory that is a bytearray."""

from __future__ import annotations

import struct

import pytest

from agent.wasm.wasi import MAX_PIECES, Streams, write

OK, EBADF, EFAULT, EFBIG, EINVAL = 0, 8, 21, 22, 28
WRITTEN = 60


def memory_with(*pieces: tuple[int, int]) -> memoryview:
    """64 bytes: pairs of address and length from 0, letters from 32."""
    memory = bytearray(64)
    for index, piece in enumerate(pieces):
        struct.pack_into("<II", memory, 8 * index, *piece)
    memory[32:36] = b"abcd"
    return memoryview(memory)


def streams(log: list[bytes] | None = None, limit: int = 100) -> Streams:
    return Streams(limit, (log if log is not None else []).append)


def test_pieces_are_written_in_their_order_and_counted() -> None:
    memory, log = memory_with((34, 2), (32, 1)), list[bytes]()
    to = streams(log)
    assert write(to, memory, 1, 0, 2, WRITTEN) == OK
    assert (to.output, memory[WRITTEN:].tolist()) == (b"cda", [3, 0, 0, 0])
    assert write(to, memory, 2, 0, 1, WRITTEN) == OK
    assert (log, to.output) == ([b"cd"], b"cda")


@pytest.mark.parametrize(
    ("pieces", "at", "count", "written"),
    [
        ([(32, 33)], 0, 1, WRITTEN),
        ([(0xFFFFFFFF, 1)], 0, 1, WRITTEN),
        ([(32, 0xFFFFFFFF)], 0, 1, WRITTEN),
        ([(32, 1)], 60, 1, WRITTEN),
        ([(32, 1)], 0xFFFFFFFF, 1, WRITTEN),
        ([(32, 1)], 0, 9, WRITTEN),
        ([(32, 1)], 0, 1, 61),
        ([(32, 1)], 0, 1, -1),
    ],
)
def test_nothing_outside_of_the_memory_is_touched(
    pieces: list[tuple[int, int]], at: int, count: int, written: int
) -> None:
    memory, to = memory_with(*pieces), streams()
    before = bytes(memory)
    assert write(to, memory, 1, at, count, written) == EFAULT
    assert (bytes(memory), to.output) == (before, b"")


def test_other_descriptors_and_endless_lists_are_refused() -> None:
    memory = memory_with((32, 1))
    for descriptor in (0, 3, -1):
        assert write(streams(), memory, descriptor, 0, 1, WRITTEN) == EBADF
    assert write(streams(), memory, 1, 0, MAX_PIECES + 1, WRITTEN) == EINVAL


def test_standard_output_ends_at_its_limit() -> None:
    memory, to = memory_with((32, 4)), streams(limit=7)
    assert write(to, memory, 1, 0, 1, WRITTEN) == OK
    assert not to.overflown
    assert write(to, memory, 1, 0, 1, WRITTEN) == EFBIG
    assert (to.overflown, to.output) == (True, b"abcd")
