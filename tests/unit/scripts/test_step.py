"""scripts/step.sh: what a person sees while make installs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.scripts import SCRIPTS

PRELUDE = 'LOG=$1; fail() { printf "setup: %s\\n  fix: %s\\n" "$1" "$2" >&2; exit 1; }; . "$2"; set -euo pipefail\n'


def shell(tmp_path: Path, script: str, every_s: float = 0.2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", PRELUDE + script, "bash", str(tmp_path / "log"), str(SCRIPTS / "step.sh")],
        env={"PATH": "/usr/bin:/bin", "SAY_EVERY_S": str(every_s)},
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_a_short_step_is_one_line_with_its_time(tmp_path: Path) -> None:
    ran = shell(tmp_path, "step 'making soup' 'add salt' echo hello", every_s=10)
    assert re.fullmatch(r"making soup \.\.\. \d+\.\d s\n", ran.stdout)
    assert (tmp_path / "log").read_text() == "hello\n"


def test_a_long_step_says_what_it_is_at(tmp_path: Path) -> None:
    slow = """
    slow() { echo first; printf "Unpacking chromium\\r\\n"; sleep 0.7; }
    step 'installing' 'see that apt-get works' slow
    """
    ran = shell(tmp_path, slow)
    assert re.match(r"installing \.\.\. \n  0 s: Unpacking chromium \.\.\. ", ran.stdout), ran.stdout
    assert re.search(r"\.\.\. \d+\.\d s\n\Z", ran.stdout)


def test_a_step_that_fails_shows_the_end_of_its_log_and_the_fix(tmp_path: Path) -> None:
    ran = shell(
        tmp_path, "step 'installing' 'see that apt-get works' sh -c 'echo no network; exit 3'; echo not reached"
    )
    assert ran.returncode == 1
    assert ran.stdout == "installing ... failed\n"
    assert "  | no network" in ran.stderr
    assert "fix: see that apt-get works" in ran.stderr
