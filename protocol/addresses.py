"""`host:port`, as nodes and people name a listener: what a connection can be opened to, in one spelling for each kind.

    10.1.0.10:7401         IPv4 in four decimal numbers, 1.0.0.0 to 223.255.255.255: not multicast, not "any"
    [2001:db8::7]:7401     IPv6 in brackets (RFC 3986, section 3.2.2), in hexadecimal groups (RFC 4291, 2.2): not
                           ::, multicast (ff00::/8), IPv4 in disguise (::ffff:0:0/96); no zone, which is local
    site.example.org:7401  a host name (RFC 1123, section 2.1), whose last label is no number: a resolver would take
                           127.1 or 0x7f000001 for an address
    the port               1 to 65535

All of it is one pattern, so that whoever decodes an address has checked it.
"""

from __future__ import annotations

import re

MAX_ADDRESS = 90
"""Characters of an address in a record, of which a node has up to four."""
MAX_HOST_PORT = 259
"""Characters of the longest host name (RFC 1123) with a port."""

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_FIRST_OCTET = r"(?:22[0-3]|2[01][0-9]|1[0-9]{2}|[1-9][0-9]?)"
_IPV4 = rf"{_FIRST_OCTET}(?:\.{_OCTET}){{3}}"

_GROUP = r"[0-9A-Fa-f]{1,4}"
_GROUPS = "|".join(
    (
        rf"(?:{_GROUP}:){{7}}{_GROUP}",
        *(rf"(?:{_GROUP}:){{1,{left}}}(?::{_GROUP}){{1,{7 - left}}}" for left in range(1, 7)),
        rf"(?:{_GROUP}:){{1,7}}:",
        rf":(?::{_GROUP}){{1,7}}",
    )
)
_IPV6 = rf"\[(?![0:]*\])(?![Ff]{{2}}[0-9A-Fa-f]{{2}}:)(?![0:]*:[Ff]{{4}}:)(?:{_GROUPS})\]"

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = rf"(?:{_LABEL}\.)*(?![0-9]+:|0[xX][0-9A-Fa-f]*:){_LABEL}"

_PORT = r"(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"

ADDRESS = rf"(?:{_IPV4}|{_IPV6}|{_NAME}):{_PORT}"

WHOLE_ADDRESS = rf"^(?:{ADDRESS})\Z"
"""For msgspec, which looks for a pattern anywhere in a text."""
_ADDRESS = re.compile(ADDRESS)


def is_address(text: str) -> bool:
    return _ADDRESS.fullmatch(text) is not None


def in_words(error: str) -> str:
    """What msgspec says of a text that is no address, without the pattern: people read it."""
    return error.replace(f"`str` matching regex {WHOLE_ADDRESS!r}", "an address such as 192.0.2.7:7401")
