"""From `init` over `invite` to `join`, and what a member may then do: real TLS on loopback."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bootstrap import (
    ENROL_PATHS,
    Contacts,
    Enroller,
    Identity,
    client_context,
    create_invite,
    create_mesh,
    enrol_routes,
    join,
    peer_identity,
    server_context,
)
from bootstrap.certificates import fingerprint, issue
from bootstrap.enrolment import ENROL_PATH, EnrolAnswer, EnrolRequest, prove
from bootstrap.identity import save_identity
from bootstrap.tls import joining_context, unverified_context
from bootstrap.tokens import decode_token, encode_token
from dht.peer_http import PEER, PeerHttp
from protocol.peers import PeerIdentity
from protocol.problems import JoinRefused, Problem, TooManyRequests, Unavailable
from protocol.records import raw_public_key

CONTACTS = Contacts(bootstrap=("127.0.0.1:7401",), peers=("127.0.0.1:7401", "[::1]:7401"))
LIMIT_S = 5.0
MEMBERS_ONLY = web.AppKey("members_only", bool)


async def no_holder(region: str) -> str | None:
    return None


@web.middleware
async def problems_and_members(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    member = peer_identity(request.transport.get_extra_info("ssl_object") if request.transport else None)
    if member is None and request.app[MEMBERS_ONLY] and request.path not in ENROL_PATHS:
        return web.json_response({"type": "key-needed"}, status=401)
    if member is not None:
        request[PEER] = member
    try:
        return await handler(request)
    except Problem as problem:
        body = msgspec.json.encode(problem.to_dict())
        return web.Response(status=problem.status, body=body, content_type="application/problem+json")


async def who_am_i(request: web.Request) -> web.Response:
    return web.Response(body=msgspec.json.encode(request[PEER]))


async def something_else(request: web.Request) -> web.Response:
    return web.Response(text="[]")


@asynccontextmanager
async def listening(app: web.Application, tls: ssl.SSLContext | None) -> AsyncIterator[str]:
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def node_of(
    identity: Identity,
    *,
    holder: Callable[[str], Awaitable[str | None]] = no_holder,
    now: Callable[[], float] = time.time,
    members_only: bool = True,
) -> AsyncIterator[str]:
    """A node-to-node listener; yields its address. Not `members_only`: strangers reach every handler."""
    app = web.Application(middlewares=[problems_and_members])
    app[MEMBERS_ONLY] = members_only
    data_dir = identity.directory.parent
    enroller = Enroller(identity, data_dir=data_dir, contacts=lambda: CONTACTS, region_holder=holder, now=now)
    app.add_routes([*enrol_routes(enroller), web.get("/whoami", who_am_i)])
    async with listening(app, server_context(identity)) as address:
        yield address


@asynccontextmanager
async def silence() -> AsyncIterator[str]:
    """An address where connections open and nobody speaks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def peer(tls: ssl.SSLContext) -> AsyncIterator[PeerHttp]:
    async with aiohttp.ClientSession() as session:
        yield PeerHttp(session, tls)


async def ask(tls: ssl.SSLContext, address: str) -> PeerIdentity:
    async with peer(tls) as http, http.request("GET", address, "/whoami", timeout_s=5) as response:
        return msgspec.json.decode(await response.read(), type=PeerIdentity)


@pytest.fixture
def founder(tmp_path: Path) -> Identity:
    return create_mesh(tmp_path / "founder", mesh="corner", region="eu", roles=["controller", "store"], now=time.time())


def invite(
    identity: Identity,
    *addresses: str,
    uses: int = 1,
    ttl_s: float = 60,
    roles: tuple[str, ...] = ("agent", "store"),
    now: float | None = None,
) -> str:
    return create_invite(
        identity.directory.parent,
        region="eu/de",
        roles=roles,
        ttl_s=ttl_s,
        uses=uses,
        addresses=addresses,
        now=time.time() if now is None else now,
    ).token


async def refusal(token: str, data_dir: Path, **options: object) -> JoinRefused:
    """The refusal, which must come in time, name a fix and leave no identity."""
    before = {p.name for p in data_dir.iterdir()} if data_dir.exists() else set()
    began = time.monotonic()
    with pytest.raises(JoinRefused) as refused:
        await join(token, data_dir=data_dir, **options)  # type: ignore[arg-type]
    assert time.monotonic() - began < LIMIT_S
    assert refused.value.fix
    after = {p.name for p in data_dir.iterdir()} if data_dir.exists() else set()
    assert ("identity" in after) == ("identity" in before)
    return refused.value


