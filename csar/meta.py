"""`TOSCA-Metadata/TOSCA.meta`: which file of the archive describes the service (TOSCA Simple Profile 1.3, section 6).

Archives in the wild have blank lines between the keys, CRLF, no final newline, or no meta file at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from csar.profile import PROFILE_FILE
from csar.refusals import refusal

META_PATH = "TOSCA-Metadata/TOSCA.meta"
YAML_SUFFIXES = (".yaml", ".yml")
_LINE = re.compile(r"([A-Za-z][A-Za-z0-9-]*)\s*:\s*(.*?)\s*")
_VERSIONS = {"TOSCA-Meta-File-Version": ("1.0", "1.1"), "CSAR-Version": ("1.0", "1.1")}


def meta_text(entry: str) -> str:
    """The TOSCA.meta that names `entry`."""
    return f"TOSCA-Meta-File-Version: 1.0\nCSAR-Version: 1.1\nCreated-By: cornerstore\nEntry-Definitions: {entry}\n"


def entry_from_meta(text: str, files: Iterable[str]) -> str:
    """The path that `Entry-Definitions` names. Raises InvalidArchive; `files` are the paths in the archive."""
    keys, lines = _first_block(text)
    for key, versions in _VERSIONS.items():
        if key in keys and keys[key] not in versions:
            raise refusal(
                "meta-version",
                f"{key} is {keys[key][:40]!r}",
                f"Write {' or '.join(versions)}.",
                file=META_PATH,
                line=lines[key],
            )
    entry = keys.get("Entry-Definitions", "")
    if not entry:
        raise refusal(
            "entry-missing",
            "no Entry-Definitions key",
            "Add a line such as: Entry-Definitions: service.yaml",
            file=META_PATH,
        )
    if entry not in set(files) or not entry.endswith(YAML_SUFFIXES):
        raise refusal(
            "entry-missing",
            f"Entry-Definitions names {entry[:255]!r}, which is not a YAML file of the archive",
            "Name the TOSCA file by its path inside the archive.",
            file=META_PATH,
            line=lines["Entry-Definitions"],
        )
    return entry


def entry_without_meta(files: Iterable[str]) -> str:
    """The one YAML file at the root. The shipped profile does not count: portable archives carry a copy."""
    roots = sorted(f for f in files if "/" not in f and f.endswith(YAML_SUFFIXES) and f != PROFILE_FILE)
    if not roots:
        raise refusal(
            "entry-missing",
            f"there is neither {META_PATH} nor a YAML file at the root",
            "Add the service's TOSCA file.",
        )
    if len(roots) > 1:
        raise refusal(
            "entry-ambiguous",
            f"there is no {META_PATH}, and several YAML files stand at the root: {', '.join(roots[:5])}",
            f"Add {META_PATH} with a line such as: Entry-Definitions: {roots[0]}",
        )
    return roots[0]


def _first_block(text: str) -> tuple[dict[str, str], dict[str, int]]:
    """Keys and their lines, up to the first `Name:` block, which describes other files."""
    keys: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise refusal(
                "meta-syntax",
                f"{line[:80]!r} is not a key and a value",
                "Write Name: value.",
                file=META_PATH,
                line=number,
            )
        key, value = match.groups()
        if key == "Name":
            break
        if key in keys:
            raise refusal("meta-duplicate-key", f"{key} occurs twice", "Remove one.", file=META_PATH, line=number)
        keys[key], lines[key] = value, number
    return keys, lines
