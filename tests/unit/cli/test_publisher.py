"""The publisher key of a machine, and what it signs."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from node.cli.publisher import KEY_FILE, publisher_key, signed_archive, signed_tombstone
from protocol.identifiers import digest_of
from protocol.problems import ConfigError, Forbidden
from protocol.records import ServiceRecord, raw_public_key, verify
from protocol.service import ServiceDescriptor
from tests.stub_controller import SERVICE

DESCRIPTOR = ServiceDescriptor(
    id="wc01", name="wordcount", kind="docker_container", category="/text", mem_requirement=50, entry="wc.yaml"
)


def test_the_key_is_made_once_and_kept_to_oneself(tmp_path: Path) -> None:
    first = publisher_key(tmp_path / "new")
    assert raw_public_key(publisher_key(tmp_path / "new")) == raw_public_key(first)
    assert (tmp_path / "new" / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_machine_of_a_mesh_uses_the_key_made_at_joining(tmp_path: Path) -> None:
    joined = publisher_key(tmp_path / "elsewhere")
    (tmp_path / "data" / "identity").mkdir(parents=True)
    (tmp_path / "elsewhere" / KEY_FILE).rename(tmp_path / "data" / "identity" / KEY_FILE)
    assert raw_public_key(publisher_key(tmp_path / "data")) == raw_public_key(joined)
    assert not (tmp_path / "data" / KEY_FILE).exists()


def test_a_developers_own_key_stays_in_use_after_joining(tmp_path: Path) -> None:
    own = publisher_key(tmp_path)
    (tmp_path / "identity").mkdir()
    publisher_key(tmp_path / "other")
    (tmp_path / "other" / KEY_FILE).rename(tmp_path / "identity" / KEY_FILE)
    assert raw_public_key(publisher_key(tmp_path)) == raw_public_key(own)


def test_an_open_or_broken_key_is_refused(tmp_path: Path) -> None:
    publisher_key(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        publisher_key(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o600)
    (tmp_path / KEY_FILE).write_text("not a key")
    with pytest.raises(ConfigError, match="not a private key"):
        publisher_key(tmp_path)


def test_an_archive_is_announced_by_the_digest_of_its_bytes(tmp_path: Path) -> None:
    archive = tmp_path / "wc.csar"
    archive.write_bytes(b"an archive")
    record = verify(signed_archive(archive, DESCRIPTOR, publisher_key(tmp_path)).envelope).record
    assert isinstance(record, ServiceRecord)
    assert (record.digest, record.size, record.id) == (digest_of(b"an archive"), 10, "wc01")
    assert abs(record.seq / 1000 - time.time()) < 60
    assert record.expiry > time.time() + 300 * 86_400


def test_only_the_key_that_published_withdraws(tmp_path: Path) -> None:
    key = publisher_key(tmp_path)
    with pytest.raises(Forbidden):
        signed_tombstone(SERVICE, key)
    ours = msgspec.structs.replace(SERVICE, publisher=raw_public_key(key).hex())
    record = verify(signed_tombstone(ours, key).envelope).record
    assert isinstance(record, ServiceRecord)
    assert record.withdrawn
    assert record.digest == SERVICE.digest
