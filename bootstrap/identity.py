"""The identity of a node: the files under `<data-dir>/identity/`, mode 0700, secrets 0600.

    node.key         Ed25519, PKCS 8 PEM; the node id is the hash of its public key
    node.crt         the node's certificate, PEM
    mesh-root.crt    the root that every member trusts, PEM
    keyring          JSON of `dht.overlay.sealing.Keyring`: the keys that seal datagrams
    publisher.key    Ed25519, made on this machine; signs service records
    operator.token   one line; whoever shows it may operate this node
    root.key         only at the founding site: signs certificates

The directory appears whole or not at all: it is filled under another name, synced and renamed.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from bootstrap.certificates import admission_of, check_issued, ed25519_key, parse_certificate, pem, raw
from dht.overlay.sealing import Keyring
from protocol.admission import Admission, Credentials
from protocol.peers import PeerIdentity, Role
from protocol.problems import BadRequest, ConfigError, DiskFull

DIRECTORY = "identity"
UNFINISHED = "identity.unfinished"
"""Where an identity is put together. It may hold the node key of a join whose answer was lost."""

NODE_KEY, NODE_CERTIFICATE, ROOT_CERTIFICATE = "node.key", "node.crt", "mesh-root.crt"
KEYRING, PUBLISHER_KEY, OPERATOR_TOKEN, ROOT_KEY = "keyring", "publisher.key", "operator.token", "root.key"
_PUBLIC = frozenset({NODE_CERTIFICATE, ROOT_CERTIFICATE})


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Loaded and checked: the certificate was issued by the root for the node key. `member` is what it says."""

    directory: Path
    member: PeerIdentity
    certificate: x509.Certificate
    root: x509.Certificate
    admission: Admission
    node_key: Ed25519PrivateKey = field(repr=False)
    keyring: Keyring = field(repr=False)
    publisher_key: Ed25519PrivateKey = field(repr=False)
    operator_token: str = field(repr=False)
    root_key: Ed25519PrivateKey | None = field(repr=False)

    @classmethod
    def load(cls, data_dir: Path) -> Identity:
        """Raises ConfigError if the identity is missing, readable by others, damaged, or not of one piece."""
        directory = data_dir / DIRECTORY
        if not directory.is_dir():
            raise ConfigError(
                f"there is no identity in {data_dir}",
                fix="Run `cornerstore bootstrap init` to found a mesh, or `cornerstore bootstrap join` to join one.",
            )
        _refuse_open_to_others(directory)
        try:
            root = parse_certificate(_read(directory / ROOT_CERTIFICATE))
            certificate = parse_certificate(_read(directory / NODE_CERTIFICATE))
            member = check_issued(certificate, root)
            admission = admission_of(certificate, root)
            keyring = msgspec.json.decode(_read(directory / KEYRING), type=Keyring)
        except (BadRequest, msgspec.MsgspecError) as error:
            raise _damaged(directory, str(error)) from error
        key = _read_key(directory / NODE_KEY)
        if key.public_key() != certificate.public_key():
            raise _damaged(directory, f"{NODE_CERTIFICATE} belongs to another key than {NODE_KEY}")
        root_key_path = directory / ROOT_KEY
        return cls(
            directory=directory,
            member=member,
            certificate=certificate,
            root=root,
            admission=admission,
            node_key=key,
            keyring=keyring,
            publisher_key=_read_key(directory / PUBLISHER_KEY),
            operator_token=_read(directory / OPERATOR_TOKEN).decode("ascii", "replace").strip(),
            root_key=_read_key(root_key_path) if root_key_path.exists() else None,
        )

    @property
    def node(self) -> str:
        return self.member.node

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.node_key, self.admission, raw(ed25519_key(self.root)))

    @property
    def mesh(self) -> str:
        return self.member.mesh

    @property
    def region(self) -> str:
        return self.member.region

    @property
    def roles(self) -> tuple[Role, ...]:
        return self.member.roles

    @property
    def certificate_path(self) -> Path:
        return self.directory / NODE_CERTIFICATE

    @property
    def key_path(self) -> Path:
        return self.directory / NODE_KEY


def has_root_key(data_dir: Path) -> bool:
    """Whether the mesh began here, so that this node can invite and enrol."""
    return (data_dir / DIRECTORY / ROOT_KEY).exists()


