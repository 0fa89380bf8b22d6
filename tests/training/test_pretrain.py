# SPDX-License-Identifier: Apache-2.0
"""Pretraining: resuming, signals, two processes as one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from paired_views import batches, recipe

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.distill.image_views import ViewConfig
from pcseg_core.learning.distributed import gather_rows, synchronize
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.pretrain import new_module
from pcseg_core.learning.recipe import LossConfig, OptimizerConfig, Recipe
from pcseg_core.learning.trainer import train
from pcseg_core.models.student import Student, StudentConfig


def module_of(stored: Any, settings: Recipe) -> TrainingModule:
    torch.manual_seed(0)
    return new_module(Student(settings.student, 1), 3, *stored, settings)


def losses_of(module: TrainingModule, batch: Any) -> dict[str, torch.Tensor]:
    output, losses = module.student(batch.points), {}
    for objective in module.objectives:
        losses |= objective.losses(output, batch)
    return losses


def test_a_stopped_run_ends_as_one_that_was_not(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcseg_core.learning.module.STEPS_PER_EPOCH", 2)  # where runs resume
    settings = recipe(optimizer=OptimizerConfig(steps=4, batch_size=2))
    whole, first, second = (module_of(stored, settings) for _ in range(3))
    figures = train(whole, tmp_path / "whole", "cpu")
    assert figures["steps"] == 4 and whole.clock.throughput()["share"]["data"] < 1
    assert whole.clock.throughput()["sectors_per_s"] > 0

    def stop(batch: Any, batch_idx: int) -> Any:
        if first.global_step == 3:
            raise RuntimeError("killed")
        return TrainingModule.training_step(first, batch, batch_idx)

    monkeypatch.setattr(first, "training_step", stop)
    with pytest.raises(RuntimeError, match="killed"):
        train(first, tmp_path / "stopped", "cpu")
    assert train(second, tmp_path / "stopped", "cpu")["steps"] == 4
    for name, value in whole.student.state_dict().items():
        assert torch.allclose(value, second.student.state_dict()[name], atol=1e-5), name


KILLED = """
encoder: {name: espnetv2, weights: "bundled:simulation_teacher"}
superpixels: {name: slic, segments: 20}
student: {depth: 14, width: 0.25, voxel_size_m: 0.5}
optimizer: {steps: 110, batch_size: 1}
"""
SIMULATED = "simulated:seed=9,sweeps=2,beams=16,columns=256,cameras=1,width=160,height=96"

STOPS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}


def test_a_run_stopped_by_a_signal_ends_as_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(KILLED)

    def command(out: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "pcseg_core.cli",
            "pretrain",
            SIMULATED,
            "--device",
            "cpu",
            "--recipe",
            str(tmp_path / "recipe.yaml"),
            "--out",
            str(tmp_path / out),
            "--cache",
            str(tmp_path / "cache"),
        ]

    subprocess.run(command("whole"), check=True, stderr=subprocess.DEVNULL)
    expected = load_checkpoint(tmp_path / "whole")[0]
    for stop, status in STOPS.items():
        process = subprocess.Popen(command(stop.name), stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not (tmp_path / stop.name / "last.ckpt").is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(stop)
        _, told = process.communicate(timeout=60)
        assert process.returncode == status, told
        assert stop == signal.SIGKILL or "the same command again to resume" in told
        assert not (tmp_path / stop.name / "checkpoint.safetensors").exists()
    subprocess.run(command(signal.SIGKILL.name), check=True, stderr=subprocess.DEVNULL)
    resumed = load_checkpoint(tmp_path / signal.SIGKILL.name)[0]
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(resumed[name], value, atol=1e-5), name


def test_the_untrained_loss_is_near_the_logarithm_of_the_number(stored: Any) -> None:
    settings = recipe(
        loss=LossConfig(temperature=1.0, class_negatives=False), views=ViewConfig(min_points=1)
    )
    module = module_of(stored, settings)
    batch = batches(stored, settings, 0, 1)[0]
    losses = losses_of(module, batch)
    assert batch.segments is not None
    named = batch.segments.point_segment
    paired = torch.unique(named[named >= 0])
    assert losses.keys() == {"superpixel"}
    assert float(losses["superpixel"].detach()) == pytest.approx(np.log(len(paired)), abs=0.4)


def _rank(rank: int, port: int, stored: Any, settings: Recipe, file: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    module = module_of(stored, settings)
    wrapped = torch.nn.parallel.DistributedDataParallel(_Losses(module))
    losses = wrapped(batches(stored, settings, 0, 1, rank, 2)[0])
    sum(losses.values()).backward()
    if rank == 0:
        torch.save(_outcome(module, losses), file)
    torch.distributed.destroy_process_group()


class _Losses(torch.nn.Module):
    def __init__(self, module: TrainingModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        return losses_of(self.module, batch)


def _outcome(module: TrainingModule, losses: dict[str, torch.Tensor]) -> dict[str, Any]:
    gradients = {
        n: p.grad
        for n, p in module.named_parameters()
        if p.grad is not None and not n.startswith("averaged")
    }
    norm = module.student.network.stem[1]
    return {
        "losses": {k: float(v.detach()) for k, v in losses.items()},
        "gradients": gradients,
        "mean": norm.running_mean,
        "variance": norm.running_var,
    }


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradients_of_one(stored: Any, tmp_path: Path) -> None:
    weights = LossConfig(
        temporal=1, point_to_segment=1, regression=1, balanced=True, false_negative_quantile=0.9
    )
    settings = recipe(loss=weights)
    module = module_of(stored, settings)
    losses = _Losses(module)(batches(stored, settings, 0, 1)[0])
    sum(losses.values()).backward()
    alone = _outcome(module, losses)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path / "rank0.pt"
    mp.spawn(_rank, (port, stored, settings, str(file)), nprocs=2)
    both = torch.load(file, weights_only=True)
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert torch.allclose(both["mean"], alone["mean"], atol=1e-6)
    assert torch.allclose(both["variance"], alone["variance"], rtol=1e-3)
    for name, gradient in alone["gradients"].items():
        scale = gradient.abs().max().clamp_min(1e-5)
        assert float((both["gradients"][name] - gradient).abs().max() / scale) < 1e-2, name


def test_one_process_gathers_nothing_and_norms_keep_their_names() -> None:
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
    student = Student(StudentConfig(depth=14, width=0.25), 2)
    names = list(student.state_dict())
    synchronize(student)
    assert list(student.state_dict()) == names
    assert json.dumps(names)
