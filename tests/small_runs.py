# SPDX-License-Identifier: Apache-2.0
"""Small labeled scans, run directories and SemanticKITTI folders, for training and its studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, CheckpointText, save_checkpoint
from pcseg_core.labels import IGNORE, NO_CLASSES, LabelSpace
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.probe import Scan
from pcseg_core.learning.recipe import Recipe
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.models.waffleiron import WaffleIronConfig
from pcseg_core.vision.espnetv2 import ESPNetv2
from pcseg_core.vision.text_space import GeneratedText, table_of

SMALL = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5)
SMALL_WAFFLEIRON = StudentConfig(
    network="waffleiron",
    inputs=("intensity", "x", "y", "z", "range"),
    voxel_size_m=0.5,
    waffleiron=WaffleIronConfig(
        layers=4,
        channels=16,
        neighbors=4,
        box_min_m=(-16, -16, -4),
        box_max_m=(16, 16, 4),
        cells=(32, 32, 8),
    ),
)
STREET = LabelSpace.load("street")
DRIVE = "simulated:seed={},sweeps=2,stride=5,beams=16,columns=256,cameras={},width=160,height=96"


def scan(seed: int, points: int = 600, truth_of_height: bool = True) -> Scan:
    """Points whose class follows from their height; every tenth has no label."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform((-10, -10, -2), (10, 10, 2), (points, 3)).astype(np.float32)
    truth = (np.floor(xyz[:, 2] / 2) + 1).astype(np.int64)  # 0 below, 1 above the sensor
    truth[::10] = IGNORE
    return Scan(
        f"scan{seed}", xyz, rng.random(points).astype(np.float32), truth, np.array([3, 0] + [0] * 6)
    )


def sweep(scene: str, seed: int = 0) -> TrainingSweep:
    found = scan(seed)
    labels = found.truth.astype(np.int16)
    confidence = np.ones(len(labels), np.float32)
    return TrainingSweep(found.xyz, found.intensity, labels, confidence, scene)


def write_run(
    folder: Path,
    seed: int = 0,
    config: StudentConfig = SMALL,
    classes: LabelSpace = NO_CLASSES,
    **settings: object,
) -> Path:
    """A run directory as `pcseg pretrain` leaves it; `settings` go to the student."""
    torch.manual_seed(seed)
    config = config.model_copy(update=settings)
    student = Student(config, len(classes))
    meta = CheckpointMeta(
        format_version=1,
        student=config.model_dump(mode="json"),
        label_space=classes.to_dict(),
        pcseg_version="0",
    )
    save_checkpoint(folder / "checkpoint.safetensors", student.state_dict(), meta)
    return folder


def semantic_kitti(folder: Path, scans: int) -> Path:
    """A folder in SemanticKITTI layout: a road and walls."""
    rng = np.random.default_rng(len(folder.name))
    for k in range(scans):
        xyz = rng.uniform((-20, -20, -2), (20, 20, 2), (2000, 3))
        raw = np.where(xyz[:, 2] < 0, 40, 50).astype("<u4")
        points = np.column_stack([xyz, rng.random(2000)]).astype("<f4")
        for name, data in (("velodyne", points), ("labels", raw)):
            path = folder / name / f"{k:06d}.{'bin' if name == 'velodyne' else 'label'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.tobytes())
    return folder


def write_word_run(folder: Path) -> Path:
    """A run that knows words and regresses the 32 features of a small teacher."""
    torch.manual_seed(0)
    save_file(ESPNetv2(20, 0.5).state_dict(), str(folder / "teacher.safetensors"))
    config = SMALL.model_copy(update={"text_channels": 16, "feature_channels": 32})
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


def example_pictures(folder: Path) -> Path:
    """Pictures of two classes, one with a mask."""
    rng = np.random.default_rng(0)
    for name, level in (("vehicle", 40), ("road", 200)):
        (folder / name).mkdir(parents=True)
        pixels = np.clip(rng.normal(level, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / "a.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    Image.fromarray(mask).save(folder / "vehicle" / "a.mask.png")
    return folder


def tiny_recipe(**changes: Any) -> Recipe:
    """A recipe of zero-shot training that takes seconds."""
    values: dict[str, Any] = {
        "teacher": {
            "weights": "bundled:simulation_teacher",
            "label_space": "simulation",
            "scales": (1.0,),
            "flip": False,
        },
        "text": {"space": {"channels": 32}},
        "supervision": "zero-shot",
        "student": {"depth": 14, "width": 0.25, "voxel_size_m": 0.5},
        "optimizer": {"steps": 6, "batch_size": 2},
        "loss": {"min_confidence": 0.3},
        "alignment": {"patch_px": 8, "channels": 16},
        **changes,
    }
    return Recipe.model_validate(values)
