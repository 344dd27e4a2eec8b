"""What an operator hears of a certificate, and when."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bootstrap.certificates import issue, make_root
from node.membership import certificate_warning

NOW = 1_800_000_000.0
DAY_S = 86_400
ROOT_KEY = Ed25519PrivateKey.generate()
FOUNDER = "ab" * 20
ROOT = make_root(ROOT_KEY, mesh="corner", founder=FOUNDER, now=NOW)
CERTIFICATE = issue(
    Ed25519PrivateKey.generate().public_key(), root=ROOT, root_key=ROOT_KEY, region="eu", roles=["store"], now=NOW
)


@pytest.mark.parametrize(
    ("day", "detail", "fix"),
    [
        (-20_000, "clock says 1972", "timedatectl"),
        (-1, "before the node's certificate begins", "timedatectl"),
        (77, "ends on 2027-04-15", "founding node abababab"),
        (90, "ended on 2027-04-15", "bootstrap join TOKEN"),
        (900, "ended on 2027-04-15", "set the clock"),
    ],
)
def test_what_is_wrong_is_told_with_its_fix(day: int, detail: str, fix: str) -> None:
    warning = certificate_warning(CERTIFICATE, founder=FOUNDER, now=NOW + day * DAY_S)
    assert warning is not None
    assert detail in warning.detail
    assert fix in warning.fix


@pytest.mark.parametrize("day", [0, 59, 61, 75])
def test_a_renewal_that_is_due_is_no_warning_for_the_first_two_weeks(day: int) -> None:
    assert certificate_warning(CERTIFICATE, founder=FOUNDER, now=NOW + day * DAY_S) is None
