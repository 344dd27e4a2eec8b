"""TOSCA.meta as it is written in the wild."""

from __future__ import annotations

import pytest

from csar.meta import META_PATH, entry_from_meta, entry_without_meta, meta_text
from protocol.problems import InvalidArchive

KEYS = ("TOSCA-Meta-File-Version: 1.0", "CSAR-Version: 1.1", "Created-By: someone", "Entry-Definitions: x.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(KEYS) + "\n",
        "\n".join(KEYS),
        "\r\n".join(KEYS) + "\r\n",
        "\n\n".join(KEYS),
        "\r\n\r\n".join(KEYS),
        "Entry-Definitions:x.yaml",
        "Entry-Definitions: x.yaml   \n\nName: x.yaml\nContent-Type: text/yaml\nName: y\n",
        meta_text("x.yaml"),
    ],
)
def test_the_entry_is_found(text: str) -> None:
    assert entry_from_meta(text, ["x.yaml", "y.yaml"]) == "x.yaml"


def test_an_error_names_the_line() -> None:
    with pytest.raises(InvalidArchive) as caught:
        entry_from_meta("CSAR-Version: 1.1\n\nEntry-Definitions: y.yaml\n", ["x.yaml"])
    assert caught.value.extra == {"code": "entry-missing", "file": META_PATH, "line": 3}


def test_without_meta_the_one_template_at_the_root_counts() -> None:
    files = ["a/b.yaml", "x.yml", "Dockerfile", "tosca_simple_profile_for_microservices_1_0_0.yaml"]
    assert entry_without_meta(files) == "x.yml"


def test_without_meta_and_template() -> None:
    with pytest.raises(InvalidArchive) as caught:
        entry_without_meta(["a/b.yaml"])
    assert caught.value.extra["code"] == "entry-missing"
