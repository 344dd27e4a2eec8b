from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from dht.tasks import OwnedTasks, periodically, running_loops
from protocol.problems import Unavailable


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fail(error: Exception) -> None:
    raise error


async def test_no_task_outlives_its_owner_not_even_one_that_a_task_began() -> None:
    ended: list[str] = []

    async def wait(name: str) -> None:
        try:
            await for_ever()
        finally:
            ended.append(name)
            if name == "first":
                tasks.run(wait("second"))
                await asyncio.sleep(0)

    async with OwnedTasks() as tasks:
        tasks.run(wait("first"))
        await asyncio.sleep(0)
    assert ended == ["first", "second"]
    assert len(tasks) == 0


async def test_only_what_is_no_problem_counts_as_a_crash() -> None:
    async with OwnedTasks() as tasks:
        refused, crashed = tasks.run(fail(Unavailable("away"))), tasks.run(fail(KeyError("x")))
        await asyncio.wait({refused, crashed})
    assert tasks.crashes == 1


async def test_what_the_block_raises_comes_out_unwrapped() -> None:
    with pytest.raises(Unavailable):
        async with running_loops({"for ever": for_ever()}):
            raise Unavailable("away")


async def test_a_loop_that_crashes_ends_the_block() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with running_loops({"short": fail(KeyError("x"))}):
            await for_ever()
    assert raised.group_contains(KeyError)


async def test_trouble_of_a_periodic_step_is_logged_as_it_begins_changes_and_ends() -> None:
    outcomes = iter([Unavailable("full"), Unavailable("full"), Unavailable("broken"), None, None])

    async def step() -> None:
        outcome = next(outcomes, KeyError("the end"))
        if outcome is not None:
            raise outcome

    with capture_logs() as logs, pytest.raises(KeyError):
        await periodically(0.0, step)
    assert [(entry["event"], entry.get("detail")) for entry in logs] == [
        ("step-failed", "full"),
        ("step-failed", "broken"),
        ("step-works-again", None),
    ]
