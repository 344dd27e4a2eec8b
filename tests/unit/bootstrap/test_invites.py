"""Who may join with an invitation: rules, the table that keeps them, and the limit on guessing."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bootstrap.attempts import FailedAttempts
from bootstrap.invites import (
    Invite,
    InviteStore,
    check_admission,
    check_secret,
    choose_roles,
    create_invite,
    hash_secret,
)
from bootstrap.mesh import create_mesh
from bootstrap.tokens import decode_token
from protocol.problems import BadRequest, ConfigError, Forbidden, JoinRefused, TooManyRequests

NOW = 1_800_000_000.0
SECRET = b"s" * 20
ID = b"i" * 8


def an_invite(*, uses: int = 1) -> Invite:
    return Invite(ID, hash_secret(SECRET), "eu/de", ("agent", "store"), int(NOW) + 60, uses)


def code_of(refused: pytest.ExceptionInfo[JoinRefused]) -> str:
    assert refused.value.fix
    return str(refused.value.extra["code"])


@pytest.mark.parametrize(
    ("spent_by", "uses", "later", "code"),
    [
        ([], 1, 0, None),
        ([], 1, 60, None),
        ([], 1, 61, "expired"),
        (["b"], 1, 0, "spent"),
        (["a"], 1, 59, None),
        (["a"], 1, 61, "expired"),
        (["b", "c"], 3, 0, None),
        (["b", "c", "d"], 3, 0, "spent"),
        (["b", "a", "d"], 3, 0, None),
    ],
)
def test_admission(spent_by: list[str], uses: int, later: float, code: str | None) -> None:
    if code is None:
        check_admission(an_invite(uses=uses), spent_by=spent_by, node="a", now=NOW + later)
        return
    with pytest.raises(JoinRefused) as refused:
        check_admission(an_invite(uses=uses), spent_by=spent_by, node="a", now=NOW + later)
    assert code_of(refused) == code


def test_a_wrong_secret_and_an_unknown_invitation_look_the_same() -> None:
    with pytest.raises(JoinRefused) as wrong:
        check_secret(an_invite(), b"x" * 20)
    with pytest.raises(JoinRefused) as unknown:
        check_secret(None, SECRET)
    assert wrong.value.to_dict() == unknown.value.to_dict()
    assert check_secret(an_invite(), SECRET) == an_invite()


def test_roles_are_bounded_by_the_invitation() -> None:
    assert choose_roles(an_invite(), None) == ("agent", "store")
    assert choose_roles(an_invite(), ["store"]) == ("store",)
    with pytest.raises(JoinRefused) as refused:
        choose_roles(an_invite(), ["controller", "agent"])
    assert code_of(refused) == "role"


def test_spending_repeats_the_same_answer_to_the_same_node(tmp_path: Path) -> None:
    store = InviteStore(tmp_path)
    store.add(an_invite(), now=NOW)
    first = store.spend(ID, SECRET, node="a", now=NOW, issue=lambda _: b"first")
    again = store.spend(ID, SECRET, node="a", now=NOW + 59, issue=lambda _: b"second")
    assert (first, again) == (b"first", b"first")
    with pytest.raises(JoinRefused) as refused:
        store.spend(ID, SECRET, node="b", now=NOW, issue=lambda _: b"third")
    assert code_of(refused) == "spent"


def test_a_failed_issue_spends_nothing(tmp_path: Path) -> None:
    store = InviteStore(tmp_path)
    store.add(an_invite(), now=NOW)

    def fail(invite: Invite) -> bytes:
        raise Forbidden("no")

    with pytest.raises(Forbidden):
        store.spend(ID, SECRET, node="a", now=NOW, issue=fail)
    assert store.spend(ID, SECRET, node="b", now=NOW, issue=lambda _: b"b") == b"b"


def test_of_many_at_once_only_as_many_are_admitted_as_the_invitation_allows(tmp_path: Path) -> None:
    store = InviteStore(tmp_path)
    store.add(an_invite(uses=3), now=NOW)

    def attempt(node: int) -> bool:
        try:
            store.spend(ID, SECRET, node=str(node), now=NOW, issue=lambda _: b"c")
        except JoinRefused:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 3


def test_long_expired_invitations_are_forgotten(tmp_path: Path) -> None:
    store = InviteStore(tmp_path)
    store.add(an_invite(), now=NOW)
    with pytest.raises(JoinRefused) as expired:
        store.look(ID, SECRET, node="a", now=NOW + 86_400)
    assert code_of(expired) == "expired"
    much_later = NOW + 40 * 86_400
    store.add(Invite(b"j" * 8, bytes(32), "eu", ("agent",), int(much_later) + 60, 1), now=much_later)
    with pytest.raises(JoinRefused) as unknown:
        store.look(ID, SECRET, node="a", now=much_later)
    assert code_of(unknown) == "token"


def test_create_invite_keeps_a_hash_and_prints_a_token(tmp_path: Path) -> None:
    create_mesh(tmp_path, mesh="corner", region="eu", roles=["controller"], now=NOW)
    made = create_invite(
        tmp_path, region="eu/de", roles=["agent"], ttl_s=60, uses=2, addresses=["10.0.0.1:7401"] * 2, now=NOW
    )
    token = decode_token(made.token)
    assert (token.mesh, token.region, token.addresses) == ("corner", "eu/de", ("10.0.0.1:7401",))
    assert token.expires == made.expires == int(NOW) + 60
    file = tmp_path / "invites.sqlite"
    assert token.secret not in file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert InviteStore(tmp_path).look(token.invite, token.secret, node="n", now=NOW).uses == 2


@pytest.mark.parametrize(
    "change",
    [
        {"uses": 0},
        {"ttl_s": 0},
        {"ttl_s": 1e9},
        {"addresses": []},
        {"addresses": ["nowhere"]},
        {"addresses": ["a:70000"]},
        {"region": "EU"},
        {"roles": []},
    ],
)
def test_create_invite_refuses_values_out_of_range(tmp_path: Path, change: dict[str, object]) -> None:
    create_mesh(tmp_path, mesh="corner", region="eu", roles=["controller"], now=NOW)
    values = {"region": "eu", "roles": ["agent"], "ttl_s": 60, "uses": 1, "addresses": ["a:1"], "now": NOW, **change}
    with pytest.raises(BadRequest) as refused:
        create_invite(tmp_path, **values)  # type: ignore[arg-type]
    assert refused.value.fix
    assert not (tmp_path / "invites.sqlite").exists()


def test_only_who_holds_the_root_key_invites(tmp_path: Path) -> None:
    founder = create_mesh(tmp_path, mesh="corner", region="eu", roles=["controller"], now=NOW)
    (tmp_path / "identity" / "root.key").unlink()
    with pytest.raises(Forbidden) as refused:
        create_invite(tmp_path, region="eu", roles=["agent"], ttl_s=60, uses=1, addresses=["a:1"], now=NOW)
    assert founder.node in refused.value.fix


def test_without_an_identity_the_way_to_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        create_invite(tmp_path, region="eu", roles=["agent"], ttl_s=60, uses=1, addresses=["a:1"], now=NOW)
    assert "bootstrap init" in refused.value.fix


def test_guessing_is_limited_and_forgiven_with_time() -> None:
    attempts = FailedAttempts(allowed=3, refill_s=10)
    for _ in range(3):
        attempts.check("evil", NOW)
        attempts.failed("evil", NOW)
    with pytest.raises(TooManyRequests) as refused:
        attempts.check("evil", NOW + 1)
    assert refused.value.retry_after == pytest.approx(9)
    attempts.check("good", NOW + 1)
    attempts.check("evil", NOW + 10)


def test_a_clock_set_back_does_not_forgive() -> None:
    attempts = FailedAttempts(allowed=1, refill_s=10)
    attempts.failed("evil", NOW)
    with pytest.raises(TooManyRequests):
        attempts.check("evil", NOW - 3600)


def test_remembered_addresses_are_bounded() -> None:
    attempts = FailedAttempts(allowed=1)
    attempts.failed("first", NOW)
    for number in range(4096):
        attempts.failed(str(number), NOW)
    attempts.check("first", NOW)
    with pytest.raises(TooManyRequests):
        attempts.check("4095", NOW)