async def test_join_makes_a_member(founder: Identity, tmp_path: Path) -> None:
    async with node_of(founder) as address:
        result = await join(invite(founder, address), data_dir=tmp_path / "new", name="site-2")
        joined = Identity.load(tmp_path / "new")
        assert (result.mesh, result.region, result.roles) == ("corner", "eu/de", ("agent", "store"))
        assert (result.bootstrap, result.peers) == (CONTACTS.bootstrap, CONTACTS.peers)
        assert joined.keyring == founder.keyring
        assert joined.root_key is None
        assert joined.operator_token != founder.operator_token
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["identity"]

        assert await ask(client_context(joined), address) == joined.member
        async with node_of(joined) as other:
            assert await ask(client_context(founder), other) == founder.member
            with pytest.raises(JoinRefused) as refused:
                await join(invite(founder, other), data_dir=tmp_path / "third")
            assert founder.node in refused.value.detail


async def test_the_enrolling_node_is_found_among_several_addresses(founder: Identity, tmp_path: Path) -> None:
    async with node_of(founder) as address:
        first = await join(invite(founder, address), data_dir=tmp_path / "first")
        async with node_of(Identity.load(tmp_path / "first")) as member, silence() as silent:
            token = invite(founder, f"127.0.0.1:{unused_port()}", silent, member, address)
            second = await join(token, data_dir=tmp_path / "second")
    assert first.node != second.node


async def test_a_member_sees_who_serves(founder: Identity) -> None:
    async with node_of(founder) as address:
        host, port = address.split(":")
        _reader, writer = await asyncio.open_connection(host, int(port), ssl=client_context(founder))
        assert peer_identity(writer.get_extra_info("ssl_object")) == founder.member
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.close()
        await writer.wait_closed()
        _reader, writer = await asyncio.open_connection(host, int(port), ssl=unverified_context())
        assert peer_identity(writer.get_extra_info("ssl_object")) is None
        writer.close()
        await writer.wait_closed()


async def test_without_a_certificate_only_the_enrolment_is_reachable(founder: Identity) -> None:
    async with node_of(founder) as address, peer(joining_context(founder.root)) as http:
        async with http.request("GET", address, "/bootstrap/root", timeout_s=5) as response:
            assert (await response.json())["mesh"] == "corner"
        with pytest.raises(Unavailable, match="401"):
            async with http.request("GET", address, "/whoami", timeout_s=5):
                pass


async def test_a_foreign_mesh_is_shut_out_both_ways(founder: Identity, tmp_path: Path) -> None:
    foreign = create_mesh(tmp_path / "foreign", mesh="corner", region="eu", roles=["store"], now=time.time())
    async with node_of(founder) as address:
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            await ask(client_context(foreign), address)
        # One that trusts our root, to come as far as showing its own certificate.
        spoof = joining_context(founder.root)
        spoof.load_cert_chain(foreign.certificate_path, foreign.key_path)
        with pytest.raises(Unavailable):
            await ask(spoof, address)


async def test_an_expired_certificate_is_shut_out(founder: Identity, tmp_path: Path) -> None:
    assert founder.root_key is not None
    key = Ed25519PrivateKey.generate()
    long_ago = time.time() - 100 * 86_400
    certificate = issue(
        key.public_key(), root=founder.root, root_key=founder.root_key, region="eu", roles=["agent"], now=long_ago
    )
    old = save_identity(tmp_path / "old", key=key, certificate=certificate, root=founder.root, keyring=founder.keyring)
    async with node_of(founder) as address:
        with pytest.raises(Unavailable):
            await ask(client_context(old), address)


async def test_tls_1_2_is_refused(founder: Identity) -> None:
    old = unverified_context()
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with node_of(founder) as address:
        with pytest.raises(Unavailable):
            await ask(old, address)


async def test_an_expired_invitation(founder: Identity, tmp_path: Path) -> None:
    async with node_of(founder) as address:
        token = invite(founder, address, now=time.time() - 120)
        refused = await refusal(token, tmp_path / "new")
    assert refused.extra["code"] == "expired"


async def test_a_spent_invitation(founder: Identity, tmp_path: Path) -> None:
    async with node_of(founder) as address:
        token = invite(founder, address)
        await join(token, data_dir=tmp_path / "first")
        refused = await refusal(token, tmp_path / "second")
        assert refused.extra["code"] == "spent"
        assert not (tmp_path / "second" / "identity.unfinished").exists()


