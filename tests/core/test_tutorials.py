# SPDX-License-Identifier: Apache-2.0
"""The commands of the tutorials run, in their order, with small drives and two steps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pcseg_core.cli import app

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
ORDER = ("own-bag", "zero-shot", "words", "pretraining")  # later ones use the drives and runs
SMALL = {
    "bag simulate": "--sweeps 2 --beams 16 --columns 256 --cameras 1 --width 96 --height 64",
    "distill": "--steps 2 --device cpu",
    "zero-shot": "--steps 2 --device cpu",
    "pretrain": "--steps 2 --device cpu",
    "probe": "--max-points 500 --device cpu",
    "finetune": "--steps 2 --device cpu",
}
MADE = ("info.png", "report.json", "labeled.png", "prompt.png", "probe.json")


def commands(name: str) -> Iterator[str]:
    text = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8").replace("\\\n", " ")
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.splitlines()


@pytest.mark.slow
def test_the_commands_of_the_tutorials_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert all(len(list(commands(name))) >= 2 for name in ORDER)
    for line in (line for name in ORDER for line in commands(name)):
        program, *words = shlex.split(line, comments=True)
        assert program == "pcseg"
        extra = next((v for k, v in SMALL.items() if words[: len(k.split())] == k.split()), "")
        result = CliRunner().invoke(app, [*words, *extra.split()])
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert all((tmp_path / name).stat().st_size > 0 for name in MADE)
