# SPDX-License-Identifier: Apache-2.0
"""`pcseg prompt` and `pcseg words` as a user runs them, on good input and on bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from pcseg_core.checkpoint import (
    FILE_NAME,
    CheckpointMeta,
    CheckpointText,
    load_text,
    save_checkpoint,
)
from pcseg_core.cli import app
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.vision.espnetv2 import ESPNetv2
from pcseg_core.vision.text_space import GeneratedText, table_of

Sequence = Callable[..., Path]
STREET = LabelSpace.load("street")
SOURCE = "simulated:seed=5,sweeps=2,beams=16,columns=256,cameras=1,width=96,height=64"


def pcseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows words and regresses the 32 features of a small teacher."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    save_file(ESPNetv2(20, 0.5).state_dict(), str(folder / "teacher.safetensors"))
    config = StudentConfig(
        depth=14, width=0.25, voxel_size_m=0.5, text_channels=16, feature_channels=32
    )
    teacher = {"name": "espnetv2", "weights": str(folder / "teacher.safetensors")}
    meta = CheckpointMeta(
        student=config.model_dump(mode="json"),
        label_space=STREET.to_dict(),
        recipe={"teacher": teacher, "loss": {"regression": 1.0}},
    )
    table = table_of(GeneratedText(16), [*STREET.names, "minivan", "jeep", "lamp post"])
    text = CheckpointText(table, {name: (name,) for name in STREET.names})
    save_checkpoint(folder / FILE_NAME, Student(config, len(STREET)).state_dict(), meta, text)
    return folder


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


def test_measured_words(run: Path, sequence: Sequence, tmp_path: Path) -> None:
    result = pcseg(
        "prompt",
        run,
        "--semantic-kitti",
        sequence(),
        "--words",
        "vehicle: minivan, jeep",
        "--words",
        "pole: lamp-post",
        "--json",
        tmp_path / "f.json",
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "f.json").read_text())
    assert [row["prompt"] for row in report["alone"]] == ["minivan", "jeep", "lamp-post"]
    assert [row["truth"] for row in report["together"]] == ["vehicle", "pole"]
    for row in report["alone"] + report["trained"]:
        assert row["precision"] is None or 0 <= row["precision"] <= 1
        assert (row["recall"] is None) == (row["chance"] == 0)
        if row["answered"] and row["recall"] is not None:
            hits = row["precision"] * row["answered"]
            assert row["recall"] * row["chance"] * report["points"] == pytest.approx(hits)


def pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, level in (("vehicle", 40), ("road", 200)):
        (folder / name).mkdir(parents=True)
        pixels = np.clip(rng.normal(level, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / "a.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    Image.fromarray(mask).save(folder / "vehicle" / "a.mask.png")
    return folder


def test_pictures_instead_of_words(run: Path, sequence: Sequence, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "examples")
    result = pcseg("prompt", run, SOURCE, "--pictures", folder, "--json", tmp_path / "f.json")
    assert result.exit_code == 0, result.output
    classes = json.loads((tmp_path / "f.json").read_text())["classes"]
    assert list(classes) == ["road", "vehicle"]
    result = pcseg("prompt", run, "--semantic-kitti", sequence(), "--pictures", folder)
    assert result.exit_code == 0 and "all groups at once" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a recording"),
        ((SOURCE, "--semantic-kitti", "."), "give a recording"),
        (("--semantic-kitti", "."), "nothing to measure"),
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


def test_groups_are_named_after_classes(run: Path, sequence: Sequence) -> None:
    result = pcseg("prompt", run, "--semantic-kitti", sequence(), "--words", "cars: jeep")
    assert result.exit_code != 0 and "has no class 'cars'" in " ".join(result.output.split())


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
