# SPDX-License-Identifier: Apache-2.0
"""Trainings by several processes: the steps of one, the same labels; killed ones resume."""

from __future__ import annotations

import csv
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import in_processes
from small_runs import SMALL, SMALL_WAFFLEIRON, STREET, sweep, write_run

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.data import open_recording
from pcseg_core.data.sample import Sample
from pcseg_core.distill.alignment import AlignmentConfig
from pcseg_core.distill.cache import read_arrays
from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.lidar_teacher import LidarTargets
from pcseg_core.distill.observation import ClassEvidence, Observer
from pcseg_core.distill.pixels import PointPixels
from pcseg_core.errors import InputError
from pcseg_core.learning.dataset import Batch, TrainingSweep
from pcseg_core.learning.distill import distill
from pcseg_core.learning.distributed import agreed_start, join, ranks
from pcseg_core.learning.finetune import FinetuneRecipe, finetune
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives.alignment import Alignment
from pcseg_core.learning.objectives.lidar_teacher import LidarDistillation
from pcseg_core.learning.objectives.regression import Regression
from pcseg_core.learning.objectives.segmentation import Segmentation, label_counts
from pcseg_core.learning.objectives.self_training import SelfTraining
from pcseg_core.learning.recipe import LossConfig, OptimizerConfig, Recipe, TrainingRecipe
from pcseg_core.learning.runs import observe
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.self_labels import RoundsConfig
from pcseg_core.learning.trainer import train
from pcseg_core.learning.zero_shot_config import SelfTrainingConfig
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.vision.pixel_classes import load_teacher

SOURCES = [
    f"simulated:seed={seed},sweeps=2,beams=16,columns=128,cameras=1,width=64,height=48"
    for seed in (5, 6)
]
TAUGHT = Recipe.model_validate(
    {
        "teacher": {
            "weights": "bundled:simulation_teacher",
            "label_space": "simulation",
            "scales": [1.0],
            "flip": False,
        },
        "student": {"depth": 14, "width": 0.25, "voxel_size_m": 0.5},
        "optimizer": {"steps": 4, "batch_size": 2},
        "loss": {"min_confidence": 0.0},
        "rounds": {"count": 1, "steps": 1, "views": 1},
    }
)


def rich(scene: str, seed: int) -> TrainingSweep:
    """A sweep with image features in two patches, and targets of a 3D teacher."""
    rng, plain = np.random.default_rng(seed), sweep(scene, seed)
    pixels = PointPixels(
        np.arange(0, 600, 3, dtype=np.int32),
        rng.random((200, 8)).astype(np.float16),
        patch=np.repeat([0, 1], 100).astype(np.int32),
        patch_image=rng.random((2, 8)).astype(np.float16),
    )
    log = np.log(rng.dirichlet(np.ones(len(STREET)), 20)).astype(np.float16)
    return replace(plain, pixels=pixels, lidar=LidarTargets(np.arange(600) % 20, log))


class _Taught:
    """Options of a 3D teacher."""

    def __init__(self) -> None:
        self.config = TAUGHT.teacher_3d or type("", (), {"logits": 1.0, "temperature": 2.0})()
        self.features_weight, self.channels = 0.0, 0


class Whole:
    """The sectors of both of two processes, for one."""

    def __init__(self, sectors: LabeledSectors) -> None:
        self.sectors = sectors

    def draw(self, step: int, rank: int, world: int) -> list[Batch]:
        return [sector for rank in (0, 1) for sector in self.sectors.draw(step, rank, 2)]


def module_of(whole: bool, config: StudentConfig, steps: int) -> TrainingModule:
    """All objectives, on sweeps of which one has labels alone."""
    sweeps = [rich("a", 1), rich("b", 2), sweep("c", 3)]
    optimizer = OptimizerConfig(steps=steps, batch_size=2, accumulate=2, learning_rate=1e-3)
    recipe = TrainingRecipe(optimizer=optimizer)
    torch.manual_seed(0)
    student = Student(config.model_copy(update={"feature_channels": 8}), len(STREET))
    counts = label_counts(sweeps, len(STREET), 0.0)
    width, known = student.network.feature_channels, np.ones(len(STREET), bool)
    objectives = [
        Segmentation(LossConfig(range_balance=0.5), counts),
        Regression(1.0),
        LidarDistillation(_Taught(), known, counts.sum(1), 0.5, width),  # type: ignore[arg-type]
        Alignment(width, 8, AlignmentConfig(channels=8, min_points=1)),
    ]
    own = SelfTrainingConfig(start=0.0)
    sectors = LabeledSectors(sweeps, recipe, STREET)
    return TrainingModule(
        student,
        objectives,
        Whole(sectors) if whole else sectors,
        optimizer,
        self_training=SelfTraining(own, torch.ones(len(STREET), dtype=torch.bool), steps, 0),
    )


