"""Starts that failed, kept for a while so that whoever looks later learns why. Pure: times are handed in.

Their agents have forgotten them: nothing runs and no memory is held. A start that was refused (a bad parameter, no
memory, no archive) never was an instance, and is not kept.
"""

from __future__ import annotations

from collections import OrderedDict

from protocol.instances import InstanceView, ServiceRef, State
from protocol.problems import BuildFailed, DeadlineExceeded, Problem, StartFailed
from region_controller.leases import Held

KEPT_S = 600.0
MAX_KEPT = 256
MAX_LOG_LINES = 50
_FAILED = (BuildFailed, StartFailed, DeadlineExceeded)


class Failures:
    """`now` in s, of one clock."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[InstanceView, float]] = OrderedDict()

    def keep(self, held: Held, region: str, problem: Problem, now: float) -> None:
        """Remember why the start of `held` failed, unless it was refused. The oldest makes room."""
        if not isinstance(problem, _FAILED):
            return
        lines = problem.extra.get("log")
        self._kept[held.instance] = (
            InstanceView(
                instance=held.instance,
                service=ServiceRef(held.digest, held.service_id, held.service_name),
                state=State.FAILED,
                region=region,
                agent=held.agent,
                host=held.host,
                reason=str(problem.extra.get("reason", problem.slug)),
                log=tuple(str(line) for line in lines[-MAX_LOG_LINES:]) if isinstance(lines, list | tuple) else (),
            ),
            now,
        )
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def views(self, now: float) -> list[InstanceView]:
        while self._kept and now - next(iter(self._kept.values()))[1] > KEPT_S:
            self._kept.popitem(last=False)
        return [view for view, _ in self._kept.values()]

    def find(self, instance: str, now: float) -> InstanceView | None:
        return next((view for view in self.views(now) if view.instance == instance), None)

    def dismiss(self, instance: str) -> None:
        self._kept.pop(instance, None)
