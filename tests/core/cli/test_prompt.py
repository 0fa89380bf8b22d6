# SPDX-License-Identifier: Apache-2.0
"""`pcseg prompt` and `pcseg words` as a user runs them, on good input and on bad."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from small_runs import example_pictures, write_word_run
from typer.testing import CliRunner, Result

from pcseg_core.checkpoint import load_text
from pcseg_core.cli import app

SOURCE = "simulated:seed=5,sweeps=2,beams=16,columns=256,cameras=1,width=96,height=64"


def pcseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_word_run(tmp_path_factory.mktemp("run"))


def test_words_on_a_sweep(run: Path, tmp_path: Path) -> None:
    picture, figures = tmp_path / "p.png", tmp_path / "f.json"
    result = pcseg(
        "prompt",
        run,
        SOURCE,
        "--words",
        "vehicle: minivan, Jeep",
        "--words",
        "*",
        "--sweep",
        -1,
        "--picture",
        picture,
        "--json",
        figures,
    )
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    classes = json.loads(figures.read_text())["classes"]
    assert list(classes) == ["vehicle", "everything else"]
    assert 0.9 < sum(values["share"] for values in classes.values()) <= 1.0001
    assert "everything else" in result.output


def test_pictures_instead_of_words(run: Path, tmp_path: Path) -> None:
    folder = example_pictures(tmp_path / "examples")
    result = pcseg("prompt", run, SOURCE, "--pictures", folder, "--json", tmp_path / "f.json")
    assert result.exit_code == 0, result.output
    classes = json.loads((tmp_path / "f.json").read_text())["classes"]
    assert list(classes) == ["road", "vehicle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        ((SOURCE, "--words", "minivans"), "no vector for 'minivans' (near: minivan"),
        ((SOURCE, "--words", "дом"), "no vector for 'дом'"),
        ((SOURCE, "--words", "*"), "nothing named"),
        ((SOURCE, "--words", "jeep", "--sweep", "7"), "has 2 sweeps"),
        ((SOURCE, "--words", "jeep", "--picture", "x.txt"), "cannot write '.txt'"),
        ((SOURCE, "--words", "jeep", "--pictures", "nowhere"), "not both"),
        ((SOURCE, "--pictures", "nowhere"), "no such folder"),
    ],
)
def test_refusals(run: Path, arguments: tuple[str, ...], message: str) -> None:
    result = pcseg("prompt", run, *arguments)
    assert result.exit_code != 0
    assert message in " ".join((result.output + str(result.exception)).split())


def test_listing_words(run: Path, tiny_run: Path) -> None:
    listed = pcseg("words", run)
    assert listed.exit_code == 0 and "trained class road: road" in listed.output
    assert "minivan  (generated direction)" in listed.output
    found = pcseg("words", run, "--find", "lamp").output.splitlines()
    assert found[0].startswith("lamp post")
    without = pcseg("words", tiny_run)
    assert without.exit_code != 0 and "trained without a text head" in without.output


def test_adding_words_from_a_text_encoder(run: Path, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 16, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-words.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-words.json")
    state = open_clip.create_model("tiny-words", pretrained=None).state_dict()
    save_file(
        {k: v.contiguous().clone() for k, v in state.items()}, str(tmp_path / "w.safetensors")
    )
    more = tmp_path / "more.safetensors"
    options = ("--model", "tiny-words", "--weights", tmp_path / "w.safetensors", "--out", more)
    result = pcseg("words", run, "asphalt", "Jeep", *options, "--template", "a {}")
    assert result.exit_code == 0, result.output
    before, after = load_text(run), load_text(more)
    assert before is not None and after is not None
    assert after.table.words == (*before.table.words, "asphalt")  # jeep keeps its vector
    assert "asphalt" not in after.table.generated
    assert np.allclose(after.table.embed(["jeep"]), before.table.embed(["jeep"]))
    assert pcseg("prompt", more, SOURCE, "--words", "asphalt", "--words", "jeep").exit_code == 0
    for wrong in (("asphalt",), ("asphalt", *options, "--template", "no braces")):
        assert pcseg("words", run, *wrong).exit_code != 0
