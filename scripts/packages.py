"""Files out of packages of Debian, PyPI and npm, fetched by these registries' own clients and kept in a cache.

What is downloaded stays under ${CORNERSTORE_CACHE:-~/.cache/cornerstore}, so that a second build asks nobody. Whoever
uses a file that is not pinned by its package's digest checks it with `check`. For scripts and tests.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PYTHON = "3.11"
"""Of the images that are built here, whatever the host's is."""
SAY_EVERY_S = 8.0


class CannotBuild(Exception):
    """The cause and, on the next line, the fix."""


def cache_folder() -> Path:
    return Path(os.environ.get("CORNERSTORE_CACHE") or "~/.cache/cornerstore").expanduser().absolute()


def run(
    *command: str, fix: str, cwd: Path | None = None, environment: dict[str, str] | None = None, doing: str = ""
) -> str:
    """Standard output. Raises CannotBuild with the end of what the command said.

    `doing` is what a person reads while it takes long; without it, one who waits reads the command's name.
    """
    merged = {**os.environ, "LC_ALL": "C", **(environment or {})}
    if doing:
        _say(f"{doing} ...")
    started = time.monotonic()
    with subprocess.Popen(
        command, cwd=cwd, env=merged, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while True:
            try:
                output, errors = process.communicate(timeout=SAY_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                _say(f"  {doing or command[0]}: {time.monotonic() - started:.0f} s")
    if process.returncode != 0:
        said = "\n  | ".join((errors or output).strip().splitlines()[-6:])
        raise CannotBuild(
            f"{command[0]} failed with status {process.returncode}:\n  | {said}\nfix: {fix}, then run this again"
        )
    return output


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def check(file: Path, sha256: str) -> Path:
    """`file`, if it has this digest. Raises CannotBuild."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        raise CannotBuild(f"{file} has the digest {found}, not {sha256}\nfix: delete it, then run this again")
    return file


# --- Debian ---------------------------------------------------------------------------------------------------------


class DebianPackages:
    """apt as an ordinary user. Its own lists stand in where the machine has none (a fresh container image)."""

    def __init__(self, names: Sequence[str], folder: Path | None = None) -> None:
        self.names = names
        self.folder = folder or cache_folder() / "debs"
        self.options: list[str] = []

    def versions(self) -> dict[str, str]:
        """`{package: candidate version}` for all of them."""
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise CannotBuild(
                "this is made from Debian packages, and there is no apt-get and dpkg-deb here\n"
                "fix: run it on a Debian 12 machine, and copy what it builds"
            )
        found = self._candidates()
        if not all(found.values()):
            self._use_own_lists()
            found = self._candidates()
        if missing := [name for name, version in found.items() if not version]:
            raise CannotBuild(
                f"apt knows no package {', '.join(missing)}\n"
                "fix: build on Debian 12 (bookworm) with the network in reach, or copy what was built on one"
            )
        return found

    def download(self, versions: dict[str, str]) -> list[Path]:
        """The .deb files, in the order of their names. apt verifies them; those at hand are not fetched again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = {name: self._deb(name, version) for name, version in versions.items()}
        if absent := [f"{name}={versions[name]}" for name, path in wanted.items() if path is None]:
            run(
                *("apt-get", *self.options, "-q", "download", *absent),
                cwd=self.folder,
                doing=f"downloading {len(absent)} Debian packages",
                fix="see that apt-get works",
            )
            wanted = {name: self._deb(name, version) for name, version in versions.items()}
        return [path for _, path in sorted(wanted.items()) if path is not None]

    def _deb(self, name: str, version: str) -> Path | None:
        return next(self.folder.glob(f"{name}_{version.replace(':', '%3a')}_*.deb"), None)

    def _candidates(self) -> dict[str, str]:
        text = run("apt-cache", *self.options, "policy", *self.names, fix="see that apt-cache works")
        found = dict.fromkeys(self.names, "")
        name = ""
        for line in text.splitlines():
            if not line.startswith(" "):
                name = line.rstrip(":").split(":")[0]
            elif line.strip().startswith("Candidate:") and name in found:
                version = line.split()[-1]
                found[name] = "" if version == "(none)" else version
        return found

    def _use_own_lists(self) -> None:
        state = self.folder.parent / "apt"
        for folder in ("lists/partial", "archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        self.options = [f"-oDir::State::Lists={state / 'lists'}", f"-oDir::Cache={state}", "-oAPT::Sandbox::User="]
        run(
            *("apt-get", *self.options, "-q", "update"),
            doing="reading apt's package lists",
            fix="see that apt's mirrors can be reached",
        )


def debian_package(name: str) -> Path:
    """A folder with the files of the package, of whatever version: what is used of them is checked by digest."""

    def unpack(target: Path) -> None:
        packages = DebianPackages([name])
        [deb] = packages.download(packages.versions())
        unpack_deb(deb, target)

    return _kept("unpacked", f"deb-{name}", unpack)


def unpack_deb(deb: Path, target: Path) -> None:
    run("dpkg-deb", "--extract", str(deb), str(target), fix=f"delete {deb}")


# --- PyPI and npm ---------------------------------------------------------------------------------------------------


def locked_wheels(lock: Path) -> Path:
    """A folder with the wheels that a lock file pins, for this machine's kind of processor and PYTHON."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    return _kept("wheels", f"{lock.stem}-{digest}-{os.uname().machine}", lambda target: download_wheels(lock, target))


def download_wheels(lock: Path, target: Path) -> None:
    machine = os.uname().machine
    platforms = ("manylinux2014", "manylinux_2_24", "manylinux_2_27", "manylinux_2_28")
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(target)),
        *("--require-hashes", "--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"),
        *(*(f"--platform={name}_{machine}" for name in platforms), "--platform=any"),
        *("-r", str(lock)),
        doing=f"downloading the wheels of {lock.name}",
        fix="see that PyPI can be reached",
    )


def npm_package(name: str, sha256: str) -> Path:
    """A folder with the files of `name@version`, whose tarball has this digest. No script of the package runs."""
    if shutil.which("npm") is None:
        raise CannotBuild(f"{name} comes from npm, and npm is not here\nfix: run 'apt-get install npm'")

    def unpack(target: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run(
                *("npm", "pack", "--silent", name),
                cwd=Path(folder),
                doing=f"downloading {name} from npm",
                fix="see that the npm registry can be reached",
            )
            tarball = check(next(Path(folder).glob("*.tgz")), sha256)
            shutil.unpack_archive(tarball, target, "gztar", filter="data")

    return _kept("unpacked", f"npm-{sha256[:16]}", unpack) / "package"


def _kept(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, made once: all or nothing, by one process at a time."""
    target = cache_folder() / kind / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(".lock").open("w") as lock, tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            made = Path(scratch) / name
            made.mkdir()
            make(made)
            made.rename(target)
    return target


def converted(source: Path, sha256: str, converter: Path) -> Path:
    """A folder with what the script `converter` makes of the folder `source`, whose package has the digest."""
    recipe = hashlib.sha256(converter.read_bytes() + sha256.encode()).hexdigest()[:16]

    def convert(target: Path) -> None:
        run(
            *(sys.executable, str(converter), str(source), str(target)),
            doing=f"running {converter.name}",
            fix="see what it says above",
        )

    return _kept("converted", recipe, convert)
