from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from dht.database import database_problem, open_problem, opened_database, transaction
from protocol.problems import ConfigError, DiskFull, DiskUnusable, Unavailable


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE one (value BLOB UNIQUE)")
        yield connection


def count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM one").fetchone()[0])


def test_a_block_is_kept_whole(db: sqlite3.Connection) -> None:
    with transaction(db):
        db.execute("INSERT INTO one VALUES (1)")
        db.execute("INSERT INTO one VALUES (2)")
    assert count(db) == 2
    assert not db.in_transaction


def test_a_block_that_raises_changes_nothing(db: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError), transaction(db):
        db.executemany("INSERT INTO one VALUES (?)", [(1,), (1,)])
    assert count(db) == 0


def test_a_full_database_says_so_and_takes_changes_again_later(db: sqlite3.Connection) -> None:
    pages = int(db.execute("PRAGMA page_count").fetchone()[0])
    db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(sqlite3.OperationalError, match="full"), transaction(db):
        db.execute("INSERT INTO one VALUES (zeroblob(1000000))")
    db.execute("PRAGMA max_page_count = 100000")
    with transaction(db):
        db.execute("INSERT INTO one VALUES (zeroblob(1000000))")
    assert count(db) == 1


def test_a_database_that_rolled_back_by_itself_keeps_the_first_error(db: sqlite3.Connection) -> None:
    def fail() -> None:
        db.execute("ROLLBACK")  # as SQLite does when a write fails for want of room
        raise KeyError

    with pytest.raises(KeyError), transaction(db):
        fail()


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.mkdir()
    with pytest.raises(ConfigError, match=r"state\.sqlite cannot be opened"), opened_database(path, ""):
        pass


@pytest.mark.parametrize("keeps", [0, 4096])
def test_a_damaged_file_is_set_aside_and_begun_anew(tmp_path: Path, keeps: int) -> None:
    """All of it is no database, or all but its first page."""
    path, schema = tmp_path / "state.sqlite", "CREATE TABLE IF NOT EXISTS one (value BLOB)"
    with opened_database(path, schema) as db:
        db.execute("INSERT INTO one VALUES (zeroblob(100000))")
    sound = path.read_bytes()
    damaged = sound[:keeps] + b"\xa5" * (len(sound) - keeps)
    path.write_bytes(damaged)
    with capture_logs() as logs, opened_database(path, schema) as db:
        assert count(db) == 0
        db.execute("INSERT INTO one VALUES (1)")
    assert [(entry["event"], entry["kept_as"]) for entry in logs] == [("database-damaged", "state.sqlite.damaged")]
    assert path.with_name("state.sqlite.damaged").read_bytes() == damaged
    with capture_logs() as logs, opened_database(path, schema) as db:
        assert (count(db), logs) == (1, [])


def test_a_disk_without_room_is_told_apart_from_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says "disk I/O error" where it finds no room for its shared memory."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    assert type(open_problem(error, tmp_path / "state.sqlite")) is DiskUnusable
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    assert type(open_problem(error, tmp_path / "state.sqlite")) is DiskFull


def test_an_error_means_what_its_code_says(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as holder,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other,
    ):
        holder.execute("CREATE TABLE full (value BLOB)")
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError) as locked:
            other.execute("INSERT INTO full VALUES (1)")
        holder.execute("ROLLBACK")
        with pytest.raises(sqlite3.OperationalError) as missing:
            other.execute("SELECT * FROM disk_is_full")
        other.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as full:
            other.execute("INSERT INTO full VALUES (zeroblob(100000))")
    problems = [database_problem(error.value, path) for error in (locked, missing, full)]
    assert [type(problem) for problem in problems] == [Unavailable, ConfigError, DiskFull]
    assert all("state.sqlite" in problem.detail for problem in problems)
    assert type(open_problem(locked.value, path)) is ConfigError


def test_the_file_systems_errors_are_told_apart_too(tmp_path: Path) -> None:
    assert type(database_problem(OSError(errno.ENOSPC, "No space left"), tmp_path)) is DiskFull
    assert type(database_problem(PermissionError(errno.EACCES, "no"), tmp_path)) is ConfigError


def test_a_file_system_that_cannot_be_written_is_not_the_files_fault(tmp_path: Path) -> None:
    """Its fix must not be to throw the file away."""
    path = tmp_path / "state.sqlite"
    path.touch()
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as db,
        pytest.raises(sqlite3.OperationalError, match="readonly") as error,
    ):
        db.execute("CREATE TABLE one (value BLOB)")
    for problem in (database_problem(error.value, path), open_problem(error.value, path)):
        assert type(problem) is DiskUnusable
        assert "move" not in (problem.fix or "").lower()
