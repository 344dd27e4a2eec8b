"""Programs that wait, loaded, for their next instance."""

from __future__ import annotations

from typing import cast

from agent.wasm.engine import Program
from agent.wasm.programs import MAX_IDLE, MAX_IDLE_BYTES, Programs


class Fake:
    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.closed = False

    def close(self) -> None:
        self.closed = True


def kept(programs: Programs, name: str, size: int = 1) -> Fake:
    fake = Fake(size)
    programs.keep(name, cast(Program, fake))
    return fake


def test_a_program_belongs_to_one_instance_at_a_time() -> None:
    programs = Programs()
    first = kept(programs, "a")
    assert programs.take("b") is None
    assert programs.take("a") is cast(Program, first)
    assert programs.take("a") is None


def test_the_longest_unused_go_when_they_are_too_many_or_too_large() -> None:
    programs = Programs()
    fakes = [kept(programs, str(n)) for n in range(MAX_IDLE + 2)]
    assert [fake.closed for fake in fakes] == [True, True] + [False] * MAX_IDLE
    large = kept(programs, "large", MAX_IDLE_BYTES)
    assert all(fake.closed for fake in fakes)
    assert not large.closed
    assert kept(programs, "too large", MAX_IDLE_BYTES + 1).closed
