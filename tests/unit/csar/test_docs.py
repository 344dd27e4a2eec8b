"""docs/csar.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from csar import REFUSALS, describe_sync
from csar.profile import PROFILE
from protocol import identifiers
from tests.unit.csar.samples import META, META_TEXT, write_zip

TEXT = (Path(__file__).resolve().parents[3] / "docs/csar.md").read_text(encoding="utf-8")


def test_every_error_code_is_in_the_table_with_its_meaning() -> None:
    table = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (.+) \|$", TEXT[TEXT.index("## Error codes") :], re.MULTILINE))
    assert table == dict(REFUSALS)


def test_the_example_is_a_service(tmp_path: Path) -> None:
    example = TEXT.split("```yaml\n")[1].split("```")[0]
    files = {
        META: META_TEXT.encode(),
        "service.yaml": example.encode(),
        "wordcount/Dockerfile": b"FROM python:3.11\n",
        "images/wordcount.tar": b"an image",
    }
    found = describe_sync(write_zip(tmp_path / "example.csar", files))
    assert (found.id, found.version, found.mem_requirement) == ("wc01", "1.2.0", 64)
    assert {n: p.default for n, p in found.parameters.items()} == {"language": "en", "memory": "64"}
    assert set(found.variants) == {"fast", "exact"}
    assert found.placement.required_labels == {"site": "campus"}


@pytest.mark.parametrize("section", ["node_types", "group_types", "policy_types", "data_types", "artifact_types"])
def test_every_type_and_property_of_the_profile_is_named(section: str) -> None:
    for name, definition in PROFILE[section].items():
        short = name.rpartition(".")[2]
        if short not in ("Microservice", "ContainerPort", "Variant"):
            assert short in TEXT
        for key in definition.get("properties", {}):
            assert f"`{key}`" in TEXT, f"{short}.{key}"


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("id", {"pattern": identifiers.SERVICE_ID}),
        ("name", {"pattern": identifiers.SERVICE_NAME}),
        ("category", {"max_length": identifiers.MAX_CATEGORY}),
    ],
)
def test_the_profile_and_the_protocol_draw_the_same_bounds(name: str, bound: dict[str, object]) -> None:
    properties = PROFILE["node_types"]["tosca.nodes.microservices.Microservice"]["properties"]
    assert properties[name]["constraints"] == [bound]
    assert properties["inputs"]["entry_schema"]["constraints"] == [{"pattern": identifiers.TYPE_NAME}]
