"""How much is asked of one provider at once: how many requests are under way, and how much is in each. Pure rules.

A provider that waits for the next request sends nothing for a round trip, so it has `depth` requests: it answers one
while the other travels. But what waits in a queue at one provider cannot be had from another, and each request has a
price of its own (a message, a turn of the event loop, two switches of threads). Hence:

* Many providers (more than `few`) have one request each: the others fill the pauses.
* A provider as fast as `fast_rate` has one request if there is another as fast: then the network is not what one waits
  for, and more connections only share this machine's processors. One of several has one request, too, until it has
  shown how fast it is.
* A request is what the provider sends in `batch_s` at the rate that it has shown; `first_batch` bytes before it has.
* It is at most a fair share, half of what is left in as many parts as the providers could have requests, so that all
  come to the end together. (That many providers have one each makes their parts no larger: what one asked for last
  soon has others to offer it.) But it takes at least `least_s`, below which the price of a request would be felt.

Times are in s, rates in bytes/s, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pipelining:
    """The numbers in the rules above."""

    depth: int = 2
    few: int = 4
    fast_rate: float = 24 << 20
    batch_s: float = 0.5
    first_batch: int = 1 << 20
    max_batch: int = 8 << 20
    least_s: float = 0.02
    max_pieces: int = 64
    """As many as one request may name."""

    def is_fast(self, rate: float) -> bool:
        return rate >= self.fast_rate

    def requests_at_once(self, rate: float, rates: Iterable[float]) -> int:
        """Of a provider that has shown `rate` (0: nothing yet) among all that are asked, whose `rates` include it."""
        rates = list(rates)
        is_one_of_many = len(rates) > self.few
        is_one_of_fast = self.is_fast(rate) and sum(map(self.is_fast, rates)) > 1
        is_unknown = not rate and len(rates) > 1
        return 1 if is_one_of_many or is_one_of_fast or is_unknown else self.depth

    def parts(self, rates: Iterable[float]) -> int:
        """Of what is left, for providers that have shown these rates."""
        rates = list(rates)
        fast = sum(map(self.is_fast, rates))
        return self.depth * len(rates) if fast < 2 else fast + self.depth * (len(rates) - fast)

    def batch(self, lengths: Iterable[int], rate: float, *, free: int, parts: int) -> int:
        """How many of the next pieces, which have these `lengths`, to ask for in one request: at least one if there is
        any. `free`: pieces that are asked of nobody yet, to be divided in so many `parts`."""
        fair = max(1, free // (2 * parts))
        least = rate * self.least_s
        most = min(int(rate * self.batch_s) or self.first_batch, self.max_batch)
        count = size = 0
        for length in lengths:
            is_enough = count >= fair and size >= least
            if count and (is_enough or size + length > most or count >= self.max_pieces):
                break
            count += 1
            size += length
        return count
