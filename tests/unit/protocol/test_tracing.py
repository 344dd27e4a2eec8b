"""W3C Trace Context: what is taken over from a caller, and what is not."""

from __future__ import annotations

import asyncio

import pytest

from protocol.tracing import Trace, current_header, parsed, step_of, within

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_step_belongs_to_the_callers_trace_and_is_a_step_of_its_own() -> None:
    step = step_of(CALLER)
    assert (step.trace, step.flags) == ("4bf92f3577b34da6a3ce929d0e0e4736", "01")
    assert step.span not in CALLER
    assert parsed(step.header) == step


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        CALLER.upper(),
        CALLER + "-more",
        CALLER.replace("00-4", "ff-4"),
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
    ],
)
def test_what_is_no_traceparent_begins_a_new_trace(header: str) -> None:
    assert parsed(header) is None
    assert step_of(header).trace != step_of(header).trace


async def test_tasks_that_are_made_within_a_step_belong_to_it_for_ever() -> None:
    go = asyncio.Event()

    async def later() -> str:
        await go.wait()
        return current_header()

    step = Trace("a" * 32, "b" * 16)
    with within(step):
        task = asyncio.create_task(later())
    assert current_header() == ""
    go.set()
    assert await task == step.header
