"""Which nodes this one does not want to fetch from, for a while. Pure: the time is handed in."""

from __future__ import annotations

from collections.abc import Iterable

from protocol.records import ProviderRecord

LIAR_S = 600.0
LAGGARD_S = 15.0
MAX_REMEMBERED = 1024


class Reputation:
    """Liars are not asked at all, laggards (dead, silent, slow) only when nobody else is left."""

    def __init__(self) -> None:
        self._liars: dict[str, float] = {}
        self._laggards: dict[str, float] = {}

    def lied(self, node: str, now: float) -> None:
        _remember(self._liars, node, now + LIAR_S)

    def lagged(self, node: str, now: float) -> None:
        _remember(self._laggards, node, now + LAGGARD_S)

    def is_liar(self, node: str, now: float) -> bool:
        return self._liars.get(node, now) > now

    def usable(self, providers: Iterable[ProviderRecord], now: float) -> list[ProviderRecord]:
        honest = [p for p in providers if not self.is_liar(p.node, now)]
        return [p for p in honest if self._laggards.get(p.node, now) <= now] or honest


def _remember(nodes: dict[str, float], node: str, until: float) -> None:
    nodes.pop(node, None)
    nodes[node] = until
    if len(nodes) > MAX_REMEMBERED:
        del nodes[next(iter(nodes))]
