"""What people type as the URL of a controller."""

from __future__ import annotations

import pytest

from client.rest import base_url
from protocol.problems import ConfigError


@pytest.mark.parametrize(
    "typed", ["10.1.0.10:7400", "http://10.1.0.10:7400", "http://10.1.0.10:7400/", "http://10.1.0.10:7400/v1/"]
)
def test_the_scheme_may_be_left_out_and_the_path_given(typed: str) -> None:
    assert base_url(typed) == "http://10.1.0.10:7400"


@pytest.mark.parametrize("typed", ["", "ftp://10.1.0.10", "http://", "http://a b"])
def test_anything_else_is_refused_with_an_example(typed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        base_url(typed)
    assert "http://" in caught.value.fix
