"""Words that all parts share: identifiers, signed records, messages, problems. Pure: no I/O, no clock."""

from protocol.problems import Problem

__all__ = ["Problem"]
