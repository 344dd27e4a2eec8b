from __future__ import annotations

import pytest

from protocol import base64url


@pytest.mark.parametrize("length", range(5))
def test_bytes_come_back_with_and_without_padding(length: int) -> None:
    data = bytes(range(251, 251 + length))
    text = base64url.encode(data)
    assert not set(text) & set("=+/")
    assert base64url.decode(text) == data
    assert base64url.decode(text + "=" * (-len(text) % 4)) == data


@pytest.mark.parametrize("text", ["!", "a", "ab\n"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        base64url.decode(text)
