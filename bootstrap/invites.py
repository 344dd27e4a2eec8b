"""Invitations: who may still join with which secret. Rules first, then the table that keeps them.

The table lives in `<data-dir>/invites.sqlite`, so that an invitation can be made by a process beside the running node.
Secrets are kept as hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from bootstrap.certificates import check_roles, fingerprint, founder_of
from bootstrap.identity import Identity
from bootstrap.tokens import INVITE_BYTES, SECRET_BYTES, Token, TokenAddresses, encode_token
from dht.database import database_problem, transaction
from protocol.addresses import is_address
from protocol.identifiers import check_region
from protocol.peers import Role
from protocol.problems import BadRequest, Forbidden, JoinRefused

FILE = "invites.sqlite"
MAX_TTL_S = 30 * 86_400
MAX_USES = 1000
KEPT_S = 30 * 86_400
"""How long an expired invitation is remembered, so that its holder is told "expired" and not "unknown"."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS invites(
    invite BLOB PRIMARY KEY, secret_hash BLOB NOT NULL, region TEXT NOT NULL, roles TEXT NOT NULL,
    expires INTEGER NOT NULL, uses INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS spent(
    invite BLOB NOT NULL, node TEXT NOT NULL, certificate BLOB NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY (invite, node)) STRICT;
