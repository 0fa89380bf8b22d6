# SPDX-License-Identifier: Apache-2.0
"""Networks of other libraries and programs teach a student on a short simulated drive."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from pcseg_core.bundled import WEIGHTS_VARIABLE
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cli import app
from pcseg_core.data import open_recording
from pcseg_core.distill.cache import read_arrays
from pcseg_core.known_weights import KNOWN
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.distill import distill
from pcseg_core.learning.pretrain import pretrain
from pcseg_core.learning.recipe import Recipe
from pcseg_core.vision.espnetv2 import ESPNetv2
from pcseg_core.vision.image_list import export_images, pixels_checksum, read_list
from pcseg_core.vision.pixel_classes import load_teacher

SOURCE = "simulated:seed=5,sweeps=2,beams=16,columns=256,cameras=1,width=96,height=64"
ONE_SWEEP = SOURCE.replace("sweeps=2", "sweeps=1")
WEIGHTS = "espnetv2_s2.0_cityscapes_1024x512.safetensors"  # of the default recipe
BUNDLED = {
    "weights": "bundled:simulation_teacher",
    "label_space": "simulation",
    "scales": [1.0],
    "flip": False,
}
NAMES = ("road", "sidewalk", "building", "car")
SMALL: dict[str, Any] = {
    "student": {"depth": 14, "width": 0.25, "voxel_size_m": 0.5},
    "optimizer": {"steps": 2, "batch_size": 1},
}


def recipe(**values: Any) -> Recipe:
    return Recipe.model_validate({**SMALL, "loss": {"min_confidence": 0.0}, **values})


def taught(run: Path) -> list[dict[str, Any]]:
    return [read_arrays(path) for path in sorted((run / "pseudo_labels").glob("*.npz"))]


def test_a_folder_with_the_maps_of_a_teacher_teaches_the_same_student(tmp_path: Path) -> None:
    folder, recording = tmp_path / "images", open_recording(SOURCE)
    export_images(recording, folder)
    teacher, listed = load_teacher(recipe(teacher=BUNDLED).teacher), read_list(folder)
    (folder / "maps").mkdir()
    for sample in recording:
        for frame in sample.cameras:
            stem = listed[pixels_checksum(frame.image)].file
            found = teacher.probabilities(frame.image)
            np.savez(folder / "maps" / f"{stem}.npz", probabilities=found)
    (folder / "names.txt").write_text("\n".join(LabelSpace.load("simulation").names))
    maps = {"name": "folder", "path": str(folder), "label_space": "simulation"}
    for name, block in (("direct", BUNDLED), ("folder", maps)):
        distill([SOURCE], recipe(teacher=block), tmp_path / name, device="cpu")
    pairs = zip(taught(tmp_path / "direct"), taught(tmp_path / "folder"))
    for first, second in pairs:
        assert all(np.array_equal(first[key], second[key]) for key in ("label", "confidence"))
        assert (first["label"] >= 0).sum() > 100
    one, other = (load_checkpoint(tmp_path / name)[0] for name in ("direct", "folder"))
    assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_missing_maps_are_counted_losses(tmp_path: Path) -> None:
    folder, recording = tmp_path / "images", open_recording(SOURCE)
    export_images(recording, folder)
    (folder / "maps").mkdir()
    (folder / "names.txt").write_text("road\n")
    first = recording[0].cameras[0].image
    stem = read_list(folder)[pixels_checksum(first)].file
    np.savez(folder / "maps" / f"{stem}.npz", ids=np.zeros(first.shape[:2], np.int16))
    chosen = recipe(teacher={"name": "folder", "path": str(folder)})
    metrics = distill([SOURCE], chosen, tmp_path / "run", device="cpu")
    assert metrics["sweeps"] == 1
    assert any("no class map" in reason for reason in metrics["skipped"])


def test_a_model_of_transformers_teaches(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = library.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        id2label=dict(enumerate(NAMES)),
        label2id={name: k for k, name in enumerate(NAMES)},
    )
    library.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    block = {"name": "transformers", "model": str(tmp_path / "model"), "short_side_px": 64}
    chosen = recipe(teachers=[{**block, "flip": True}, BUNDLED])
    metrics = distill([SOURCE], chosen, tmp_path / "run", device="cpu")
    assert metrics["sweeps"] == 2 and metrics["steps"] == 2
    stored = load_checkpoint(tmp_path / "run")[1].recipe["teacher"]
    assert stored["name"] == "several" and stored["teachers"][0]["flip"]
    assert Recipe.model_validate(load_checkpoint(tmp_path / "run")[1].recipe) == chosen


def test_a_tower_of_timm_in_open_clip_teaches_words(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    content = {"embed_dim": 64, "vision_cfg": {**vision, "image_size": 160}, "text_cfg": text}
    (tmp_path / "tiny-pooled-recipe.json").write_text(json.dumps(content))
    open_clip.add_model_config(tmp_path / "tiny-pooled-recipe.json")
    torch.manual_seed(0)
    state = open_clip.create_model("tiny-pooled-recipe", pretrained=None).state_dict()
    weights = tmp_path / "clip.safetensors"
    save_file({k: v.contiguous().clone() for k, v in state.items()}, str(weights))
    clip = {"model": "tiny-pooled-recipe", "short_side_px": 160}
    block = {"name": "maskclip", "weights": str(weights), "label_space": "street", "clip": clip}
    space = {"source": "open_clip", "model": clip["model"], "weights": str(weights)}
    words = {"space": space, "source": "maskclip", "dense": clip, "cross_entropy": 0}
    metrics = distill([SOURCE], recipe(teacher=block, text=words), tmp_path / "run", device="cpu")
    assert metrics["sweeps"] == 2 and 0 < metrics["final"]["text_distance"] < 2


@pytest.mark.parametrize("model", ["test_convnext", "test_vit"])
def test_a_network_of_timm_pretrains(tmp_path: Path, model: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    save_file(timm.create_model(model).state_dict(), str(tmp_path / "w.safetensors"))
    encoder = {"name": "timm", "model": model, "weights": str(tmp_path / "w.safetensors")}
    chosen = recipe(encoder=encoder, superpixels={"segments": 20}, loss={"superpixel": 1.0})
    metrics = pretrain([SOURCE], chosen, tmp_path / "run", device="cpu")
    assert metrics["sweeps"] == 2 and np.isfinite(metrics["final"]["superpixel"])


def test_without_a_recipe_the_command_says_which_teacher_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["distill", ONE_SWEEP, "--out", str(tmp_path / "run"), "--steps", "1"]
    missing = CliRunner().invoke(app, words)
    assert missing.exit_code == 2 and "pcseg weights get espnetv2-cityscapes" in missing.output
    assert "pcseg weights get deeplab-cityscapes" in missing.output
    for name, entry in KNOWN.items():
        monkeypatch.setitem(KNOWN, name, replace(entry, sums=()))
    torch.manual_seed(0)
    save_file(ESPNetv2(20, 2.0).state_dict(), str(tmp_path / WEIGHTS))
    one = CliRunner().invoke(app, words)
    assert one.exit_code == 2 and "pcseg weights get deeplab-cityscapes" in one.output
    second = tmp_path / KNOWN["deeplab-cityscapes"].file
    second.write_bytes(b"no network")
    both = CliRunner().invoke(app, words)
    assert both.exit_code == 2 and str(second) in both.output
    assert f"recipe kitti; teacher espnetv2 {tmp_path / WEIGHTS} and litert {second}" in both.output


def test_the_command_shows_a_teacher_before_the_work(tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "image.png"
    Image.fromarray(open_recording(SOURCE)[0].cameras[0].image).save(picture)
    block = json.dumps({**BUNDLED, "name": "espnetv2"})
    out = tmp_path / "labels.png"
    words = ["teacher", "check", "--image", str(picture), "--teacher", block, "--picture", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "trunk" in done.output and "vegetation" in done.output and "96 x 64 image" in done.output
    assert Image.open(out).size[0] == 96
    figures = json.loads(CliRunner().invoke(app, [*words, "--json", "-"]).stdout)
    assert "trunk" in [row["name"] for row in figures["classes"]]
    both = CliRunner().invoke(app, [*words, "--recipe", "simulated"])
    assert both.exit_code == 2 and "--recipe or --teacher" in both.output
    images = CliRunner().invoke(app, ["images", SOURCE, "--out", str(tmp_path / "folder")])
    assert images.exit_code == 0 and "2 images done, 0 kept" in images.output
    assert len(read_list(tmp_path / "folder")) == 2
