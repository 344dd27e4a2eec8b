"""config.toml: what is written is read again, and what is wrong is named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from node.config import FILE_NAME, Agent, Docker, Network, NodeConfig
from protocol.problems import ConfigError

OPERATIONS = Path(__file__).resolve().parents[3] / "docs" / "operations.md"


def test_round_trip(tmp_path: Path) -> None:
    config = NodeConfig(
        mesh="home",
        region="eu/de",
        roles=("agent",),
        network=Network(host="10.0.0.1", peer_port=7411),
        agent=Agent(labels={"gpu": "yes"}, docker=Docker(base_image_aliases={"python:3.6-alpine": "local/python"})),
    )
    config.save(tmp_path)
    assert NodeConfig.load(tmp_path) == config
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "mesh"),
        ('mesh = "m"\nregion = "Upper"\n', "Upper"),
        ('mesh = "m"\nregion = "r"\nreigon = "x"\n', "reigon"),
        ('mesh = "m"\nregion = "r"\nroles = ["boss"]\n', "boss"),
        ('mesh = "m"\nregion = "r"\n[network]\nrest_port = 70000\n', "rest_port"),
        (f'mesh = "m"\nregion = "r"\n[network]\nadvertise = ["{"h" * 81}:7401"]\n', "advertise"),
        ("mesh = ", FILE_NAME),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ConfigError) as caught:
        NodeConfig.load(tmp_path)
    assert said in caught.value.detail
    assert caught.value.fix


@pytest.mark.parametrize(
    ("text", "meant"),
    [("reigon = 1\n", "region"), ("[content]\nqouta_gb = 1\n", "quota_gb"), ("[agent.docker]\nurll = 1\n", "url")],
)
def test_the_key_that_was_meant_is_named(tmp_path: Path, text: str, meant: str) -> None:
    (tmp_path / FILE_NAME).write_text(f'mesh = "m"\nregion = "r"\n{text}')
    with pytest.raises(ConfigError) as caught:
        NodeConfig.load(tmp_path)
    assert f"`{meant}` was meant" in caught.value.fix


def test_a_table_that_was_added_again_is_told_from_a_misspelt_key(tmp_path: Path) -> None:
    config = NodeConfig(mesh="m", region="r")
    config.save(tmp_path)
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('[agent.docker.base_image_aliases]\n"python:3.6-alpine" = "cornerstore/python:3.11"\n')
    with pytest.raises(ConfigError) as caught:
        NodeConfig.load(tmp_path)
    assert "add the lines to the one that is there" in caught.value.fix


def test_no_config_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig.load(tmp_path)
    assert "bootstrap init" in caught.value.fix


def test_the_manual_shows_every_key_with_its_default() -> None:
    shown = re.search(r"```toml\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
    assert shown is not None
    text = re.sub(r"^# (rest_port|peer_port|dht_port) = \d+$", "", shown[1], flags=re.MULTILINE)
    assert msgspec.convert(tomllib.loads(text), NodeConfig) == NodeConfig(mesh="home", region="eu/de/darmstadt")
    keys = set(re.findall(r"^(?:# )?(\w+) = ", shown[1], re.MULTILINE)) | set(
        re.findall(r"^\[(?:\w+\.)*(\w+)\]", shown[1], re.MULTILINE)
    )
    assert _keys(NodeConfig) <= keys


def _keys(struct: type[msgspec.Struct]) -> set[str]:
    found: set[str] = set()
    for item in msgspec.structs.fields(struct):
        found.add(item.name)
        if isinstance(item.type, type) and issubclass(item.type, msgspec.Struct):
            found |= _keys(item.type)
    return found
