"""Which signatures were found good, so that a record that comes again, or at another key, is not checked again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from protocol.records import Signed, check_signature

REMEMBERED = 32_768
"""Envelopes, by their digests: some 7 MB. A check costs about 120 us."""


class Verified:
    """The least recently met is forgotten first."""

    def __init__(self) -> None:
        self._good: OrderedDict[bytes, None] = OrderedDict()

    def check(self, signed: Signed) -> None:
        """Raises InvalidRecord unless the signature of a record that was only `reopened` is good."""
        digest = hashlib.sha256(signed.envelope).digest()
        if digest not in self._good:
            check_signature(signed)
            self._good[digest] = None
            if len(self._good) > REMEMBERED:
                self._good.popitem(last=False)
        self._good.move_to_end(digest)
