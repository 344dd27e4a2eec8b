"""How long to wait for an answer: measured, per peer. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

INITIAL_TIMEOUT_S = 0.1
MAX_TIMEOUT_S = 1.0
MAX_PEERS = 4096


@dataclass(slots=True)
class _Estimate:
    smoothed: float
    deviation: float


class RoundTrips:
    """Jacobson's estimate (RFC 6298) per peer, and over all peers for those not heard yet.

    The bounds are 100 ms, below which a busy machine alone would cause repeats, and 1 s.
    """

    def __init__(self) -> None:
        self._peers: OrderedDict[Hashable, _Estimate] = OrderedDict()
        self._all: _Estimate | None = None

    def heard(self, peer: Hashable, since_first: float, since_last: float) -> None:
        """An answer came that many seconds after the first sending of its request, and after the last.

        Which of them it answers is not told. Sooner after the last one than an answer usually takes, it belongs to the
        first; otherwise the first was lost, and the time lost with it says nothing about the next round trip: counted
        in (Karn's problem), each loss would make the wait for the next one longer.
        """
        before = self._peers.get(peer, self._all)
        is_of_last = before is None or since_last >= before.smoothed
        seconds = since_last if is_of_last else since_first
        self._peers[peer] = _updated(self._peers.get(peer), seconds)
        self._peers.move_to_end(peer)
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        self._all = _updated(self._all, seconds)

    def timeout(self, peer: Hashable) -> float:
        """Seconds until the request is repeated; twice as long until it is given up after that."""
        estimate = self._peers.get(peer, self._all)
        if estimate is None:
            return INITIAL_TIMEOUT_S
        return min(max(estimate.smoothed + 4 * estimate.deviation, INITIAL_TIMEOUT_S), MAX_TIMEOUT_S)


def _updated(estimate: _Estimate | None, seconds: float) -> _Estimate:
    if estimate is None:
        return _Estimate(seconds, seconds / 2)
    deviation = 0.75 * estimate.deviation + 0.25 * abs(seconds - estimate.smoothed)
    return _Estimate(0.875 * estimate.smoothed + 0.125 * seconds, deviation)