def mesh_root(data_dir: Path) -> x509.Certificate | None:
    """The root of the mesh that this machine belongs to; None if it belongs to none. Raises ConfigError if damaged."""
    path = data_dir / DIRECTORY / ROOT_CERTIFICATE
    try:
        return parse_certificate(_read(path)) if path.exists() else None
    except BadRequest as error:
        raise _damaged(path.parent, str(error)) from error


def has_identity(data_dir: Path) -> bool:
    return (data_dir / DIRECTORY).exists()


def save_identity(
    data_dir: Path,
    *,
    key: Ed25519PrivateKey,
    certificate: x509.Certificate,
    root: x509.Certificate,
    keyring: Keyring,
    root_key: Ed25519PrivateKey | None = None,
) -> Identity:
    """Write a new identity, with a publisher key and an operator token made here, and load it again.

    Raises ConfigError if one exists by now.
    """
    files = {
        NODE_KEY: key_pem(key),
        NODE_CERTIFICATE: pem(certificate),
        ROOT_CERTIFICATE: pem(root),
        KEYRING: msgspec.json.encode(keyring),
        PUBLISHER_KEY: key_pem(Ed25519PrivateKey.generate()),
        OPERATOR_TOKEN: secrets.token_urlsafe(32).encode() + b"\n",
    }
    if root_key is not None:
        files[ROOT_KEY] = key_pem(root_key)
    if has_identity(data_dir):
        raise ConfigError(f"{data_dir} holds the identity of a node already", fix=OLD_STATE_FIX)
    unfinished = unfinished_directory(data_dir)
    _write_files(unfinished, files)
    with _disk(data_dir):
        unfinished.rename(data_dir / DIRECTORY)
        _sync_directory(data_dir)
    return Identity.load(data_dir)


OLD_STATE_FIX = "Choose another --data-dir, or move the old one away if that node is no longer wanted."


def renew_identity(identity: Identity, *, certificate: x509.Certificate, keyring: Keyring) -> Identity:
    """Put a new certificate and keyring in place of the old ones, each file atomically, and load the result."""
    _write_files(identity.directory, {KEYRING: msgspec.json.encode(keyring), NODE_CERTIFICATE: pem(certificate)})
    return Identity.load(identity.directory.parent)


def unfinished_directory(data_dir: Path) -> Path:
    """Where an identity grows before it is renamed; made if absent."""
    directory = data_dir / UNFINISHED
    with _disk(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.mkdir(exist_ok=True, mode=0o700)
    return directory


def unfinished_node_key(data_dir: Path) -> Ed25519PrivateKey:
    """The node key of a join under way; made and kept at the first call.

    A join that is tried again, because the answer was lost, must come with the same key: its invitation counts as
    spent by that key.
    """
    path = unfinished_directory(data_dir) / NODE_KEY
    if path.exists():
        return _read_key(path)
    key = Ed25519PrivateKey.generate()
    _write_files(path.parent, {NODE_KEY: key_pem(key)})
    return key


def discard_unfinished(data_dir: Path) -> None:
    shutil.rmtree(data_dir / UNFINISHED, ignore_errors=True)


def key_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    with _disk(directory):
        for name, data in files.items():
            temporary = directory / f".{name}.new"
            _write(temporary, data, 0o644 if name in _PUBLIC else 0o600)
            temporary.rename(directory / name)
        _sync_directory(directory)


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    """Raises DiskFull or ConfigError for what the file system refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{directory} cannot be written: {error.strerror}", fix="Free some disk space.") from error
        raise ConfigError(
            f"{directory} cannot be written: {error}",
            fix="Give this user the right to write there, or choose another --data-dir.",
        ) from error


def _write(path: Path, data: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    if path.name not in _PUBLIC:
        _refuse_open_to_others(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path.parent, str(error)) from error


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _damaged(path.parent, f"{path.name} is not a private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _damaged(path.parent, f"{path.name} is not an Ed25519 key")
    return key


def _refuse_open_to_others(path: Path) -> None:
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise _damaged(path.parent, str(error)) from error
    if mode & 0o077:
        wanted = "700" if path.is_dir() else "600"
        raise ConfigError(f"others can read {path} (mode {mode:03o})", fix=f"Run: chmod {wanted} {path}")


def _damaged(directory: Path, detail: str) -> ConfigError:
    return ConfigError(
        f"the identity in {directory} is damaged: {detail}",
        fix="Restore it from a backup, or move it away and join the mesh again.",
    )
