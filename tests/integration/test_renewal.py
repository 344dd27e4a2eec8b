"""A certificate is renewed before it ends, for the same key and under the same bounds: real TLS on loopback."""

from __future__ import annotations

import time
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bootstrap import Identity, client_context, create_mesh, join, renew, renew_own, renewal_due, use_renewed
from bootstrap.certificates import issue
from bootstrap.identity import save_identity
from bootstrap.tls import joining_context
from dht.peer_http import PeerHttp
from dht.records.memory_directory import MemoryDirectory, MemoryMesh
from dht.tasks import running_loops
from node import membership
from node.membership import Membership
from protocol.problems import JoinRefused, KeyNeeded, Unavailable
from protocol.records import raw_public_key
from tests.integration.test_join import ask, invite, node_of, peer
from tests.waiting import until

DAY_S = 86_400


@pytest.fixture
def founder(tmp_path: Path) -> Identity:
    return create_mesh(tmp_path / "founder", mesh="corner", region="eu", roles=["controller"], now=time.time())


def member_since(founder: Identity, data_dir: Path, days: int) -> Identity:
    assert founder.root_key is not None
    key = Ed25519PrivateKey.generate()
    began = time.time() - days * DAY_S
    certificate = issue(
        key.public_key(), root=founder.root, root_key=founder.root_key, region="eu/de", roles=["agent"], now=began
    )
    return save_identity(data_dir, key=key, certificate=certificate, root=founder.root, keyring=founder.keyring)


async def test_a_member_renews_and_goes_on_with_its_contexts(founder: Identity, tmp_path: Path) -> None:
    old = member_since(founder, tmp_path / "old", days=80)
    assert renewal_due(old.certificate, time.time())
    context = client_context(old)
    async with node_of(founder) as address, aiohttp.ClientSession() as session:
        new = await renew(old, PeerHttp(session, context), address)
        assert new.member == old.member
        assert not renewal_due(new.certificate, time.time())
        assert Identity.load(tmp_path / "old").certificate == new.certificate
        assert (new.operator_token, new.keyring) == (old.operator_token, old.keyring)
        use_renewed(context, new)
        assert await ask(context, address) == new.member


async def test_a_certificate_that_ends_ends_what_goes_on_over_an_open_connection(
    founder: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS looks at dates only when a connection begins."""
    member = member_since(founder, tmp_path / "member", days=1)
    async with node_of(founder) as address, peer(client_context(member)) as http:
        async with http.request("GET", address, "/whoami", timeout_s=5) as response:
            await response.read()
        later = time.time() + 90 * DAY_S
        monkeypatch.setattr("bootstrap.certificates.time.time", lambda: later)
        with pytest.raises(Unavailable, match="answered 401"):
            async with http.request("GET", address, "/whoami", timeout_s=5):
                pass


async def test_a_stranger_cannot_renew(founder: Identity, tmp_path: Path) -> None:
    member = member_since(founder, tmp_path / "member", days=1)
    async with node_of(founder, members_only=False) as address, aiohttp.ClientSession() as session:
        with pytest.raises(KeyNeeded):
            await renew(member, PeerHttp(session, joining_context(founder.root)), address)


async def test_another_member_names_the_founder(founder: Identity, tmp_path: Path) -> None:
    member = member_since(founder, tmp_path / "member", days=1)
    async with node_of(member) as address, aiohttp.ClientSession() as session:
        with pytest.raises(JoinRefused, match=founder.node):
            await renew(member, PeerHttp(session, client_context(member)), address)


def test_the_founder_renews_its_own(founder: Identity) -> None:
    later = time.time() + 80 * DAY_S
    assert renewal_due(founder.certificate, later)
    renewed = renew_own(founder, now=later)
    assert renewed.member == founder.member
    assert not renewal_due(renewed.certificate, later)
    assert renewed.root_key is not None


async def test_a_lapsed_member_joins_again_with_its_keys_and_its_running_node_goes_on(
    founder: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lapsed = member_since(founder, tmp_path / "lapsed", days=91)
    monkeypatch.setattr(membership, "LOOK_EVERY_S", 0.02)
    taken_up: list[Identity] = []
    nowhere = MemoryDirectory(MemoryMesh(), lapsed.node_key)
    async with node_of(founder) as address, peer(client_context(lapsed)) as http:
        node = Membership(lapsed, taken_up.append, directory=nowhere, http=http)
        warning = node.warning(time.time())
        assert warning is not None
        assert "bootstrap join" in warning.fix
        async with running_loops({"renew-certificate": node.keep()}):
            await join(invite(founder, address, roles=("agent",)), data_dir=tmp_path / "lapsed")
            await until(lambda: taken_up)
        assert node.warning(time.time()) is None
        assert (taken_up[0].member, taken_up[0].operator_token) == (lapsed.member, lapsed.operator_token)
        assert raw_public_key(taken_up[0].publisher_key) == raw_public_key(lapsed.publisher_key)
        assert await ask(client_context(taken_up[0]), address) == lapsed.member


async def test_a_lapsed_member_of_another_mesh_keeps_its_state(founder: Identity, tmp_path: Path) -> None:
    other = create_mesh(tmp_path / "other", mesh="corner", region="eu", roles=["controller"], now=time.time())
    lapsed = member_since(other, tmp_path / "lapsed", days=91)
    with pytest.raises(JoinRefused, match="holds the identity"):
        await join(invite(founder, "127.0.0.1:1"), data_dir=tmp_path / "lapsed")
    assert Identity.load(tmp_path / "lapsed").member == lapsed.member
