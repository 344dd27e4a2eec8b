from __future__ import annotations

import errno

import pytest

from dht.disk_errors import disk_errors
from protocol.problems import DiskFull, DiskUnusable


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EFBIG, DiskFull),
        (errno.EROFS, DiskUnusable),
        (errno.EIO, DiskUnusable),
        (errno.ENOENT, DiskUnusable),
        (errno.ECONNRESET, ConnectionResetError),
    ],
)
def test_what_the_file_system_says_is_told_apart(number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected) as raised, disk_errors("the upload"):
        raise OSError(number, "as the system says", "/data/blobs/packs/7")
    assert type(raised.value) is expected
    if isinstance(raised.value, DiskUnusable):
        assert "the upload" in raised.value.detail
        assert raised.value.fix
    if expected is DiskUnusable:
        assert "/data/blobs/packs/7" in raised.value.detail
