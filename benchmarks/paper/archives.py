"""The archives that are sent: lean as the paper's were, and each time new.

The repository's photo services bring their Python packages along as wheels, 82 MB, so that a site without Internet
can build them. The paper's archives did not: what their Dockerfile installs came from elsewhere. So here the wheels are
left out, and the edge's base image has them.
"""

from __future__ import annotations

import secrets
import zipfile
from pathlib import Path

WHEELS = "/wheels/"
DOCKERFILE = "Dockerfile"


def lean(archive: Path, target: Path) -> None:
    """A copy without wheels, and without the lines of its Dockerfile that speak of them."""
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(target, "w") as copy:
        for entry in whole.infolist():
            if WHEELS in entry.filename:
                continue
            content = whole.read(entry)
            if Path(entry.filename).name == DOCKERFILE:
                content = b"\n".join(line for line in content.splitlines() if b"wheels" not in line) + b"\n"
            copy.writestr(entry, content)


def variant(archive: Path, target: Path) -> None:
    """A copy with one file that no other has: another digest, the same service."""
    target.write_bytes(archive.read_bytes())
    with zipfile.ZipFile(target, "a") as copy:
        copy.writestr("variant.txt", secrets.token_hex(32))


def base_of(archive: Path, folder: Path, base_image: str) -> str | None:
    """Writes into `folder` how to build a base image with the archive's wheels; the image that it stands in for.

    None where the archive has no wheels.
    """
    with zipfile.ZipFile(archive) as whole:
        wheels = [entry for entry in whole.infolist() if WHEELS in entry.filename and not entry.is_dir()]
        if not wheels:
            return None
        (folder / "wheels").mkdir(parents=True)
        for entry in wheels:
            (folder / "wheels" / Path(entry.filename).name).write_bytes(whole.read(entry))
        (dockerfile,) = [name for name in whole.namelist() if Path(name).name == DOCKERFILE]
        first = whole.read(dockerfile).decode().splitlines()[0]
    install = "RUN pip install --no-index --no-deps /wheels/*.whl"
    (folder / DOCKERFILE).write_text(f"FROM {base_image}\nCOPY wheels /wheels\n{install}\n")
    return first.removeprefix("FROM ").strip()
