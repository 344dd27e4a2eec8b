"""The files of a node's identity: whole or absent, and secret."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bootstrap.identity import (
    Identity,
    discard_unfinished,
    has_identity,
    key_pem,
    save_identity,
    unfinished_node_key,
)
from bootstrap.mesh import create_mesh
from protocol.identifiers import node_id
from protocol.problems import BadRequest, ConfigError, Conflict
from protocol.records import raw_public_key

NOW = 1_800_000_000.0
SECRETS = ("node.key", "keyring", "publisher.key", "operator.token", "root.key")


@pytest.fixture
def founder(tmp_path: Path) -> Identity:
    return create_mesh(tmp_path, mesh="corner", region="eu/de", roles=["controller", "store"], now=NOW)


def test_a_founded_mesh_loads_again(tmp_path: Path, founder: Identity) -> None:
    loaded = Identity.load(tmp_path)
    assert (loaded.mesh, loaded.region, loaded.roles) == ("corner", "eu/de", ("controller", "store"))
    assert loaded.node == founder.node == node_id(raw_public_key(loaded.node_key))
    assert loaded.keyring == founder.keyring
    assert loaded.keyring.mesh == "corner"
    assert loaded.root_key is not None
    assert len(loaded.operator_token) >= 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["identity"]


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path, founder: Identity) -> None:
    assert stat.S_IMODE(founder.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE((founder.directory / name).stat().st_mode) for name in SECRETS} == {0o600}


def test_no_secret_is_printed(founder: Identity) -> None:
    shown = repr(founder)
    assert founder.operator_token not in shown
    assert repr(founder.keyring.keys[1]) not in shown


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, founder: Identity, name: str) -> None:
    (founder.directory / name).chmod(0o640)
    with pytest.raises(ConfigError) as refused:
        Identity.load(tmp_path)
    assert f"chmod 600 {founder.directory / name}" in refused.value.fix


def test_a_directory_that_others_can_read_is_refused(tmp_path: Path, founder: Identity) -> None:
    founder.directory.chmod(0o755)
    with pytest.raises(ConfigError, match="others can read"):
        Identity.load(tmp_path)


@pytest.mark.parametrize("name", ["node.key", "node.crt", "mesh-root.crt", "keyring", "publisher.key"])
@pytest.mark.parametrize("damage", [None, b"", b"rubbish"])
def test_damage_is_named(tmp_path: Path, founder: Identity, name: str, damage: bytes | None) -> None:
    file = founder.directory / name
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(ConfigError, match="is damaged") as refused:
        Identity.load(tmp_path)
    assert refused.value.fix


def test_a_key_of_another_node_is_refused(tmp_path: Path, founder: Identity) -> None:
    (founder.directory / "node.key").write_bytes(key_pem(Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigError, match="another key"):
        Identity.load(tmp_path)


def test_a_missing_identity_names_both_ways_to_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        Identity.load(tmp_path)
    assert "bootstrap init" in refused.value.fix
    assert "bootstrap join" in refused.value.fix


def test_init_refuses_over_old_state(tmp_path: Path, founder: Identity) -> None:
    with pytest.raises(Conflict) as refused:
        create_mesh(tmp_path, mesh="other", region="eu", roles=["controller"], now=NOW)
    assert "--data-dir" in refused.value.fix
    assert Identity.load(tmp_path).mesh == "corner"


def test_saving_never_replaces_an_identity(tmp_path: Path, founder: Identity) -> None:
    with pytest.raises(ConfigError):
        save_identity(
            tmp_path,
            key=founder.node_key,
            certificate=founder.certificate,
            root=founder.root,
            keyring=founder.keyring,
        )
    assert Identity.load(tmp_path).operator_token == founder.operator_token


@pytest.mark.parametrize("change", [{"mesh": "No Good"}, {"region": "EU"}, {"roles": ["king"]}])
def test_init_with_a_bad_name_leaves_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    values = {"mesh": "corner", "region": "eu", "roles": ["controller"], "now": NOW, **change}
    with pytest.raises(BadRequest):
        create_mesh(tmp_path, **values)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_join_keeps_its_key_until_discarded(tmp_path: Path) -> None:
    first, again = unfinished_node_key(tmp_path), unfinished_node_key(tmp_path)
    assert raw_public_key(first) == raw_public_key(again)
    assert not has_identity(tmp_path)
    discard_unfinished(tmp_path)
    assert raw_public_key(unfinished_node_key(tmp_path)) != raw_public_key(first)


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as refused:
        create_mesh(tmp_path / "file" / "data", mesh="corner", region="eu", roles=["controller"], now=NOW)
    assert "--data-dir" in refused.value.fix
