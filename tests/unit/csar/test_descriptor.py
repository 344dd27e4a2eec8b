"""Templates and what they come to mean: the paper's form, every extension, and errors that help."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from csar import Parser
from protocol.parameters import Constraint, Parameter
from protocol.problems import InvalidArchive
from protocol.service import (
    Artifact,
    BridgeNetwork,
    ContainerPort,
    PlacementPolicy,
    QualityOfService,
    Relaxations,
    ServiceDescriptor,
    Variant,
)
from tests.unit.csar.samples import META, TEMPLATE, WASM, edited, with_lines, word_count, write_zip

Describe = Callable[[Mapping[str, bytes]], ServiceDescriptor]


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    parser = Parser()
    yield parser
    parser.close()


@pytest.fixture
def describe(parser: Parser, tmp_path: Path) -> Describe:
    def run(files: Mapping[str, bytes]) -> ServiceDescriptor:
        return parser.describe_sync(write_zip(tmp_path / "s.csar", files))

    return run


def test_the_word_count(describe: Describe) -> None:
    assert describe(word_count()) == ServiceDescriptor(
        id="wc01",
        name="wordcount",
        kind="docker_container",
        category="/text/count",
        mem_requirement=50,
        entry="service.yaml",
        description="Counts words.",
        ports=(ContainerPort(8080),),
        directory="wordcount",
    )


def test_a_container_may_ask_for_a_little_more(describe: Describe) -> None:
    asked = "        container_port: 8080\n        capabilities: [SETUID, CHOWN]\n        max_processes: 300\n"
    assert describe(edited("        container_port: 8080\n", asked)).relaxations == Relaxations(
        ("SETUID", "CHOWN"), 300
    )
    for hostile in ("capabilities: [SYS_ADMIN]", "capabilities: SETUID", "max_processes: 0"):
        with pytest.raises(InvalidArchive):
            describe(edited("        container_port: 8080\n", f"        container_port: 8080\n        {hostile}\n"))


PAPER = """\
tosca_definitions_version: tosca_simple_profile_for_microservices_1_0_0

description: Template for deploying a game server.

topology_template:

  node_templates:
    arduel:
      type: tosca.nodes.microservices.docker_container
      properties:
        id: gs01
        name: ar-duel
        container_ports:
          - port: 7777
            protocol: udp
            description: game
          - port: 8080
            protocol: tcp
            description: lobby
        mem_requirement: 100
        directory: arduel
        category: /gaming/server/arduel/
        alive_time: 300
        wait_for_start: true

  groups:
    game_network:
      type: tosca.groups.microservices.docker_bridge_network
      properties:
        name: game_network
        internal: false
        subnet: 172.28.0.0/16
      members: [ arduel ]
