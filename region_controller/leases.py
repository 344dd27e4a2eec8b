"""Who holds which instance. Pure: tokens are hashed before they come to rest, times are handed in.

A lease is a client's hold on an instance. Its token authorises stop, restart, alive and remove for as long as the
instance is known, also after its time has run out; only a lease in time keeps *others* from stopping the instance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from msgspec import Struct

from protocol.problems import Forbidden, KeyNeeded, TooManyRequests, UnknownInstance

MAX_LEASES = 100_000
"""Per instance. Leases out of time make room first."""


class Held(Struct, frozen=True, kw_only=True):
    """An instance that this controller answers for. `agent`: the node that runs it, empty if handed off.

    `flavour` tells customised instances apart, `key` which request it was started for.

    Handed off: `region`, node id (`controller`) and `address` (host:port) of the controller that took it. `origin`:
    node id of the controller that handed it to us, empty for our own phones.
    """

    instance: str
    digest: str
    service_id: str
    service_name: str
    mem: int
    host: str
    agent: str = ""
    flavour: str = ""
    key: str = ""
    region: str = ""
    address: str = ""
    controller: str = ""
    origin: str = ""


class LeaseRow(Struct, frozen=True):
    """`deadline` in Unix s, None: until stopped."""

    instance: str
    token_sha256: str
    deadline: float | None

    def live(self, now: float) -> bool:
        return self.deadline is None or self.deadline > now


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def lease_deadline(alive_time: int, now: float) -> float | None:
    """0 means until stopped."""
    return None if alive_time == 0 else now + alive_time


class AliveBounds(Struct, frozen=True):
    """What a region lets a client ask for, in s. `longest` 0: as long as the protocol allows, and until stopped."""

    shortest: int = 0
    longest: int = 0

    def within(self, alive_time: int) -> int:
        """What a client gets that asks for so much (0: until stopped)."""
        if alive_time == 0:
            return self.longest
        return max(self.shortest, min(alive_time, self.longest or alive_time))


def later(a: float | None, b: float | None) -> float | None:
    """The later of two deadlines, None being never."""
    return None if a is None or b is None else max(a, b)


class Leases:
    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._leases: dict[str, dict[str, LeaseRow]] = {}

    def hold(self, held: Held) -> None:
        self._held[held.instance] = held
        self._leases.setdefault(held.instance, {})

    def grant(self, instance: str, token: str, deadline: float | None, now: float) -> LeaseRow:
        """A new hold. Raises UnknownInstance, or TooManyRequests when MAX_LEASES are in time."""
        if instance not in self._held:
            raise unknown_instance(instance)
        leases = self._leases[instance]
        if len(leases) >= MAX_LEASES:
            leases = self._leases[instance] = {k: lease for k, lease in leases.items() if lease.live(now)}
            if len(leases) >= MAX_LEASES:
                raise TooManyRequests(f"instance {instance} has {MAX_LEASES} leases already", retry_after=10)
        return self.restore(LeaseRow(instance, token_hash(token), deadline))

    def restore(self, lease: LeaseRow) -> LeaseRow:
        self._leases[lease.instance][lease.token_sha256] = lease
        return lease

    def lease(self, instance: str, token: str | None) -> LeaseRow:
        """The lease that `token` proves. Raises UnknownInstance, KeyNeeded (no token), Forbidden (a wrong one)."""
        if instance not in self._held:
            raise unknown_instance(instance)
        if not token:
            raise KeyNeeded(
                "this call needs the lease token of the instance",
                fix="Ask from where it was started, or send the token that the start answered: --token TOKEN, "
                "over REST `Authorization: Bearer TOKEN`.",
            )
        lease = self._leases[instance].get(token_hash(token))
        if lease is None:
            raise Forbidden(
                f"the token holds no lease on instance {instance}", fix="Use the token of this instance's own start."
            )
        return lease

    def extend(self, lease: LeaseRow, deadline: float | None) -> LeaseRow:
        """A lease only ever grows."""
        return self.restore(LeaseRow(lease.instance, lease.token_sha256, later(lease.deadline, deadline)))

    def renew(self, instance: str, token: str, deadline: float | None, now: float) -> LeaseRow:
        """The lease of this token, longer if need be; a new one if the token has none. Raises as `grant`."""
        lease = self._leases.get(instance, {}).get(token_hash(token))
        return self.grant(instance, token, deadline, now) if lease is None else self.extend(lease, deadline)

    def known(self, instance: str, tokens: Iterable[str]) -> str | None:
        """The first of the tokens that has a lease on the instance, in time or not."""
        leases = self._leases.get(instance, {})
        return next((token for token in tokens if token_hash(token) in leases), None)

    def end(self, lease: LeaseRow) -> None:
        self._leases.get(lease.instance, {}).pop(lease.token_sha256, None)

    def others(self, lease: LeaseRow, now: float) -> int:
        """How many further leases in time the instance has."""
        return sum(
            1
            for other in self._leases.get(lease.instance, {}).values()
            if other.token_sha256 != lease.token_sha256 and other.live(now)
        )

    def longest(self, instance: str, now: float) -> float | None:
        """The latest deadline among the leases in time (None: until stopped), `now` if there are none."""
        deadline: float | None = now
        for lease in self._leases.get(instance, {}).values():
            if lease.live(now):
                deadline = later(deadline, lease.deadline)
        return deadline

    def forget(self, instance: str) -> bool:
        """True if it was known."""
        self._leases.pop(instance, None)
        return self._held.pop(instance, None) is not None

    def was_leased(self, instance: str) -> bool:
        """Whether a client holds it, or did until its time ran out."""
        return bool(self._leases.get(instance))

    def held(self, instance: str) -> Held | None:
        return self._held.get(instance)

    def all_held(self) -> list[Held]:
        return list(self._held.values())

    def flavour_of(self, instance: str) -> str | None:
        held = self._held.get(instance)
        return held.flavour if held else None

    def lapsed(self, instance: str, before: float) -> bool:
        """True if every lease of the instance ran out before that time."""
        return not any(lease.live(before) for lease in self._leases.get(instance, {}).values())

    def count(self, now: float) -> int:
        return sum(lease.live(now) for leases in self._leases.values() for lease in leases.values())


def unknown_instance(instance: str) -> UnknownInstance:
    return UnknownInstance(
        f"instance {instance[:64]} is not known here", fix="`cornerstore ps` (GET /v1/instances) lists those that are."
    )
