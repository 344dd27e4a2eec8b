"""What a controller knows at a name, brought up to date, is what it would know if it began anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dht.records.own_records import provider_record
from protocol.identifiers import node_id
from protocol.records import ServiceRecord, Signed, raw_public_key, sign
from region_controller.known_names import Found, found_anew, searched_text
from tests.dht_mesh import identity, service

EXPIRY = 2_000_000_000
SERVICES = [service(f"s{n}", seq=n, expiry=EXPIRY) for n in range(8)]
PROVIDER = provider_record(
    "sha256:" + "a" * 64,
    node=node_id(raw_public_key(identity(1))),
    addresses=("127.0.0.1:1",),
    seq=1,
    now=0.0,
    withdrawn=False,
)
ALL = [*SERVICES, sign(PROVIDER, identity(1))]
"""One that has no business there, too."""
lists = st.lists(st.lists(st.sampled_from(ALL), unique_by=lambda signed: signed.envelope, max_size=9), max_size=5)


@given(lists)
def test_bringing_it_up_to_date_gives_what_beginning_anew_does(sources: list[list[Signed]]) -> None:
    found = Found()
    for source in sources:
        found = found_anew(source, found)
        records = [signed.record for signed in source if isinstance(signed.record, ServiceRecord)]
        assert list(found.records) == records
        assert list(found.texts) == [searched_text(record) for record in records]
        assert [signed.record for signed in found.source] == records
        assert (found.source is source) == (len(records) == len(source))