"""
PAPER_META = (
    "TOSCA-Meta-File-Version: 1.0\n\nCSAR-Version: 1.1\n\nCreated-By: A. Author\n\nEntry-Definitions: arduel.yaml"
)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_papers_form_loads_unmodified(describe: Describe, line_end: str) -> None:
    files = {
        META: PAPER_META.replace("\n", line_end).encode(),
        "arduel.yaml": PAPER.replace("\n", line_end).encode(),
        "arduel/": b"",
        "arduel/Dockerfile": b"FROM python:3.6-alpine\n",
    }
    assert describe(files) == ServiceDescriptor(
        id="gs01",
        name="ar-duel",
        kind="docker_container",
        category="/gaming/server/arduel",
        mem_requirement=100,
        entry="arduel.yaml",
        description="Template for deploying a game server.",
        alive_time=300,
        wait_for_start=True,
        ports=(ContainerPort(7777, "udp", "game"), ContainerPort(8080, "tcp", "lobby")),
        directory="arduel",
        networks=(BridgeNetwork("game_network", subnet="172.28.0.0/16"),),
    )


def test_inputs_and_outputs(describe: Describe) -> None:
    found = describe(with_lines("inputs: [text, text/plain]\noutputs:\n  - integer"))
    assert (found.inputs, found.outputs) == (("text", "text/plain"), ("integer",))


def test_the_version_stays_as_it_is_written(describe: Describe) -> None:
    assert describe(word_count(TEMPLATE + "metadata: {template_version: 1.10}\n")).version == "1.10"
    assert describe(word_count(TEMPLATE + "template_version: 2.0\n")).version == "2.0"


def test_get_input_takes_the_default(describe: Describe) -> None:
    template = TEMPLATE.replace("mem_requirement: 50", "mem_requirement: {get_input: memory}").replace(
        "topology_template:\n",
        "topology_template:\n"
        "  inputs:\n"
        "    memory: {type: integer, default: 64, constraints: [in_range: [32, 128]]}\n"
        "    language: {type: string, default: de, constraints: [valid_values: [de, en]]}\n"
        "    loud: {type: boolean, default: true}\n",
    )
    found = describe(word_count(template))
    assert found.mem_requirement == 64
    assert found.parameters == {
        "memory": Parameter("64", "integer", (Constraint("in_range", (32, 128)),)),
        "language": Parameter("de", "string", (Constraint("valid_values", ("de", "en")),)),
        "loud": Parameter("true", "boolean"),
    }


def test_a_default_is_held_to_the_property_it_fills(describe: Describe) -> None:
    template = TEMPLATE.replace("50", "{get_input: m}").replace(
        "topology_template:\n", "topology_template:\n  inputs: {m: {type: integer, default: 0}}\n"
    )
    with pytest.raises(InvalidArchive) as caught:
        describe(word_count(template))
    assert (caught.value.extra["code"], caught.value.extra["line"]) == ("property-value", 11)


def test_variants_artifacts_and_policies(describe: Describe) -> None:
    template = (
        TEMPLATE.replace("        directory: wordcount\n", "")
        + """\
        variants:
          fast: {accuracy: 0.7, latency_ms: 12, environment: {MODEL: small}}
          exact: {accuracy: 1.0, mem_requirement: 400, artifact: image}
      artifacts:
        image: {type: tosca.artifacts.microservices.OCIImage, file: images/wc.tar}
        context: {type: tosca.artifacts.microservices.DockerBuildContext, file: ./wordcount/}
  policies:
    - quick: {type: tosca.policies.microservices.QoS, targets: [word_count], properties: {max_latency_ms: 50}}
    - near:
        type: tosca.policies.microservices.Placement
        properties: {strategy: nearest, required_labels: {gpu: 'yes'}}
"""
    )
    found = describe({**word_count(template), "images/wc.tar": b"tar"})
    assert found.directory == "wordcount"
    assert found.artifacts == (
        Artifact("image", "OCIImage", "images/wc.tar"),
        Artifact("context", "DockerBuildContext", "wordcount"),
    )
    assert found.variants == {
        "fast": Variant(accuracy=0.7, latency_ms=12.0, environment={"MODEL": "small"}),
        "exact": Variant(accuracy=1.0, mem_requirement=400, artifact="image"),
    }
    assert found.quality == QualityOfService(max_latency_ms=50.0)
    assert found.placement == PlacementPolicy("nearest", {"gpu": "yes"})


def test_an_image_needs_no_dockerfile(describe: Describe) -> None:
    template = TEMPLATE.replace("        directory: wordcount\n", "")
    template += "      artifacts: {image: {type: tosca.artifacts.microservices.OCIImage, file: wc.tar}}\n"
    found = describe({**word_count(template), "wc.tar": b"tar"})
    assert found.directory is None
    assert found.artifacts[0].file == "wc.tar"


WASM_TEMPLATE = (
    TEMPLATE.replace("docker_container", "wasm_module")
    .replace("        container_port: 8080\n", "")
    .replace("directory: wordcount", "module: wordcount.wasm")
)


def test_a_wasm_module(describe: Describe) -> None:
    files = {**word_count(WASM_TEMPLATE + "        fuel: 1000000\n        timeout: 5\n"), "wordcount.wasm": WASM}
    found = describe(files)
    assert (found.kind, found.module, found.fuel, found.timeout) == ("wasm_module", "wordcount.wasm", 1_000_000, 5.0)
    assert (found.ports, found.directory) == ((ContainerPort(8080, "tcp", "HTTP"),), None)


def test_a_wasm_artifact_is_the_module(describe: Describe) -> None:
    template = WASM_TEMPLATE.replace("        module: wordcount.wasm\n", "")
    template += "      artifacts: {m: {type: tosca.artifacts.microservices.WasmModule, file: wordcount.wasm}}\n"
    assert describe({**word_count(template), "wordcount.wasm": WASM}).module == "wordcount.wasm"


def test_the_portable_flavour(describe: Describe) -> None:
    head = "tosca_definitions_version: tosca_simple_profile_for_microservices_1_0_0\n"
    for target in ("{}", "file: {}", "./types/{}"):
        imported = target.format("tosca_simple_profile_for_microservices_1_0_0.yaml")
        portable = TEMPLATE.replace(
            head, f"tosca_definitions_version: tosca_simple_yaml_1_3\nimports:\n  - {imported}\n"
        )
        assert describe(word_count(portable)).id == "wc01"


def test_the_portable_flavour_must_import_the_profile(describe: Describe) -> None:
    with pytest.raises(InvalidArchive) as caught:
        describe(edited("tosca_simple_profile_for_microservices_1_0_0", "tosca_simple_yaml_1_3"))
    assert caught.value.extra["code"] == "import-not-allowed"


CHAIN = """\
tosca_definitions_version: tosca_simple_profile_for_microservices_1_0_0
topology_template:
  node_templates:
    count:
      type: tosca.nodes.microservices.docker_container
      properties: {id: c1, name: c, mem_requirement: 1, category: /x, container_port: 1, directory: wordcount}
      requirements:
        - upstream:
            node: clean
            relationship: {type: tosca.relationships.microservices.Feeds, properties: {output: text}}
    scan:
      type: tosca.nodes.microservices.docker_container
      properties: {id: s1, name: s, mem_requirement: 1, category: /x, container_port: 1}
    clean:
      type: tosca.nodes.microservices.docker_container
      properties: {id: l1, name: l, mem_requirement: 1, category: /x, container_port: 1}
      requirements: [upstream: scan]
