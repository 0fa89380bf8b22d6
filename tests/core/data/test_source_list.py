# SPDX-License-Identifier: Apache-2.0
"""Patterns and lists name many sources; a pattern or list of nothing is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pcseg_core.cli import app
from pcseg_core.data.source_list import expand_sources
from pcseg_core.errors import InputError


@pytest.fixture
def drives(tmp_path: Path) -> Path:
    for name in ("2026-11-01", "2026-11-02", "2026-12-01", "[odd]"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_patterns_stand_for_what_they_match(drives: Path) -> None:
    november = [f"{drives}/2026-11-01", f"{drives}/2026-11-02"]
    assert expand_sources([f"{drives}/2026-11-*"]) == november
    options = [f"bag:{path}?poses=none&stamp=*" for path in november]
    assert expand_sources([f"bag:{drives}/2026-11-0[12]?poses=none&stamp=*"]) == options
    assert expand_sources([f"{drives}/2026-1*-01", november[1], november[0]]) == [
        november[0],
        f"{drives}/2026-12-01",
        november[1],
    ]
    plain = [f"{drives}/[odd]", "simulated:seed=1,sweeps=2", f"{drives}/none?a=b"]
    assert expand_sources(plain) == plain


def test_a_list_names_sources_relative_to_itself(drives: Path) -> None:
    file = drives / "fleet.txt"
    file.write_text(
        "# November\n\n2026-11-*\nbag:2026-12-01?poses=none\nsimulated:seed=1\n/abs/olute\n"
    )
    assert expand_sources([f"@{file}"]) == [
        f"{drives}/2026-11-01",
        f"{drives}/2026-11-02",
        f"bag:{drives}/2026-12-01?poses=none",
        "simulated:seed=1",
        "/abs/olute",
    ]


def test_nothing_is_an_error_before_any_work(drives: Path) -> None:
    with pytest.raises(InputError, match=r"2027-\*: no file or folder matches"):
        expand_sources([f"{drives}/2027-*"])
    with pytest.raises(InputError, match=r"@.*none\.txt: cannot read the list"):
        expand_sources([f"@{drives}/none.txt"])
    file = drives / "fleet.txt"
    file.write_text("# nothing\n")
    with pytest.raises(InputError, match="names no source"):
        expand_sources([f"@{file}"])
    file.write_text("@other.txt\n")
    with pytest.raises(InputError, match="a list in a list"):
        expand_sources([f"@{file}"])
    arguments = ["--recipe", "simulated", "--out", str(drives / "run")]
    result = CliRunner().invoke(app, ["distill", f"{drives}/2027-*", *arguments])
    assert result.exit_code == 2 and "matches this pattern" in result.output
    assert not (drives / "run").exists()
