from __future__ import annotations

import pytest

from dht.tasks import OwnedTasks
from protocol.instances import Lease, Progress, ServiceRef, StartAnswer, StartRequest
from protocol.problems import Conflict
from region_controller.idempotency import REMEMBER_S, Answered, IdempotencyKeys
from tests.agent_stage import Clock

ASKED = StartRequest(service="svc", request_key="one and the same")


class Work:
    """Answers with a number that counts."""

    def __init__(self) -> None:
        self.done = 0

    async def __call__(self, _progress: object, _present: object) -> Answered:
        self.done += 1
        return an_answer(str(self.done)), True


def an_answer(instance: str) -> StartAnswer:
    return StartAnswer(
        instance=instance,
        service=ServiceRef("d", "svc", "service"),
        start="cold",
        region="eu",
        agent="a",
        host="10.0.0.1",
        port=None,
        ports=(),
        url=None,
        lease=Lease("t"),
    )


def ignore(_: Progress) -> None:
    """No progress is wanted."""


async def test_a_key_stands_for_its_answer_until_it_is_forgotten() -> None:
    clock, work = Clock(), Work()
    async with OwnedTasks() as tasks:
        keys = IdempotencyKeys(tasks, clock)
        first = await keys.once("", ASKED, ignore, work)
        clock.now += REMEMBER_S
        assert await keys.once("", ASKED, ignore, work) == first
        with pytest.raises(Conflict):
            await keys.once("", StartRequest(service="other", request_key=ASKED.request_key), ignore, work)
        clock.now += 1
        answer, _ = await keys.once("", ASKED, ignore, work)
        assert (answer.instance, work.done) == ("2", 2)


async def test_senders_do_not_share_keys() -> None:
    work = Work()
    async with OwnedTasks() as tasks:
        keys = IdempotencyKeys(tasks, Clock())
        for who in ("", "peer one", "peer two"):
            await keys.once(who, ASKED, ignore, work)
    assert work.done == 3
