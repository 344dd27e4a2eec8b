"""The thread that runs through one request, wherever it is worked on.

Source: W3C Trace Context, https://www.w3.org/TR/trace-context/. The header is
`traceparent: 00-<32 hex: the request>-<16 hex: the step that asks>-<2 hex: flags>`. What is not exactly that is
ignored, and a new trace begins (section 4.3).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from msgspec import Struct

HEADER = "traceparent"
_FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


class Trace(Struct, frozen=True):
    """`trace`: the request's id, 32 hex digits. `span`: this step's, 16."""

    trace: str
    span: str
    flags: str = "01"

    @property
    def header(self) -> str:
        return f"00-{self.trace}-{self.span}-{self.flags}"


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def parsed(header: str) -> Trace | None:
    """None for what is no traceparent of version 00."""
    found = _FORM.fullmatch(header)
    return Trace(*found.groups()) if found is not None else None


def step_of(header: str) -> Trace:
    """A step of the trace that the header names, or the first one of a new trace."""
    caller = parsed(header)
    trace, flags = (caller.trace, caller.flags) if caller is not None else (secrets.token_hex(16), "01")
    return Trace(trace, secrets.token_hex(8), flags)


@contextmanager
def within(trace: Trace) -> Iterator[None]:
    """What is done in the block, and by tasks that it makes, belongs to this step."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def current_header() -> str:
    """To be sent along with what this step asks of others; empty outside of any."""
    trace = _current.get()
    return trace.header if trace is not None else ""
