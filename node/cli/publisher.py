"""The developer's side of a service record: the publisher key of this machine and what it signs."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from protocol.identifiers import DIGEST_PREFIX
from protocol.instances import ServiceView
from protocol.problems import BadRequest, ConfigError, Forbidden
from protocol.records import ServiceRecord, Signed, last_moment, raw_public_key, service_record, sign
from protocol.service import ServiceDescriptor

KEY_FILE = "publisher.key"
VALIDITY_S = 365 * 86_400


def publisher_key(data_dir: Path) -> Ed25519PrivateKey:
    """The key that signs what is published from here: PEM, PKCS 8, mode 0600; made at the first call.

    `<data-dir>/publisher.key` on a developer's machine, which need not belong to a mesh; else the one that joining a
    mesh made in `<data-dir>/identity/`. Raises ConfigError if it cannot be used.
    """
    own, joined = data_dir / KEY_FILE, data_dir / "identity" / KEY_FILE
    path = joined if joined.exists() and not own.exists() else own
    try:
        if not path.exists():
            _make_key(path)
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"others can read {path}", fix=f"Run: chmod 600 {path}")
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", fix="Choose a --data-dir that you may write.") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a private key: {error}", fix="Restore it, or move it away.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key", fix="Move it away; a new one is made.")
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


def digest_and_size(path: Path) -> tuple[str, int]:
    """Of a file, the size in bytes. Raises BadRequest if it cannot be read."""
    try:
        with path.open("rb") as file:
            return DIGEST_PREFIX + hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from None


def signed_archive(path: Path, descriptor: ServiceDescriptor, key: Ed25519PrivateKey) -> Signed:
    """The record that announces the archive at `path`, valid from now for a year."""
    digest, size = digest_and_size(path)
    now = time.time()
    return sign(
        service_record(
            descriptor,
            digest=digest,
            size=size,
            publisher=raw_public_key(key),
            seq=int(now * 1000),
            expiry=int(now) + VALIDITY_S,
        ),
        key,
    )


def signed_tombstone(service: ServiceView, key: Ed25519PrivateKey) -> Signed:
    """The record that withdraws `service`. Raises Forbidden if another key published it."""
    publisher = raw_public_key(key)
    if service.publisher != publisher.hex():
        raise Forbidden(
            f"{service.id} was published by {service.publisher[:16]}, this machine's key is {publisher.hex()[:16]}",
            fix="Withdraw it from the machine that published it, or name its --data-dir.",
        )
    seq = int(time.time() * 1000)
    return sign(
        ServiceRecord(
            digest=service.digest,
            id=service.id,
            name=service.name,
            description=service.description,
            category=service.category,
            inputs=service.inputs,
            outputs=service.outputs,
            size=service.size,
            mem=service.mem,
            publisher=publisher,
            version=service.version,
            seq=seq,
            expiry=last_moment("service", seq),
            withdrawn=True,
        ),
        key,
    )
