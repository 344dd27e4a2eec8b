"""How much a CSAR may cost the node that opens it."""

from __future__ import annotations

from msgspec import Struct

MIB = 1 << 20


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds on one archive. Sizes in bytes, times in s.

    `archive_bytes` and `unpacked_bytes` are what an operator tunes; the others fit any honest service. An entry may
    unpack to at most `ratio` times its packed size, unless it stays below `ratio_floor` (tiny files compress well).
    """

    archive_bytes: int = 256 * MIB
    unpacked_bytes: int = 512 * MIB
    entries: int = 4096
    ratio: int = 200
    ratio_floor: int = MIB
    name_bytes: int = 255
    depth: int = 16
    meta_bytes: int = 16 << 10
    yaml_bytes: int = 256 << 10
    yaml_events: int = 20_000
    yaml_depth: int = 32
    yaml_scalar: int = 16 << 10
    start_s: float = 30.0
    wall_s: float = 5.0
    cpu_s: int = 3
    memory_bytes: int = 512 * MIB


DEFAULT_LIMITS = Limits()
