"""Why an archive is refused: every code, what it means, and the one way to raise it.

Codes are stable: tools and people look them up in `docs/csar.md`, whose table a test holds against `REFUSALS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from msgspec import Struct

from protocol.problems import InvalidArchive

REFUSALS: Mapping[str, str] = {
    # the zip file
    "empty": "The file holds no bytes, or the archive no entries.",
    "archive-too-large": "The archive is larger than this node accepts.",
    "not-a-zip": "The file is not a zip archive, or its end is missing.",
    "prepended-data": "Bytes stand before the first entry or before the central directory.",
    "trailing-data": "Bytes stand after the end of the archive.",
    "zip64": "The archive uses the zip64 directory, which no archive of allowed size needs.",
    "split-archive": "The archive is one part of several.",
    "too-many-entries": "The archive lists more files than allowed.",
    "corrupt-directory": "The central directory contradicts itself.",
    "corrupt-entry": "A file's data does not match its size, checksum or local header.",
    "absolute-path": "A name starts at the root or at a drive.",
    "path-traversal": "A name contains `.` or `..` as a folder.",
    "unsafe-path": "A name contains a backslash, a control character or an empty folder name.",
    "name-too-long": "A name is longer than allowed.",
    "too-deep": "A name has more folders than allowed.",
    "duplicate-entry": "Two names are equal, perhaps only after Unicode normalisation and case folding.",
    "file-as-folder": "A name lies below another entry that is a file.",
    "encrypted": "An entry is encrypted.",
    "compression-method": "An entry is neither stored nor deflated.",
    "special-file": "An entry is a symbolic link, a device or another special file.",
    "unpacked-too-large": "The files together unpack to more than allowed.",
    "compression-ratio": "A file unpacks to suspiciously many times its packed size.",
    "overlapping-entries": "Two entries share the same bytes of the archive.",
    "file-missing": "A file or folder that is asked for is not in the archive.",
    # TOSCA.meta
    "meta-too-large": "TOSCA.meta is larger than allowed.",
    "meta-syntax": "A line of TOSCA.meta is not `Name: value`.",
    "meta-duplicate-key": "TOSCA.meta gives one key twice.",
    "meta-version": "TOSCA.meta names a version that is not known.",
    "entry-missing": "No TOSCA file is named, or the one that is named is not in the archive.",
    "entry-ambiguous": "Without TOSCA.meta, exactly one YAML file may stand at the root.",
    # YAML
    "not-utf8": "A text file is not UTF-8.",
    "yaml-too-large": "The TOSCA file is larger than allowed.",
    "yaml-too-many-events": "The TOSCA file has more elements than allowed.",
    "yaml-too-deep": "The TOSCA file nests deeper than allowed.",
    "yaml-long-scalar": "A value is longer than allowed.",
    "yaml-alias": "Anchors, aliases and merge keys are not allowed.",
    "yaml-tag": "Explicit tags (`!name`) are not allowed.",
    "yaml-duplicate-key": "One mapping gives a key twice.",
    "yaml-key": "A key is not plain text.",
    "yaml-syntax": "The file is not YAML.",
    "yaml-not-a-mapping": "The file holds something else than one mapping.",
    # the template
    "template-version": "`tosca_definitions_version` is missing or not one of the two known.",
    "import-not-allowed": "A template may import the shipped profile and nothing else.",
    "section-not-allowed": "TOSCA knows this section, but a service may not use it.",
    "unknown-key": "A key is not known at this place.",
    "missing-key": "A key that is needed is absent.",
    "wrong-type": "A value has another type than the profile says.",
    "unknown-type": "A node, group, policy or artifact type is not in the profile.",
    "unknown-property": "The type has no such property.",
    "missing-property": "A required property is absent.",
    "property-value": "A value has the right type but breaks a constraint of the profile.",
    "function-not-allowed": "A TOSCA function other than `get_input` is used, or `get_input` where it may not stand.",
    "unknown-input": "`get_input` names an input that is not declared.",
    "input-without-default": "An input has no default, so the service could not start unasked.",
    "pattern-not-allowed": "An input is constrained by a regular expression.",
    "unknown-node": "A member, target or requirement names a node template that is not there.",
    "group-member": "A member of a bridge network is not a docker_container.",
    "duplicate-policy": "Two policies of one type apply to the service.",
    "chain-cycle": "Services feed each other in a circle.",
    "ambiguous-service": "Several node templates are not joined by `upstream` into one chain with one end.",
    "tosca": "tosca-parser objects to the template as a whole.",
    # the service
    "category": "The category is not a path such as /image/object_detection.",
    "port-missing": "A container names no port.",
    "duplicate-port": "A port is given twice, or both `container_port` and `container_ports` are.",
    "subnet": "A subnet is not a private IPv4 network between /16 and /29, or overlaps another.",
    "duplicate-network": "Two groups give one network name.",
    "path-in-template": "A path in the template is not a relative path inside the archive.",
    "dockerfile-missing": "Neither a folder with a Dockerfile nor an image is in the archive.",
    "artifact-missing": "An artifact's file is not in the archive.",
    "unknown-artifact": "A variant names an artifact that its node does not have.",
    "module-missing": "A wasm_module names no module, or one that is not WebAssembly.",
    "not-publishable": "The service's names, types and labels are more than a record of the mesh holds.",
    # the worker
    "parse-timeout": "Checking the template took too long.",
    "parse-failed": "The checking process gave up on the template (memory, processor time or a crash).",
}


class Finding(Struct, frozen=True):
    """One thing wrong with a template. `path` leads to it: mapping keys and list indexes from the top."""

    code: str
    path: tuple[str | int, ...]
    detail: str
    fix: str


def refusal(
    code: str, detail: str, fix: str, *, file: str | None = None, line: int | None = None, **extra: object
) -> InvalidArchive:
    """The exception for a code of `REFUSALS`; `file` is a path inside the archive, `line` counts from 1."""
    if code not in REFUSALS:
        raise KeyError(code)
    place = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
    known = {"file": file, "line": line, **extra}
    return InvalidArchive(place + detail, fix=fix, code=code, **{k: v for k, v in known.items() if v is not None})


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """`Did you mean x?` for the nearest choice, or the list of choices where none is near."""
    known = sorted(choices)
    near = get_close_matches(str(word), known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Known here: {', '.join(known)}." if known else "None is declared here."
