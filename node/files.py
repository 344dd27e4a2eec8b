"""Small files of a data directory that a crash must leave old or new, never half."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from protocol.problems import ConfigError, DiskFull


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` at once and whole, mode 0600; its folder is made if absent. Raises ConfigError, DiskFull."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path} cannot be written: {error.strerror}", fix="Free some room.") from None
        raise ConfigError(f"{path} cannot be written: {error.strerror}", fix="Choose another --data-dir.") from None
