"""The lease book: tokens are kept to oneself and found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.cli.leases import FILE_NAME, LeaseBook
from protocol.instances import MAX_LEASES_SENT, Lease, ServiceRef, StartAnswer
from protocol.problems import BadRequest, ConfigError

URL = "http://10.1.0.10:7400"


def answer(instance: str, token: str = "secret") -> StartAnswer:
    return StartAnswer(
        instance=instance,
        service=ServiceRef("sha256:" + "0" * 64, "wc01", "wordcount"),
        start="cold",
        region="eu/a",
        agent="n1",
        host="10.1.0.11",
        port=8080,
        ports=(),
        url="http://10.1.0.11:8080",
        lease=Lease(token, 1.0),
    )


def test_a_lease_is_found_by_the_beginning_of_its_instance(tmp_path: Path) -> None:
    book = LeaseBook(tmp_path / "data")
    book.remember(answer("i-abc"), URL)
    instance, kept = LeaseBook(tmp_path / "data").find("i-ab")
    assert instance == "i-abc"
    assert kept is not None
    assert (kept.token, kept.controller, kept.service) == ("secret", URL, "wc01")


def test_others_cannot_read_the_tokens(tmp_path: Path) -> None:
    LeaseBook(tmp_path).remember(answer("i-abc"), URL)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_beginning_that_fits_several_is_refused_and_a_whole_name_wins(tmp_path: Path) -> None:
    book = LeaseBook(tmp_path)
    book.remember(answer("i-abc"), URL)
    book.remember(answer("i-abcd"), URL)
    assert book.find("i-abc")[0] == "i-abc"
    with pytest.raises(BadRequest, match="fits 2"):
        book.find("i-ab")
    assert book.find("i-a") == ("i-a", None), "too short to mean one"


def test_only_the_tokens_of_the_asked_controller_are_shown_to_it_newest_first(tmp_path: Path) -> None:
    book = LeaseBook(tmp_path)
    book.remember(answer("i-abc", "first"), URL)
    book.remember(answer("i-abd", "second"), URL)
    book.remember(answer("i-abe", "elsewhere"), "http://10.2.0.10:7400")
    assert book.tokens(URL) == ("second", "first")
    for number in range(MAX_LEASES_SENT):
        book.remember(answer(f"i-{number:04}", f"t{number}"), URL)
    assert len(book.tokens(URL)) == MAX_LEASES_SENT


def test_an_unknown_instance_is_passed_on_without_a_token(tmp_path: Path) -> None:
    assert LeaseBook(tmp_path).find("i-elsewhere") == ("i-elsewhere", None)


def test_a_forgotten_lease_is_gone(tmp_path: Path) -> None:
    book = LeaseBook(tmp_path)
    book.remember(answer("i-abc"), URL)
    book.forget("i-abc")
    book.forget("i-abc")
    assert book.find("i-abc")[1] is None


def test_a_damaged_book_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(ConfigError, match=FILE_NAME):
        LeaseBook(tmp_path).find("i-abc")
