"""Hostile archives: what each is called, the code that refuses it, and how to build its bytes."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

from tests.unit.csar.samples import (
    META,
    META_TEXT,
    TEMPLATE,
    below_topology,
    edited,
    with_lines,
    word_count,
    zip_bytes,
)

Build = Callable[[], bytes]
_CENTRAL = b"PK\x01\x02"
_END = b"PK\x05\x06"


def _added(name: str, data: bytes = b"x") -> Build:
    return lambda: zip_bytes({**word_count(), name: data})


def _without(name: str) -> Build:
    return lambda: zip_bytes({n: d for n, d in word_count().items() if n != name})


def _template(files: dict[str, bytes]) -> Build:
    return lambda: zip_bytes(files)


def _meta(text: str) -> Build:
    return lambda: zip_bytes({**word_count(), META: text.encode()})


def _entry(name: str, mode: int = 0, flags: int = 0, method: int = zipfile.ZIP_DEFLATED) -> Build:
    """One further entry with odd attributes; `flags` are patched in afterwards."""

    def build() -> bytes:
        buffer = io.BytesIO(zip_bytes(word_count()))
        with zipfile.ZipFile(buffer, "a") as archive:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = 3, mode << 16, method
            archive.writestr(info, b"/etc/passwd")
        data = bytearray(buffer.getvalue())
        at = data.rindex(_CENTRAL) + 8
        data[at : at + 2] = struct.pack("<H", struct.unpack_from("<H", data, at)[0] | flags)
        return bytes(data)

    return build


def _patched(offset: int, value: bytes, anchor: bytes = _END) -> Build:
    """The word count with bytes changed at `offset` from the last `anchor`."""

    def build() -> bytes:
        data = bytearray(zip_bytes(word_count()))
        at = data.rindex(anchor) + offset
        data[at : at + len(value)] = value
        return bytes(data)

    return build


def _renamed(old: bytes, new: bytes) -> Build:
    """Names that `zipfile` would clean up on writing: patched to the same length afterwards."""
    assert len(old) == len(new)
    return lambda: zip_bytes({**word_count(), old.decode(): b"x"}).replace(old, new)


def _bomb() -> bytes:
    return zip_bytes({**word_count(), "zeros": bytes(30 << 20)})


def _zeros(count: int) -> Build:
    """Files that each stay below the ratio's floor of 1 MiB."""
    return lambda: zip_bytes({**word_count(), **{f"zeros/{i}": bytes(1 << 20) for i in range(count)}})


def _overlap() -> bytes:
    """Two directory entries that quote one local file (after Fifield's zip bomb)."""
    data = bytearray(zip_bytes({**word_count(), "aa": b"x" * 99, "ab": b"x" * 99}))
    first = struct.unpack_from("<I", data, data.rindex(_CENTRAL, 0, data.rindex(_CENTRAL)) + 42)[0]
    struct.pack_into("<I", data, data.rindex(_CENTRAL) + 42, first)
    return bytes(data)


def _corrupt() -> bytes:
    data = bytearray(zip_bytes({**word_count(), "z": b"some content"}, zipfile.ZIP_STORED))
    at = data.index(b"some content")
    data[at] ^= 0xFF
    return bytes(data)


def _zip64() -> bytes:
    data = zip_bytes(word_count())
    at = data.rindex(_END)
    return data[:at] + b"PK\x06\x07" + bytes(16) + data[at:]


def _deep_yaml() -> dict[str, bytes]:
    return word_count(TEMPLATE + "metadata: {a: " + "[" * 5000 + "]" * 5000 + "}\n")


def _alias_bomb() -> dict[str, bytes]:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 12)]
    return word_count("\n".join(lines) + "\n" + TEMPLATE)


def _chain(*requirements: tuple[str, str]) -> dict[str, bytes]:
    """Services a and b, with `(node, upstream)` requirements."""
    text = "tosca_definitions_version: tosca_simple_profile_for_microservices_1_0_0\n"
    text += "topology_template:\n  node_templates:\n"
    for name in "ab":
        text += f"    {name}:\n      type: tosca.nodes.microservices.docker_container\n      properties:\n"
        text += f"        {{id: {name}, name: {name}, mem_requirement: 1, category: /x, container_port: 1,\n"
        text += "         directory: wordcount}\n"
        for node, upstream in requirements:
            text += f"      requirements: [{{upstream: {upstream}}}]\n" if node == name else ""
    return word_count(text)


