"""What a restarted controller takes up instead of beginning anew."""

from __future__ import annotations

from protocol.instances import StartRequest
from region_controller.bringing_up import begun_for
from region_controller.leases import Held
from region_controller.offers import Offer
from region_controller.resolution import Resolved
from region_controller.wanted import Route, Wanted
from tests.one_region import a_service


def wanted(*, key: str | None = None, fresh: bool = False, origin: str = "", flavour: str = "") -> Wanted:
    return Wanted(
        request=StartRequest(service="svc", request_key=key, force_rebuild=fresh),
        alive_time=None,
        resolved=Resolved(a_service(), "the only one"),
        offer=Offer(None, 100),
        flavour=flavour,
        route=Route(deadline=1.0, origin=origin),
        began=0.0,
        resolve_ms=0.0,
    )


def begun(for_whom: Wanted) -> Held:
    return Held(
        instance="1",
        digest=for_whom.record.digest,
        service_id="svc",
        service_name="service",
        mem=100,
        host="",
        flavour=for_whom.flavour,
        key=for_whom.key,
    )


def test_a_plain_request_takes_what_anybody_had_begun() -> None:
    assert begun_for(begun(wanted(key="of another")), wanted(key="of this one"))
    assert begun_for(begun(wanted()), wanted())
    assert not begun_for(begun(wanted(flavour="blue")), wanted())


def test_a_fresh_instance_is_for_the_request_that_asked_for_it() -> None:
    fresh = wanted(key="of this one", fresh=True)
    assert begun_for(begun(fresh), fresh)
    assert not begun_for(begun(wanted(key="of another", fresh=True)), fresh)
    assert not begun_for(begun(wanted(key="of this one", fresh=True, origin="ab" * 20)), fresh), "keys are each asker's"
    assert not begun_for(begun(wanted(fresh=True)), wanted(fresh=True)), "without a key nobody can tell"
