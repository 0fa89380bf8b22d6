# SPDX-License-Identifier: Apache-2.0
"""The demo, step by step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field
from rich.console import Console

from pcseg_core import progress
from pcseg_core.bundled import BUNDLED
from pcseg_core.checkpoint import FILE_NAME
from pcseg_core.config import Section, load_yaml
from pcseg_core.data import open_recording
from pcseg_core.demo import picture
from pcseg_core.demo.measure import ALL, SEEN, UNSEEN, Scores, measure
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.errors import InputError, MissingDependency
from pcseg_core.evaluation.live import ReplayResult, find_replay, replay_in_process
from pcseg_core.files import FolderKind, claim_folder, write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.distill import distill
from pcseg_core.learning.recipe import LossConfig, OptimizerConfig, Recipe
from pcseg_core.models.student import StudentConfig
from pcseg_core.online.pipeline import Pipeline
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.to_bag import write_simulated_bag
from pcseg_core.viewer.rerun import record, recording_views
from pcseg_core.vision.pixel_classes import TeacherConfig, load_teacher
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

_SETTINGS = "settings.yaml"
_TEACHER_WIDTH_PX = 320  # width of the images that the bundled teacher was trained on
_FIRST_SEED = 100_000  # beyond the seeds of every town that bundled networks were trained in
console = Console(stderr=True, highlight=False, soft_wrap=True)


class DemoSettings(Section):
    """Size of the demo; the defaults take six minutes on two cores."""

    seed: int = Field(0, ge=0, le=10_000, description="Towns, streets, traffic and training")
    training_drives: int = Field(10, ge=1, le=40, description="Number of training drives")
    training_sweeps: int = Field(
        4, ge=1, description="Sweeps of each: many short drives train better than one long one"
    )
    replay_sweeps: int = Field(20, ge=1, description="Sweeps of the drive that is replayed")
    rate_hz: float = Field(5.0, ge=1, le=20, description="Sweeps per second [Hz]")
    speed_mps: float = Field(10.0, ge=0, le=30, description="Speed of the vehicle [m/s]")
    beams: int = Field(64, ge=1, le=128, description="Beams of the LiDAR")
    columns: int = Field(1024, ge=16, le=4096, description="Firings of all beams per sweep")
    width: int = Field(640, ge=64, description="Image width, half of it in training drives [px]")
    height: int = Field(384, ge=64, description="Image height, half of it in training drives [px]")
    voxel_size_m: float = Field(0.15, gt=0.01, le=2, description="Voxels of the student [m]")
    steps: int = Field(400, ge=1, description="Steps of the student's training")
    use_ros: bool = Field(True, description="Replay over DDS through the ROS 2 node")

    def training_drive(self, number: int) -> SimulatedDrive:
        """A drive for training; each number is another town."""
        return self._drive(number, self.training_sweeps, self.width // 2, self.height // 2)

    def live_drive(self) -> SimulatedDrive:
        """The drive that is replayed, in a town of its own."""
        return self._drive(51, self.replay_sweeps, self.width, self.height)

    def _drive(self, number: int, sweeps: int, width: int, height: int) -> SimulatedDrive:
        return SimulatedDrive(
            _FIRST_SEED + 100 * self.seed + number,
            sweeps=sweeps,
            beams=self.beams,
            columns=self.columns,
            width=width,
            height=height,
            rate_hz=self.rate_hz,
            speed_mps=self.speed_mps,
        )

    def teacher(self, width: int) -> TeacherConfig:
        """The bundled teacher, scaling images of a width to the width of its own training."""
        return ESPNetv2Config(
            weights=Path(f"{BUNDLED}:simulation_teacher"),
            label_space="simulation",
            scales=(_TEACHER_WIDTH_PX / width,),
            flip=True,
        )

    def recipe(self) -> Recipe:
        """Teacher, student and training."""
        teacher = self.teacher(self.width // 2)
        student = StudentConfig(depth=14, width=0.25, voxel_size_m=self.voxel_size_m)
        optimizer = OptimizerConfig(steps=self.steps, learning_rate=6e-3)
        loss = LossConfig(min_confidence=0.45)  # the small teacher has low confidences
        return Recipe(
            teacher=teacher, student=student, optimizer=optimizer, loss=loss, seed=self.seed
        )


def run_demo(settings: DemoSettings, out: Path, *, fresh: bool = False) -> dict[str, Any]:
    """Run the demo. Interrupted runs resume: make the same call again.

    Leaves in `out`: bags/, run/ (the training), logs/, report.json, picture.png and drive.rrd.

    Args:
        settings: size of the demo.
        out: new folder, or the folder of a demo of the same settings.
        fresh: delete an earlier demo in `out`.

    Returns:
        Content of report.json.

    Raises:
        InputError: `out` holds something else, or a demo of other settings and `fresh` is not
            given.
    """
    seconds: dict[str, float] = {}
    _claim(settings, out, fresh)
    with _step("1/5 recording drives through simulated towns", "record", seconds):
        training = [
            _bag(settings.training_drive(k), out / "bags" / f"training_{k}")
            for k in range(settings.training_drives)
        ]
        live = _bag(settings.live_drive(), out / "bags" / "live")
    # The student learns from the labels of an image network; no ground truth is used.
    recipe, teacher = settings.recipe(), settings.teacher(settings.width)
    with _step("2/5 distilling a LiDAR network from the camera images", "distil", seconds):
        if not (out / "run" / FILE_NAME).is_file():
            distill([str(bag) for bag in training], recipe, out / "run")
    with _step("3/5 replaying another drive to it, LiDAR only", "replay", seconds):
        replayed = _replay(settings, live, out)
    with _step("4/5 measuring against exact truth", "measure", seconds):
        scores, bundled = _measure(recipe.labels, live, replayed, teacher, out)
    with _step("5/5 drawing", "draw", seconds):
        _draw(live, scores, recipe.labels, teacher, out)
    report = _report(settings, replayed, scores, bundled, seconds)
    write_atomic(out / "report.json", json.dumps(report, indent=1))
    return report


def _claim(settings: DemoSettings, out: Path, fresh: bool) -> None:
    """Continue a demo of the same settings; with `fresh` delete any demo first."""
    if claim_folder(out, DEMO, fresh=fresh) and _stored(out / _SETTINGS) != settings:
        raise InputError(
            f"{out} holds a demo of other settings; choose another --out, or start over with "
            "--fresh"
        )
    write_atomic(out / _SETTINGS, yaml.safe_dump(settings.model_dump(), sort_keys=False))


def _stored(marker: Path) -> DemoSettings:
    return load_yaml(marker, DemoSettings)


DEMO = FolderKind(
    "demo",
    _SETTINGS,
    _stored,
    (
        "bags/*/metadata.yaml",
        "bags/*/labels.yaml",
        "bags/*/*.mcap",
        "run/recipe.yaml",
        "run/metrics.json",
        f"run/{FILE_NAME}",
        "run/last.ckpt",
        "run/cache/*.npz",
        "run/pseudo_labels/*.npz",
        "run/logs/hparams.yaml",
        "run/logs/metrics.csv",
        "logs/*.log",
        "report.json",
        "picture.png",
        "drive.rrd",
    ),
)


@contextmanager
def _step(title: str, name: str, seconds: dict[str, float]) -> Iterator[None]:
    console.print(f"[bold]{title}[/]")
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 1)


def _bag(recording: SimulatedDrive, path: Path) -> Path:
    if not (path / "labels.yaml").is_file():
        write_simulated_bag(recording, path, force=True)
    console.print(f"   {path}: {recording.name}, {len(recording)} sweeps with their images")
    return path


def _replay(settings: DemoSettings, bag: Path, out: Path) -> ReplayResult:
    replay, problem = find_replay() if settings.use_ros else (replay_in_process, "--no-ros")
    if problem:
        console.print(f"[yellow]   no DDS here ({problem}): the network runs in this process[/]")
    with progress.bar("replaying", transient=True):
        return replay(bag, (out / "run" / FILE_NAME).resolve(), out / "logs", None)


def _measure(
    config: PseudoLabelConfig, bag: Path, replayed: ReplayResult, teacher: TeacherConfig, out: Path
) -> tuple[Scores, dict[str, Any]]:
    student = Segmenter.load(out / "run").label_space
    bundled = Segmenter.load(BUNDLED)
    recording = open_recording(f"bag:{bag}", trained=bundled.trained_on)
    labeler = load_teacher(teacher)
    scores = measure(recording, replayed, student, labeler, Pipeline(bundled), config)
    return scores, bundled.meta.metrics


def _draw(
    bag: Path, scores: Scores, config: PseudoLabelConfig, teacher: TeacherConfig, out: Path
) -> None:
    student = Pipeline(Segmenter.load(out / "run"))
    recording = open_recording(f"bag:{bag}", trained=student.trained_on)
    sample = recording[len(recording) // 2]
    picture.draw(sample, student, load_teacher(teacher), config, scores, out / "picture.png")
    try:
        space = LabelSpace.load(config.label_space)
        views = recording_views(recording, space, student, range(len(recording)))
        drawn = progress.tracked(views, "drawing", len(recording))
        record(drawn, space, out / "drive.rrd", max_points=30_000)
    except MissingDependency as problem:
        console.print(f"[yellow]   no drive.rrd: {problem}[/]")


def _report(
    settings: DemoSettings,
    replayed: ReplayResult,
    scores: Scores,
    bundled: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    def miou(method: str, points: str) -> float | None:
        value = scores.miou(method, points)
        return None if math.isnan(value) else round(value, 4)

    return {
        "student_miou": miou("student", SEEN),
        "teacher_miou": miou("teacher", SEEN),
        "bundled_miou": miou("bundled", SEEN),
        "student_miou_unseen": miou("student", UNSEEN),
        "bundled_miou_unseen": miou("bundled", UNSEEN),
        "student_miou_all": miou("student", ALL),
        "bundled_miou_all": miou("bundled", ALL),
        "seen_share": round(scores.seen_share, 4),
        "label_space": scores.space.name,
        "transport": replayed.transport,
        "sweeps_sent": replayed.sent,
        "sweeps_answered": len(replayed.labels),
        "drops": replayed.dropped,
        "stages_ms": {k: {"p50": v[0], "p95": v[1]} for k, v in replayed.stages_ms.items()},
        "seconds": seconds,
        "classes": scores.as_dict(),
        "bundled_training": bundled,
        "settings": settings.model_dump(),
    }