def _wasm(module: str) -> dict[str, bytes]:
    text = TEMPLATE.replace("docker_container", "wasm_module").replace("        container_port: 8080\n", "")
    return word_count(text.replace("directory: wordcount", f"module: {module}"))


_NET = "groups:\n  n:\n    type: tosca.groups.microservices.docker_bridge_network\n"


def _importing(target: str) -> Build:
    head, rest = TEMPLATE.split("\n", 1)
    return _template(word_count(f"{head}\nimports: [{target}]\n{rest}"))


HOSTILE: dict[str, tuple[str, Build]] = {
    # --- zip
    "no bytes": ("empty", lambda: b""),
    "no entries": ("empty", lambda: zip_bytes({})),
    "random bytes": ("not-a-zip", lambda: bytes(range(256)) * 40),
    "a truncated zip": ("not-a-zip", lambda: zip_bytes(word_count())[:-30]),
    "a gzip header before the zip": ("prepended-data", lambda: b"\x1f\x8b" + zip_bytes(word_count())),
    "a script before the first entry": ("prepended-data", lambda: b"#!/bin/sh\n" + zip_bytes(word_count())),
    "bytes after the end": ("trailing-data", lambda: zip_bytes(word_count()) + b"tail"),
    "a zip64 directory": ("zip64", _zip64),
    "one part of a split archive": ("split-archive", _patched(4, b"\x01\x00")),
    "60,000 entries": (
        "too-many-entries",
        lambda: zip_bytes({f"f{i}": b"" for i in range(60_000)}, zipfile.ZIP_STORED),
    ),
    "a lie about the number of entries": ("corrupt-directory", _patched(8, b"\x01\x00\x01\x00")),
    "a directory of garbage": ("corrupt-directory", _patched(0, b"XXXX", _CENTRAL)),
    "a parent folder": ("path-traversal", _added("../evil")),
    "a parent folder inside": ("path-traversal", _added("wordcount/../../evil")),
    "an absolute path": ("absolute-path", _added("/etc/evil")),
    "a drive letter": ("absolute-path", _added("C:/evil")),
    "a backslash": ("unsafe-path", _added("wordcount\\evil")),
    "a newline in a name": ("unsafe-path", _added("a\nb")),
    "a NUL in a name": ("unsafe-path", _renamed(b"evilXfile", b"evil\0file")),
    "an empty folder name": ("unsafe-path", _added("a//b")),
    "a name of 300 bytes": ("name-too-long", _added("n" * 300)),
    "a path 40 deep": ("too-deep", _added("/".join("d" * 40))),
    "a symbolic link": ("special-file", _entry("link", mode=0o120777)),
    "a device": ("special-file", _entry("device", mode=0o020666)),
    "an encrypted entry": ("encrypted", _entry("secret", flags=0x1)),
    "bzip2": ("compression-method", _entry("b", method=zipfile.ZIP_BZIP2)),
    "lzma": ("compression-method", _entry("l", method=zipfile.ZIP_LZMA)),
    "a 30 MiB bomb": ("compression-ratio", _bomb),
    "300 MiB in small files": ("compression-ratio", _zeros(300)),
    "513 MiB in small files": ("unpacked-too-large", _zeros(513)),
    "overlapping entries": ("overlapping-entries", _overlap),
    "names that differ in case": ("duplicate-entry", _added("WORDCOUNT/dockerfile")),
    "names that differ in normalisation": (
        "duplicate-entry",
        lambda: zip_bytes({**word_count(), "caf\u00e9": b"1", "cafe\u0301": b"2"}),
    ),
    "a file that is a folder too": ("file-as-folder", _added("service.yaml/x")),
    "a damaged file": ("corrupt-entry", _corrupt),
    "a damaged local header": ("corrupt-entry", _patched(0, b"PK\x03\x05", b"PK\x03\x04")),
    # --- TOSCA.meta
    "a meta of 20 KB": ("meta-too-large", _meta(META_TEXT + " " * 20_000)),
    "a meta without colons": ("meta-syntax", _meta("what is this\n")),
    "a meta with a key twice": ("meta-duplicate-key", _meta(META_TEXT + "Entry-Definitions: evil.yaml\n")),
    "a meta of the future": ("meta-version", _meta(META_TEXT.replace("1.1", "9.9"))),
    "a meta that names /etc/passwd": ("entry-missing", _meta("Entry-Definitions: /etc/passwd\n")),
    "a meta that names nothing": ("entry-missing", _meta("CSAR-Version: 1.1\n")),
    "a meta in Latin-1": ("not-utf8", lambda: zip_bytes({**word_count(), META: b"Created-By: Andr\xe9\n"})),
    "no meta and two templates": (
        "entry-ambiguous",
        lambda: zip_bytes({"a.yaml": b"a: b", "b.yaml": b"a: b"}),
    ),
    # --- YAML
    "a 20 MB template": ("yaml-too-large", _template(word_count(TEMPLATE + "#" * (300 << 10)))),
    "30,000 values": ("yaml-too-many-events", _template(word_count("a: [" + "1," * 30_000 + "]\n"))),
    "5,000 nested lists": ("yaml-too-deep", _template(_deep_yaml())),
    "a value of 20 KB": ("yaml-long-scalar", _template(edited("Counts words.", "w" * 20_000))),
    "an alias bomb": ("yaml-alias", _template(_alias_bomb())),
    "a merge key": ("yaml-alias", _template(with_lines("<<: {id: x}"))),
    "a Python object": ("yaml-tag", _template(edited("wc01", "!!python/object/apply:os.system [id]"))),
    "a custom tag": ("yaml-tag", _template(edited("wc01", "!secret x"))),
    "a duplicate key": ("yaml-duplicate-key", _template(with_lines("id: other"))),
    "a list as a key": ("yaml-key", _template(with_lines("? [a, b]\n: c"))),
    "a tab for indentation": ("yaml-syntax", _template(with_lines("\tx: y"))),
    "two documents": ("yaml-syntax", _template(word_count(TEMPLATE + "---\na: b\n"))),
    "a list for a template": ("yaml-not-a-mapping", _template(word_count("- a\n- b\n"))),
    "an empty template": ("yaml-not-a-mapping", _template(word_count(""))),
    # --- template
    "an unknown version": ("template-version", _template(edited("microservices_1_0_0", "nfv_1_0_0"))),
    "an http import": ("import-not-allowed", _importing("http://127.0.0.1:9/evil.yaml")),
    "a file import": ("import-not-allowed", _importing("file:///etc/passwd")),
    "an absolute import": ("import-not-allowed", _importing("/etc/passwd")),
    "an import by path tricks": (
        "import-not-allowed",
        _importing("../../tosca_simple_profile_for_microservices_1_0_0.yaml"),
    ),
    "an http import of the profile's name": (
        "import-not-allowed",
        _importing("http://evil/tosca_simple_profile_for_microservices_1_0_0.yaml"),
    ),
    "an import through a repository": ("import-not-allowed", _importing("{file: x.yaml, repository: r}")),
    "node types of its own": (
        "section-not-allowed",
        _template(word_count(TEMPLATE + "node_types: {tosca.nodes.microservices.docker_container: {}}\n")),
    ),
    "a derived_from cycle": (
        "section-not-allowed",
        _template(word_count(TEMPLATE + "data_types: {a: {derived_from: b}, b: {derived_from: a}}\n")),
    ),
    "a repository": ("section-not-allowed", _template(word_count(TEMPLATE + "repositories: {r: {url: http://x}}\n"))),
    "an interface with a script": (
        "section-not-allowed",
        _template(word_count(TEMPLATE + "      interfaces: {Standard: {create: /bin/sh}}\n")),
    ),
    "an unknown section": ("unknown-key", _template(word_count(TEMPLATE + "topology: {}\n"))),
    "no node templates": (
        "missing-key",
        _template(word_count(TEMPLATE.split("  node_templates")[0] + "  inputs: {}\n")),
    ),
    "a bool for memory": ("wrong-type", _template(edited("mem_requirement: 50", "mem_requirement: true"))),
    "a float for memory": ("wrong-type", _template(edited("mem_requirement: 50", "mem_requirement: 1.5"))),
    "text for memory": ("wrong-type", _template(edited("mem_requirement: 50", 'mem_requirement: "50"'))),
    "a null id": ("wrong-type", _template(edited("id: wc01", "id: null"))),
    "a number for a name": ("wrong-type", _template(edited("name: wordcount", "name: 123"))),
    "an integer of 16,000 digits": ("wrong-type", _template(edited("50", "9" * 16_000))),
    "a map for a list": ("wrong-type", _template(with_lines("inputs: {a: b}"))),
    "a node that is a list": ("wrong-type", _template(word_count(TEMPLATE + "    other: [1]\n"))),
    "an unknown node type": ("unknown-type", _template(edited("docker_container", "virtual_machine"))),
    "an unknown artifact type": (
        "unknown-type",
        _template(word_count(TEMPLATE + "      artifacts: {a: {type: tosca.artifacts.File, file: service.yaml}}\n")),
    ),
    "an unknown property": ("unknown-property", _template(edited("container_port", "contaner_port"))),
    "a missing property": ("missing-property", _template(edited("        mem_requirement: 50\n", ""))),
    "a port above 65535": ("property-value", _template(edited("8080", "70000"))),
    "an id with a slash": ("property-value", _template(edited("wc01", "../wc"))),
    "nine inputs": ("not-publishable", _template(with_lines(f"inputs: {[f'type{n}' for n in range(9)]}"))),
    "names that fill a record": (
        "not-publishable",
        _template(
            with_lines(
                f"inputs: [{', '.join('i' * 60 for _ in range(8))}]\noutputs: [{', '.join('o' * 60 for _ in range(8))}]"
            )
        ),
    ),
    "a list of 19,000 bad names": ("property-value", _template(with_lines("inputs: [" + "'!'," * 19_000 + "]"))),
    "get_property": ("function-not-allowed", _template(edited("50", "{get_property: [SELF, id]}"))),
    "get_input for the id": ("function-not-allowed", _template(edited("wc01", "{get_input: x}"))),
    "an input that is not there": ("unknown-input", _template(edited("50", "{get_input: x}"))),
    "an input without default": (
        "input-without-default",
        _template(below_topology("inputs: {x: {type: string}}")),
    ),
    "an input's default out of range": (
        "property-value",
        _template(below_topology("inputs: {x: {type: integer, default: 9, constraints: [in_range: [1, 2]]}}")),
    ),
    "a regular expression bomb": (
        "pattern-not-allowed",
        _template(
            below_topology("inputs: {x: {type: string, default: " + "a" * 40 + "!, constraints: [pattern: (a+)+$]}}")
        ),
    ),
    "a member that is not there": (
        "unknown-node",
        _template(below_topology(_NET + "    properties: {name: net}\n    members: [ghost]")),
    ),
    "a subnet of the Internet": (
        "subnet",
        _template(below_topology(_NET + "    properties: {name: net, subnet: 8.8.8.0/24}\n    members: [word_count]")),
    ),
    "a subnet with host bits": (
        "subnet",
        _template(below_topology(_NET + "    properties: {name: net, subnet: 10.0.0.1/24}\n    members: [word_count]")),
    ),
    "a number for a network": (
        "wrong-type",
        _template(below_topology(_NET + "    properties: {name: 5}\n    members: [word_count]")),
    ),
    "two policies of one type": (
        "duplicate-policy",
        _template(
            below_topology(
                "policies:\n"
                "  - a: {type: tosca.policies.microservices.QoS}\n"
                "  - b: {type: tosca.policies.microservices.QoS}"
            )
        ),
    ),
    "a circle of services": ("chain-cycle", _template(_chain(("a", "b"), ("b", "a")))),
    "a service that feeds itself": ("chain-cycle", _template(_chain(("a", "a")))),
    "two separate services": ("ambiguous-service", _template(_chain())),
    # --- service
    "a category with dots": ("category", _template(edited("/text/count", "/text/../count"))),
    "a category without a slash": ("category", _template(edited("/text/count", "text"))),
    "the root category": ("category", _template(edited("/text/count", "/"))),
    "no port": ("port-missing", _template(edited("        container_port: 8080\n", ""))),
    "one port twice": (
        "duplicate-port",
        _template(edited("container_port: 8080", "container_ports: [{port: 80}, {port: 80, protocol: tcp}]")),
    ),
    "a directory above": ("path-in-template", _template(edited("directory: wordcount", "directory: ../../etc"))),
    "an absolute directory": ("path-in-template", _template(edited("directory: wordcount", "directory: /etc"))),
    "no Dockerfile": ("dockerfile-missing", _without("wordcount/Dockerfile")),
    "an artifact /etc/passwd": (
        "path-in-template",
        _template(
            word_count(
                TEMPLATE + "      artifacts: {a: {type: tosca.artifacts.microservices.OCIImage, file: /etc/passwd}}\n"
            )
        ),
    ),
    "an artifact that is not there": (
        "artifact-missing",
        _template(
            word_count(TEMPLATE + "      artifacts: {a: {type: tosca.artifacts.microservices.OCIImage, file: x.tar}}\n")
        ),
    ),
    "a variant with a ghost artifact": ("unknown-artifact", _template(with_lines("variants: {v: {artifact: ghost}}"))),
    "a module that is no WebAssembly": (
        "module-missing",
        _template(_wasm("wordcount/Dockerfile")),
    ),
}