"""


class Invite(Struct, frozen=True):
    """`uses`: how many different nodes may join with it. `expires` in Unix s."""

    invite: bytes
    secret_hash: bytes
    region: str
    roles: tuple[Role, ...]
    expires: int
    uses: int


class Invitation(Struct, frozen=True):
    """What an operator hands on: one line of text, valid until `expires` (Unix s)."""

    token: str
    expires: int


def hash_secret(secret: bytes) -> bytes:
    """The secret has 160 random bits: a plain hash suffices."""
    return hashlib.sha256(b"cornerstore/invite/1\0" + secret).digest()


def check_secret(invite: Invite | None, secret: bytes) -> Invite:
    """The invitation, if the secret is its own. An unknown invitation and a wrong secret look and last the same."""
    expected = invite.secret_hash if invite is not None else bytes(32)
    if not hmac.compare_digest(expected, hash_secret(secret)) or invite is None:
        raise JoinRefused(
            "this mesh knows no such invitation",
            fix="Copy the token again, or ask for a new one: `cornerstore bootstrap invite`.",
            code="token",
        )
    return invite


def check_admission(invite: Invite, *, spent_by: Sequence[str], node: str, now: float) -> None:
    """Raises JoinRefused unless `node` may join now. A node that spent the invitation may ask again: its answer was
    lost on the way."""
    if now > invite.expires:
        raise JoinRefused(
            f"the invitation expired {int(now - invite.expires)} s ago",
            fix="Ask for a new one: `cornerstore bootstrap invite --ttl 1h`.",
            code="expired",
        )
    if node not in spent_by and len(spent_by) >= invite.uses:
        raise JoinRefused(
            f"the invitation was spent: {len(spent_by)} of {invite.uses} machines joined with it",
            fix="Ask for a new one; `--uses N` admits several machines.",
            code="spent",
        )


def choose_roles(invite: Invite, asked: Sequence[str] | None) -> tuple[Role, ...]:
    """The roles to certify: those asked for, or all that the invitation allows."""
    if asked is None:
        return invite.roles
    roles = check_roles(asked)
    refused = [role for role in roles if role not in invite.roles]
    if refused:
        raise JoinRefused(
            f"the invitation does not allow the role {', '.join(refused)}; it allows {', '.join(invite.roles)}",
            fix=f"Join with --role {' --role '.join(invite.roles)}, or ask for an invitation with more roles.",
            code="role",
        )
    return roles


class InviteStore:
    """The table of invitations. Every call opens the file, and may block for the disk: call it in a thread."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE

    def add(self, invite: Invite, *, now: float) -> None:
        """Keep a new invitation, and forget those that expired long ago."""
        with self._transaction() as db:
            old = int(now) - KEPT_S
            db.execute("DELETE FROM spent WHERE invite IN (SELECT invite FROM invites WHERE expires < ?)", (old,))
            db.execute("DELETE FROM invites WHERE expires < ?", (old,))
            row = (
                invite.invite,
                invite.secret_hash,
                invite.region,
                ",".join(invite.roles),
                invite.expires,
                invite.uses,
            )
            db.execute("INSERT INTO invites VALUES (?, ?, ?, ?, ?, ?)", row)

    def look(self, invite_id: bytes, secret: bytes, *, node: str, now: float) -> Invite:
        """The invitation that `node` may spend now; spends nothing. Raises JoinRefused."""
        with self._transaction() as db:
            return _admitted(db, invite_id, secret, node, now)

    def spend(
        self, invite_id: bytes, secret: bytes, *, node: str, now: float, issue: Callable[[Invite], bytes]
    ) -> bytes:
        """The certificate for `node`: made by `issue` at the first call, the very same bytes at a repetition.

        One transaction: if `issue` raises, nothing is spent. Raises JoinRefused.
        """
        with self._transaction() as db:
            invite = _admitted(db, invite_id, secret, node, now)
            query = "SELECT certificate FROM spent WHERE invite = ? AND node = ?"
            earlier = db.execute(query, (invite_id, node)).fetchone()
            if earlier is not None:
                return bytes(earlier[0])
            certificate = issue(invite)
            db.execute("INSERT INTO spent VALUES (?, ?, ?, ?)", (invite_id, node, certificate, int(now)))
            return certificate

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction from its first statement on, so that two enrolments cannot both see one use left."""
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            db = sqlite3.connect(self._path, timeout=2.0, isolation_level=None)
            try:
                db.executescript(_SCHEMA)
                with transaction(db):
                    yield db
            finally:
                db.close()
        except (sqlite3.Error, OSError) as error:
            raise database_problem(error, self._path) from error


def create_invite(
    data_dir: Path,
    *,
    region: str,
    roles: Sequence[str],
    ttl_s: float,
    uses: int,
    addresses: Sequence[str],
    now: float,
) -> Invitation:
    """A new invitation to `region` for `uses` machines, valid for `ttl_s`; the node may run or not.

    `addresses`: host:port where the joining machine reaches this node's node-to-node listener. Raises Forbidden on a
    node that does not hold the root key, BadRequest for values out of range, ConfigError without an identity.
    """
    identity = Identity.load(data_dir)
    if identity.root_key is None:
        raise Forbidden(
            "this node does not hold the root key of the mesh, so it cannot admit others",
            fix=f"Run the command on node {founder_of(identity.root)}, which founded the mesh.",
        )
    if not 1 <= uses <= MAX_USES:
        raise BadRequest(f"{uses} uses", fix=f"An invitation admits 1 to {MAX_USES} machines.")
    if not 1 <= ttl_s <= MAX_TTL_S:
        raise BadRequest(f"a time to live of {ttl_s:g} s", fix=f"Choose 1 s to {MAX_TTL_S // 86_400} days.")
    secret = secrets.token_bytes(SECRET_BYTES)
    expires = int(now + ttl_s)
    invite = Invite(
        invite=secrets.token_bytes(INVITE_BYTES),
        secret_hash=hash_secret(secret),
        region=check_region(region),
        roles=check_roles(roles),
        expires=expires,
        uses=uses,
    )
    token = Token(
        mesh=identity.mesh,
        region=invite.region,
        addresses=_checked_addresses(addresses),
        fingerprint=fingerprint(identity.root),
        invite=invite.invite,
        secret=secret,
        expires=expires,
    )
    InviteStore(data_dir).add(invite, now=now)
    return Invitation(encode_token(token), expires)


def _checked_addresses(addresses: Sequence[str]) -> tuple[str, ...]:
    fix = "Give 1 to 8 addresses such as 192.0.2.7:7401, [2001:db8::7]:7401 or site.example.org:7401."
    if wrong := next((address for address in addresses if not is_address(address)), None):
        raise BadRequest(f"{wrong[:100]!r} is no address that a machine could connect to", fix=fix)
    try:
        checked: tuple[str, ...] = msgspec.convert(list(dict.fromkeys(addresses)), TokenAddresses)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{len(addresses)} addresses: {error}", fix=fix) from None
    return checked


def _admitted(db: sqlite3.Connection, invite_id: bytes, secret: bytes, node: str, now: float) -> Invite:
    row = db.execute("SELECT * FROM invites WHERE invite = ?", (invite_id,)).fetchone()
    invite = None
    if row is not None:
        invite = Invite(row[0], row[1], row[2], check_roles(row[3].split(",")), row[4], row[5])
    invite = check_secret(invite, secret)
    spent_by = [r[0] for r in db.execute("SELECT node FROM spent WHERE invite = ?", (invite_id,))]
    check_admission(invite, spent_by=spent_by, node=node, now=now)
    return invite
