"""What a certificate says of its holder, and what makes one unacceptable."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from bootstrap.certificates import (
    BACKDATE_S,
    LEAF_VALIDITY_S,
    ROOT_VALIDITY_S,
    check_issued,
    check_roles,
    fingerprint,
    founder_of,
    identity_of,
    issue,
    make_root,
    mesh_of,
    parse_certificate,
    peer_identity,
    pem,
    raw,
)
from protocol.identifiers import check_mesh_name, node_id
from protocol.peers import PeerIdentity
from protocol.problems import BadRequest

NOW = 1_800_000_000.0
ROOT_KEY = Ed25519PrivateKey.generate()
ROOT = make_root(ROOT_KEY, mesh="corner", founder="ab" * 20, now=NOW)
KEY = Ed25519PrivateKey.generate()


def leaf(key: Ed25519PrivateKey = KEY, now: float = NOW) -> x509.Certificate:
    return issue(key.public_key(), root=ROOT, root_key=ROOT_KEY, region="eu/de", roles=["store", "controller"], now=now)


def test_a_leaf_says_who_its_holder_is() -> None:
    expected = PeerIdentity(node_id(raw(KEY.public_key())), "corner", "eu/de", ("controller", "store"))
    assert check_issued(parse_certificate(pem(leaf())), ROOT) == expected


def test_validity_is_backdated_for_skewed_clocks() -> None:
    certificate = leaf()
    assert certificate.not_valid_before_utc == datetime.fromtimestamp(NOW - BACKDATE_S, UTC)
    assert certificate.not_valid_after_utc == datetime.fromtimestamp(NOW + LEAF_VALIDITY_S, UTC)


def test_a_leaf_never_outlives_the_root() -> None:
    late = leaf(now=NOW + ROOT_VALIDITY_S - 60)
    assert late.not_valid_after_utc == ROOT.not_valid_after_utc


def test_the_root_names_its_mesh_and_founder() -> None:
    assert (mesh_of(ROOT), founder_of(ROOT)) == ("corner", "ab" * 20)
    assert fingerprint(ROOT) == ROOT.fingerprint(SHA256())


def test_a_root_is_no_member() -> None:
    with pytest.raises(BadRequest):
        identity_of(ROOT)


def test_a_leaf_of_another_root_with_the_same_name_is_refused() -> None:
    other = make_root(Ed25519PrivateKey.generate(), mesh="corner", founder="ab" * 20, now=NOW)
    with pytest.raises(BadRequest, match="not issued by this mesh"):
        check_issued(leaf(), other)


def test_a_leaf_that_names_another_node_is_refused() -> None:
    stranger = Ed25519PrivateKey.generate()
    names = leaf().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
        .issuer_name(ROOT.subject)
        .public_key(stranger.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + 60, UTC))
        .add_extension(names, critical=False)
        .sign(ROOT_KEY, None)
    )
    with pytest.raises(BadRequest, match="another node"):
        check_issued(forged, ROOT)


def test_other_kinds_of_keys_are_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + 60, UTC))
        .sign(key, SHA256())
    )
    with pytest.raises(BadRequest, match="Ed25519"):
        parse_certificate(pem(certificate))


@pytest.mark.parametrize("data", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff" * 99])
def test_rubbish_is_no_certificate(data: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_certificate(data)


@pytest.mark.parametrize("name", ["", "Corner", "a b", "x" * 33, "-x", "a/b", "a\n"])
def test_mesh_names(name: str) -> None:
    with pytest.raises(BadRequest):
        check_mesh_name(name)


def test_roles_are_known_ordered_and_unique() -> None:
    assert check_roles(["store", "agent", "store"]) == ("agent", "store")
    for roles in ([], ["root"]):
        with pytest.raises(BadRequest):
            check_roles(roles)


def test_a_plain_connection_has_no_member_at_its_end() -> None:
    assert peer_identity(None) is None