@pytest.mark.parametrize("skew_s", [-3600, 3600])
async def test_a_wrong_clock(founder: Identity, tmp_path: Path, skew_s: float) -> None:
    async with node_of(founder) as address:
        refused = await refusal(invite(founder, address), tmp_path / "new", now=lambda: time.time() + skew_s)
    assert refused.extra["code"] == "clock"
    assert "ahead of" in refused.detail if skew_s > 0 else "behind" in refused.detail


async def test_the_mesh_checks_clocks_too(founder: Identity) -> None:
    async with node_of(founder) as address:
        with pytest.raises(JoinRefused) as refused:
            await enrol_by_hand(founder, address, invite(founder, address), now=time.time() - 3600)
    assert refused.value.extra["code"] == "clock"


async def test_unreachable(founder: Identity, tmp_path: Path) -> None:
    async with silence() as silent:
        for address in (f"127.0.0.1:{unused_port()}", silent):
            refused = await refusal(invite(founder, address), tmp_path / "new")
            assert refused.extra["code"] == "unreachable"
            assert address in refused.detail
        dead = f"127.0.0.1:{unused_port()}"
        refused = await refusal(invite(founder, dead, silent), tmp_path / "new")
        assert dead in refused.detail
        assert silent in refused.detail


async def test_another_program_at_the_address(founder: Identity, tmp_path: Path) -> None:
    async with listening(web.Application(), None) as address:
        refused = await refusal(invite(founder, address), tmp_path / "new")
        assert refused.extra["code"] == "unreachable"
    app = web.Application()
    app.router.add_get("/bootstrap/root", something_else)
    async with listening(app, server_context(founder)) as address:
        refused = await refusal(invite(founder, address), tmp_path / "new")
        assert refused.extra["code"] == "unreachable"


async def test_silence_while_enrolling_keeps_the_key_for_another_try(founder: Identity, tmp_path: Path) -> None:
    """The first answer is lost; the second try, with the same token, gets the same certificate."""
    answers: list[EnrolAnswer] = []
    enroller = Enroller(founder, data_dir=founder.directory.parent, contacts=lambda: CONTACTS, region_holder=no_holder)

    async def lose_the_first(request: web.Request) -> web.Response:
        message = msgspec.json.decode(await request.read(), type=EnrolRequest)
        answers.append(await enroller.enrol(message, remote=""))
        if len(answers) == 1 and request.transport is not None:
            request.transport.abort()
        return web.Response(body=msgspec.json.encode(answers[-1]))

    app = web.Application()
    app.add_routes([enrol_routes(enroller)[0], web.post(ENROL_PATH, lose_the_first)])
    async with listening(app, server_context(founder)) as address:
        token = invite(founder, address)
        refused = await refusal(token, tmp_path / "new")
        assert refused.extra["code"] == "unreachable"
        await join(token, data_dir=tmp_path / "new")
    assert len(answers) == 2
    assert answers[0].certificate == answers[1].certificate


async def test_the_token_of_another_mesh(founder: Identity, tmp_path: Path) -> None:
    foreign = create_mesh(tmp_path / "foreign", mesh="other", region="eu", roles=["store"], now=time.time())
    async with node_of(foreign) as address:
        refused = await refusal(invite(founder, address), tmp_path / "new")
    assert refused.extra["code"] == "mesh"


async def test_a_tampered_fingerprint_never_sees_the_secret(founder: Identity, tmp_path: Path) -> None:
    async with node_of(founder) as address:
        token = decode_token(invite(founder, address))
        tampered = msgspec.structs.replace(token, fingerprint=bytes(32))
        refused = await refusal(encode_token(tampered), tmp_path / "new")
        assert refused.extra["code"] == "mesh"
        assert not (tmp_path / "new").exists()
        await join(encode_token(token), data_dir=tmp_path / "new")


async def test_a_thief_of_the_root_certificate_never_sees_the_secret(founder: Identity, tmp_path: Path) -> None:
    """It shows the right root to a stranger, but has no certificate of the mesh to speak with."""
    foreign = create_mesh(tmp_path / "foreign", mesh="corner", region="eu", roles=["store"], now=time.time())
    asked: list[str] = []
    enroller = Enroller(founder, data_dir=founder.directory.parent, contacts=lambda: CONTACTS, region_holder=no_holder)

    async def note(request: web.Request) -> web.Response:
        asked.append(await request.text())
        return web.Response()

    app = web.Application()
    app.add_routes([enrol_routes(enroller)[0], web.post(ENROL_PATH, note)])
    async with listening(app, server_context(foreign)) as address:
        refused = await refusal(invite(founder, address), tmp_path / "new")
    assert refused.extra["code"] == "unreachable"
    assert asked == []