"""


def test_the_end_of_a_chain_is_the_service(describe: Describe) -> None:
    found = describe(word_count(CHAIN))
    assert (found.id, found.upstream) == ("c1", ("s1", "l1"))


NETWORK = """\
  groups:
    a: {type: tosca.groups.microservices.docker_bridge_network, properties: {name: red}, members: [word_count]}
    b: {type: tosca.groups.microservices.docker_bridge_network, properties: {name: red}, members: [word_count]}
"""


def test_networks_have_names_of_their_own(describe: Describe) -> None:
    with pytest.raises(InvalidArchive) as caught:
        describe(word_count(TEMPLATE + NETWORK))
    assert caught.value.extra["code"] == "duplicate-network"
    found = describe(word_count(TEMPLATE + NETWORK.replace("name: red", "name: blue", 1)))
    assert [n.name for n in found.networks] == ["blue", "red"]


def test_subnets_do_not_overlap(describe: Describe) -> None:
    text = NETWORK.replace("name: red", "name: red, subnet: 10.1.0.0/16", 1)
    text = text.replace("{name: red}", "{name: blue, subnet: 10.1.2.0/24}")
    with pytest.raises(InvalidArchive) as caught:
        describe(word_count(TEMPLATE + text))
    assert caught.value.extra["code"] == "subnet"


def test_only_containers_join_a_bridge(describe: Describe) -> None:
    text = NETWORK.splitlines(keepends=True)
    with pytest.raises(InvalidArchive) as caught:
        describe({**word_count(WASM_TEMPLATE + "".join(text[:2])), "wordcount.wasm": WASM})
    assert caught.value.extra["code"] == "group-member"


def test_an_error_says_where_and_what_would_be_right(describe: Describe) -> None:
    with pytest.raises(InvalidArchive) as caught:
        describe(edited("container_port", "contaner_port"))
    problem = caught.value
    assert problem.extra == {"code": "unknown-property", "file": "service.yaml", "line": 13}
    assert problem.detail == "service.yaml:13: there is no property 'contaner_port'"
    assert problem.fix == "Did you mean container_port?"


def test_all_errors_of_a_kind_are_listed_at_once(describe: Describe) -> None:
    template = TEMPLATE.replace("id: wc01", "id: 7").replace("mem_requirement: 50", "mem_requirement: lots")
    with pytest.raises(InvalidArchive) as caught:
        describe(word_count(template))
    assert caught.value.extra["line"] == 8
    assert [(p["code"], p["line"]) for p in caught.value.extra["problems"]] == [("wrong-type", 10)]


def test_messages_hold_no_paths_of_this_machine(describe: Describe) -> None:
    with pytest.raises(InvalidArchive) as caught:
        describe(edited("8080", "70000"))
    assert caught.value.extra["line"] == 13
    assert "70000" in caught.value.detail
    assert ".py" not in caught.value.detail