def trained(module: TrainingModule, out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients of the first step of a training, and the weights at its end."""
    gradients: dict[str, torch.Tensor] = {}

    def remember(_: object) -> None:
        for name, value in module.named_parameters():
            if value.grad is not None:
                gradients.setdefault(name, value.grad.clone())

    module.on_before_optimizer_step = remember  # type: ignore[method-assign]
    train(module, out, "cpu")
    return {"gradients": gradients, "weights": module.student.state_dict()}


@pytest.mark.parametrize("config", [SMALL, SMALL_WAFFLEIRON], ids=["minkunet", "waffleiron"])
def test_two_processes_take_the_steps_of_one(config: StudentConfig, tmp_path: Path) -> None:
    def action() -> None:
        join(False)
        torch.save(trained(module_of(False, config, 2), tmp_path), tmp_path / f"{ranks()[0]}.pt")

    runs(action, tmp_path / "logs")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = trained(module_of(True, config, 2), tmp_path / "one")
    assert first["weights"].keys() == alone["weights"].keys()
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    assert len(alone["gradients"]) == len(first["gradients"]) > 20
    for name, value in alone["gradients"].items():
        scale = float(value.abs().max()) + 1e-3
        difference = float((first["gradients"][name] - value).abs().max())
        assert difference < 2e-3 * scale, (name, difference, scale)
    running = [name for name in alone["weights"] if name.endswith("running_var")]
    for own, other in ((first["weights"][name], alone["weights"][name]) for name in running):
        torch.testing.assert_close(own, other, rtol=1e-2, atol=1e-4)


def test_accumulated_gradients_are_those_of_the_mean_loss(tmp_path: Path) -> None:
    """Batches without batch norms: two batches of a step count as their mean."""
    module = module_of(True, SMALL_WAFFLEIRON, 2)
    seen: list[int] = []
    real = module.sectors.draw

    def draw(step: int, rank: int, world: int) -> Sequence[Batch]:
        seen.append(step)
        return real(step, rank, world)

    module.sectors.draw = draw  # type: ignore[method-assign, assignment]
    figures = train(module, tmp_path, "cpu")
    assert figures["steps"] == 2 and seen == [0, 1, 2, 3]
    assert int(module.averaged.n_averaged) == 2


def runs(action: Callable[[], object], logs: Path) -> None:
    codes = in_processes(2, action, logs)
    assert codes == [0, 0], (logs / "0.txt").read_text() + (logs / "1.txt").read_text()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run)[0]


class _Diversity:
    """In place of the diversity of recordings, which takes long to find out."""

    def __init__(self, _: object) -> None: ...

    def summary(self) -> str:
        return ""


def test_a_distillation_by_two_processes_resumes_when_one_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcseg_core.learning.distill.diversity", _Diversity)
    cache = tmp_path / "cache"
    short = {"rounds": RoundsConfig(), "optimizer": OptimizerConfig(steps=1, batch_size=1)}
    distill(SOURCES, TAUGHT.model_copy(update=short), tmp_path / "one", cache, "cpu")

    def whole(out: str) -> dict[str, Any]:
        import pcseg_core.learning.module as module

        module.STEPS_PER_EPOCH = 2
        return distill(SOURCES, TAUGHT, tmp_path / out, cache, "cpu")

    def killed() -> None:
        real = TrainingModule.training_step

        def fragile(self: TrainingModule, batch: Any, index: int) -> Any:
            if self.global_step == 3 and ranks()[0] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, batch, index)

        TrainingModule.training_step = fragile  # type: ignore[method-assign]
        whole("two")

    runs(partial(whole, "whole"), tmp_path / "logs")
    codes = in_processes(2, killed, tmp_path / "logs")
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    assert (tmp_path / "two/last.ckpt").is_file()
    assert not (tmp_path / "two/checkpoint.safetensors").exists()
    runs(partial(whole, "two"), tmp_path / "logs")
    expected = weights(tmp_path / "whole")
    for name, value in weights(tmp_path / "two").items():
        assert torch.equal(value, expected[name]), name
    labels = [sorted((tmp_path / out / "pseudo_labels").iterdir()) for out in ("one", "two")]
    for mine, theirs in zip(*labels, strict=True):
        one, two = read_arrays(mine), read_arrays(theirs)
        assert mine.name == theirs.name and np.array_equal(one["label"], two["label"])


def test_processes_that_start_again_do_not_meet_those_before() -> None:
    store = torch.distributed.HashStore()

    def start(late: int) -> list[str]:
        def join(rank: int) -> None:
            time.sleep(0.3 * (rank == late))
            names[rank] = agreed_start(store, rank, 3)

        names: dict[int, str] = {}
        threads = [threading.Thread(target=join, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return [names[rank] for rank in range(3)]

    found = [start(late) for late in range(3)]
    assert all(len(set(names)) == 1 for names in found)
    assert len({names[0] for names in found}) == 3


def test_processes_look_at_each_sweep_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a cluster has labeled two sweeps, one sweep cannot be used."""
    observed = observer(tmp_path)
    recordings = {source: open_recording(source) for source in SOURCES}
    observed.observe_sweeps(SOURCES[0], recordings[SOURCES[0]], range(2))
    teacher = observed.evidence

    def look(_: ClassEvidence, sample: Sample, xyz: np.ndarray) -> Evidence:
        (tmp_path / f"{sample.name.replace('/', '-')}-{os.getpid()}").touch()
        if sample.name == bad:
            raise InputError("no camera sees any point of the sweep")
        return real(teacher, sample, xyz)

    real, bad = ClassEvidence.evidence, recordings[SOURCES[1]][1].name
    monkeypatch.setattr(ClassEvidence, "evidence", look)

    def action() -> None:
        join(False)
        own = observer(tmp_path)
        found = observe(own, recordings, "labeling")
        (tmp_path / f"{ranks()[0]}.txt").write_text(f"{[one.index for one in found]} {own.skipped}")

    runs(action, tmp_path / "logs")
    looked = [path.name.rpartition("-")[0] for path in tmp_path.iterdir() if path.suffix == ""]
    assert len([name for name in looked if "simulated" in name]) == 2
    told = {(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)}
    assert len(told) == 1 and told.pop().startswith("[0, 1, 0] Counter({'no camera sees")


def observer(folder: Path) -> Observer:
    teacher = load_teacher(TAUGHT.required_teacher(), "cpu")
    evidence = ClassEvidence(teacher, TAUGHT.labels, TAUGHT.required_teacher().identity)
    return Observer(folder / "cache", evidence=evidence)


def test_a_run_of_two_processes_ends_with_one(tmp_path: Path) -> None:
    start = write_run(tmp_path / "start")
    sweeps = [sweep("a", 1), sweep("b", 2)]

    def run(steps: int, out: str) -> dict[str, Any]:
        optimizer = OptimizerConfig(steps=20, batch_size=2)
        recipe = FinetuneRecipe(optimizer=optimizer)
        join(False)
        import pcseg_core.learning.module as module

        module.STEPS_PER_EPOCH = 5
        real = module.TrainingModule.training_step

        def stopped(self: TrainingModule, batch: Any, index: int) -> Any:
            if self.global_step == steps:
                raise KeyboardInterrupt
            return real(self, batch, index)

        module.TrainingModule.training_step = stopped  # type: ignore[method-assign]
        try:
            return finetune(start, sweeps, [], STREET, recipe, tmp_path / out, "cpu")
        finally:
            module.TrainingModule.training_step = real  # type: ignore[method-assign]

    in_processes(2, partial(run, 12, "run"), tmp_path / "logs")
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 10
    figures = run(-1, "run")
    assert figures["steps"] == 20
    with (tmp_path / "run/logs/metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2 and losses[1] < 0.9 * losses[0]


def test_each_process_needs_a_sector(tmp_path: Path) -> None:
    sectors = LabeledSectors([sweep("a")], TrainingRecipe(optimizer=OptimizerConfig(batch_size=2)))
    with pytest.raises(InputError, match="gives 2 of 3 processes something to do; give at least 3"):
        sectors.draw(0, 0, 3)


def test_half_precision_leaves_weights_and_losses_in_full(tmp_path: Path) -> None:
    module, whole = (module_of(True, SMALL, 1) for _ in range(2))
    module.optimizer = module.optimizer.model_copy(update={"precision": "bf16"})
    (batch,) = [whole.sectors.draw(0, 0, 1)[0]]
    half, full = (m._output(batch.points) for m in (module, whole))
    assert half.logits.dtype == torch.float32
    assert not torch.equal(half.logits, full.logits)
    torch.testing.assert_close(half.logits, full.logits, rtol=0.1, atol=0.1)
    assert train(module, tmp_path, "cpu")["final"]["loss"] > 0
    assert {value.dtype for value in module.student.parameters()} == {torch.float32}
