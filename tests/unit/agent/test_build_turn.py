"""Agents of one machine take turns at one image of one engine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import AsyncExitStack

from agent.docker.build_turn import build_turn
from tests.waiting import until

HOLD = """
import asyncio, sys
from agent.docker.build_turn import build_turn

async def main():
    async with build_turn(sys.argv[1], "tag", lambda: None):
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_second_waits_for_the_first_and_is_told_so_once() -> None:
    engine, waits, order = os.urandom(8).hex(), [], []

    async def second() -> None:
        async with build_turn(engine, "tag", lambda: waits.append("waits")):
            order.append("second")

    async with asyncio.TaskGroup() as group, build_turn(engine, "tag", lambda: waits.append("first waits")):
        group.create_task(second())
        await until(lambda: waits)
        order.append("first")
    assert (order, waits) == (["first", "second"], ["waits"])


async def test_other_images_and_other_engines_are_no_concern() -> None:
    engine, waits = os.urandom(8).hex(), []
    async with AsyncExitStack() as stack:
        for which, tag in ((engine, "tag"), (engine, "tag-2"), (engine + "2", "tag")):
            await stack.enter_async_context(build_turn(which, tag, lambda: waits.append("waits")))
    assert waits == []


async def test_who_dies_at_work_gives_its_turn_back() -> None:
    engine = os.urandom(8).hex()
    with subprocess.Popen([sys.executable, "-c", HOLD, engine], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
        waits: list[str] = []

        def dies() -> None:
            waits.append("waits")
            holder.kill()

        async with asyncio.timeout(10), build_turn(engine, "tag", dies):
            assert waits == ["waits"]
