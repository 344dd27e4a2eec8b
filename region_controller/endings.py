"""How instances ended, remembered so that whoever looks later learns why. Pure: times are handed in.

Their agents have forgotten them: nothing runs and no memory is held. What was held by a client is remembered for
`KEPT_S`; a start that failed shows on the list for `LISTED_S`. A start that was refused (a bad parameter, no memory, no
archive) never was an instance, and is not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from msgspec import Struct

from protocol.instances import InstanceView, ServiceRef, State
from protocol.problems import BuildFailed, DeadlineExceeded, InstanceEnded, Problem, StartFailed
from region_controller.leases import Held

LISTED_S = 600.0
KEPT_S = 86_400.0
MAX_KEPT = 1024
MAX_LOG_LINES = 50
_FAILED = (BuildFailed, StartFailed, DeadlineExceeded)


class Ending(Struct, frozen=True):
    """`view`: the instance as it was last, with the reason of its end. `at`: when, in Unix s."""

    view: InstanceView
    at: float

    @property
    def failed_start(self) -> bool:
        """It never ran, and nobody ever held it."""
        return self.view.state is State.FAILED

    def problem(self, now: float) -> InstanceEnded:
        """What a client is told that asks for it."""
        view = self.view
        ago_s = max(0.0, now - self.at)
        ago = f"{ago_s:.0f} s" if ago_s < 120 else f"{ago_s / 60:.0f} min"
        return InstanceEnded(
            f"instance {view.instance} of {view.service.id} ended {ago} ago: {view.reason or view.state}",
            fix="Start the service again.",
            reason=view.reason,
            ended_at=self.at,
        )


class Endings:
    """`now` in Unix s. The oldest makes room."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Ending] = OrderedDict()

    def keep(self, ending: Ending) -> list[str]:
        """The instances of which nothing is remembered any more."""
        self._kept[ending.view.instance] = ending
        self._kept.move_to_end(ending.view.instance)
        forgotten = []
        while len(self._kept) > MAX_KEPT or next(iter(self._kept.values())).at < ending.at - KEPT_S:
            forgotten.append(self._kept.popitem(last=False)[0])
        return forgotten

    def restore(self, endings: Iterable[Ending]) -> None:
        """What was kept before a restart."""
        for ending in sorted(endings, key=lambda one: one.at)[-MAX_KEPT:]:
            self._kept[ending.view.instance] = ending

    def failed_starts(self, now: float) -> list[InstanceView]:
        """Of late, the oldest first."""
        return [e.view for e in self._kept.values() if e.failed_start and e.at >= now - LISTED_S]

    def find(self, instance: str, now: float) -> Ending | None:
        ending = self._kept.get(instance)
        kept_s = LISTED_S if ending is not None and ending.failed_start else KEPT_S
        return ending if ending is not None and ending.at >= now - kept_s else None

    def dismiss(self, instance: str) -> None:
        self._kept.pop(instance, None)


def failed_start(held: Held, region: str, problem: Problem, now: float) -> Ending | None:
    """Why the start of `held` failed; None if it was refused."""
    if not isinstance(problem, _FAILED):
        return None
    lines = problem.extra.get("log")
    view = InstanceView(
        instance=held.instance,
        service=ServiceRef(held.digest, held.service_id, held.service_name),
        state=State.FAILED,
        region=region,
        agent=held.agent,
        host=held.host,
        reason=str(problem.extra.get("reason", problem.slug)),
        log=tuple(str(line) for line in lines[-MAX_LOG_LINES:]) if isinstance(lines, list | tuple) else (),
    )
    return Ending(view, now)