async def test_region_taken(founder: Identity, tmp_path: Path) -> None:
    async def held(region: str) -> str | None:
        return "ab" * 20 if region == "eu/de" else None

    async with node_of(founder, holder=held) as address:
        token = invite(founder, address, roles=("controller", "agent"))
        refused = await refusal(token, tmp_path / "new")
        assert refused.extra["code"] == "region"
        result = await join(token, data_dir=tmp_path / "new", roles=["agent"])
        assert result.roles == ("agent",)


async def test_region_unknown_because_the_mesh_is_slow(founder: Identity, tmp_path: Path) -> None:
    answering = asyncio.Event()

    async def slow(region: str) -> str | None:
        await answering.wait()
        return None

    async with node_of(founder, holder=slow) as address:
        token = invite(founder, address, roles=("controller",))
        refused = await refusal(token, tmp_path / "new")
        assert refused.extra["code"] == "region"
        assert "Try again" in refused.fix
        answering.set()
        assert (await join(token, data_dir=tmp_path / "new")).roles == ("controller",)


async def test_old_state(founder: Identity) -> None:
    refused = await refusal(invite(founder, "127.0.0.1:1"), founder.directory.parent)
    assert refused.extra["code"] == "state"
    assert Identity.load(founder.directory.parent).node == founder.node


async def test_a_role_that_was_not_offered(founder: Identity, tmp_path: Path) -> None:
    async with node_of(founder) as address:
        token = invite(founder, address)
        for role in ("controller", "king"):
            refused = await refusal(token, tmp_path / "new", roles=[role])
            assert refused.extra["code"] == "role"
        await join(token, data_dir=tmp_path / "new", roles=["store"])


async def test_a_mangled_token(founder: Identity, tmp_path: Path) -> None:
    refused = await refusal(invite(founder, "127.0.0.1:1")[:-1], tmp_path / "new")
    assert refused.extra["code"] == "token"


async def test_guessing_secrets_is_slowed_down(founder: Identity, tmp_path: Path) -> None:
    async with node_of(founder) as address:
        good = invite(founder, address)
        bad = encode_token(msgspec.structs.replace(decode_token(good), secret=bytes(20)))
        for _ in range(10):
            assert (await refusal(bad, tmp_path / "new")).extra["code"] == "token"
        with pytest.raises(TooManyRequests) as refused:
            await join(bad, data_dir=tmp_path / "new")
        assert refused.value.retry_after


async def test_a_proof_by_another_key_is_refused(founder: Identity) -> None:
    async with node_of(founder) as address:
        with pytest.raises(Problem, match="possession"):
            await enrol_by_hand(founder, address, invite(founder, address), prover=Ed25519PrivateKey.generate())


@pytest.mark.parametrize("body", [b"", b"[]", b'{"invite": 1}', b"x" * 40_000])
async def test_rubbish_is_a_bad_request(founder: Identity, body: bytes) -> None:
    async with node_of(founder) as address, peer(joining_context(founder.root)) as http:
        with pytest.raises(Problem) as refused:
            async with http.request("POST", address, ENROL_PATH, timeout_s=5, data=body):
                pass
    assert refused.value.status in (400, 413)


async def enrol_by_hand(
    founder: Identity,
    address: str,
    token_text: str,
    *,
    now: float | None = None,
    prover: Ed25519PrivateKey | None = None,
) -> None:
    token = decode_token(token_text)
    key = Ed25519PrivateKey.generate()
    assert token.fingerprint == fingerprint(founder.root)
    request = EnrolRequest(
        invite=token.invite,
        secret=token.secret,
        public_key=raw_public_key(key),
        proof=prove(prover or key, root=founder.root, invite=token.invite, secret=token.secret),
        roles=None,
        name="by-hand",
        now=time.time() if now is None else now,
    )
    async with peer(joining_context(founder.root)) as http:
        body = msgspec.json.encode(request)
        async with http.request("POST", address, ENROL_PATH, timeout_s=5, data=body):
            pass
