"""Programs that are loaded and that no instance runs: the next start of the same code need not load it again."""

from __future__ import annotations

from agent.wasm.engine import Program

MAX_IDLE = 32
MAX_IDLE_BYTES = 128 << 20
"""Of native code. The longest unused go first."""


class Programs:
    """A program belongs to one instance at a time: each is interrupted alone."""

    def __init__(self) -> None:
        self._idle: list[tuple[str, Program]] = []

    def take(self, sha256: str) -> Program | None:
        """One of this code, from now on the caller's."""
        for at, (kept, program) in enumerate(self._idle):
            if kept == sha256:
                del self._idle[at]
                return program
        return None

    def keep(self, sha256: str, program: Program) -> None:
        """Nothing of it runs any more."""
        self._idle.append((sha256, program))
        while len(self._idle) > MAX_IDLE or sum(program.size for _, program in self._idle) > MAX_IDLE_BYTES:
            self._idle.pop(0)[1].close()
