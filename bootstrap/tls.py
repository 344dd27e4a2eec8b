"""TLS contexts of node-to-node connections: TLS 1.3 only, trusting the mesh root and nothing else.

Host names are not checked, because a node's name is its id and not its address: callers that must reach one node in
particular compare `bootstrap.peer_identity` of the connection.
"""

from __future__ import annotations

import ssl

from cryptography import x509

from bootstrap.certificates import pem
from bootstrap.identity import Identity
from protocol.problems import ConfigError


def server_context(identity: Identity) -> ssl.SSLContext:
    """For the node-to-node listener. A client certificate is verified if it comes; it is not demanded here, because a
    machine that joins has none: the node's middleware lets such a client reach `ENROL_PATHS` only."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity.root)
    context.verify_mode = ssl.CERT_OPTIONAL
    return _with_own_certificate(context, identity)


def client_context(identity: Identity) -> ssl.SSLContext:
    """For requests to other nodes: verifies that they are members of the mesh, and presents the own certificate."""
    return _with_own_certificate(_context(ssl.PROTOCOL_TLS_CLIENT, identity.root), identity)


def use_renewed(context: ssl.SSLContext, identity: Identity) -> None:
    """Let a context in use show the certificate that `identity` has now; open connections keep the old one."""
    _with_own_certificate(context, identity)


def joining_context(root: x509.Certificate) -> ssl.SSLContext:
    """For a machine that knows the mesh root and has no certificate yet."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, root)


def unverified_context() -> ssl.SSLContext:
    """For one purpose: fetching a root certificate whose fingerprint is known. Nothing secret may be sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _context(protocol: int, root: x509.Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=pem(root).decode())
    return context


def _with_own_certificate(context: ssl.SSLContext, identity: Identity) -> ssl.SSLContext:
    try:
        context.load_cert_chain(identity.certificate_path, identity.key_path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the node's certificate cannot be used: {error}",
            fix="Move the identity directory away and join the mesh again.",
        ) from error
    return context
