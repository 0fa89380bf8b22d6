# SPDX-License-Identifier: Apache-2.0
"""The recipe of CLIP alone, end to end on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pcseg_core.data import open_recording
from pcseg_core.learning.distill import distill
from pcseg_core.learning.recipe import load_recipe
from pcseg_core.models.student import StudentConfig
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.recipes import recipe_file
from pcseg_core.vision.text_space import OpenClipText

open_clip = pytest.importorskip("open_clip")

SOURCE = "simulated:seed=5,sweeps=1,beams=16,columns=256,cameras=1,width=96,height=64"
VISION = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def test_clip_teaches_classes_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}
    (tmp_path / "tiny-clip-recipe.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip-recipe.json")
    torch.manual_seed(0)
    state = open_clip.create_model("tiny-clip-recipe", pretrained=None).state_dict()
    weights = tmp_path / "clip.safetensors"
    save_file({k: v.contiguous().clone() for k, v in state.items()}, str(weights))

    (tmp_path / "vit_b_16_openai.safetensors").symlink_to(weights)
    monkeypatch.setenv("PCSEG_WEIGHTS", str(tmp_path))
    recipe = load_recipe(recipe_file("clip"))
    assert recipe.text is not None and recipe.teacher.clip is not None
    small = {"model": "tiny-clip-recipe", "short_side_px": 64, "window_px": 32}
    clip = recipe.teacher.clip.model_copy(update=small)
    space = recipe.text.space.model_copy(update={"model": small["model"], "weights": weights})
    text = recipe.text.model_copy(update={"space": space, "dense": clip})
    recipe = recipe.model_copy(
        update={
            "teacher": recipe.teacher.model_copy(update={"weights": weights, "clip": clip}),
            "text": text,
            "student": StudentConfig(depth=14, width=0.25, voxel_size_m=0.5),
            "optimizer": recipe.optimizer.model_copy(update={"steps": 3, "batch_size": 1}),
            "loss": recipe.loss.model_copy(update={"min_confidence": 0.0}),
        }
    )
    metrics = distill([SOURCE], recipe, tmp_path / "run", device="cpu")
    assert 0 < metrics["final"]["text_distance"] < 2 and "text_classes" not in metrics["final"]
    segmenter = Segmenter.load(tmp_path / "run", device="cpu", precision="fp32")
    assert segmenter.text is not None and segmenter.text.table.known("Lamp-Post")
    direct = OpenClipText("tiny-clip-recipe", weights).embed(["sedan"])
    assert np.allclose(segmenter.text.table.embed(["sedan"]), direct, atol=1e-3)
    segmenter.set_prompts(["sedan", "ground: asphalt, gravel", "*"])
    assert (segmenter.segment(open_recording(SOURCE)[0].cloud).labels >= 0).any()
