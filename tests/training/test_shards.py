# SPDX-License-Identifier: Apache-2.0
"""Sweeps in shards: the same as in memory, in any order, with little memory; damage is named."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_processes
from safetensors.numpy import load
from small_runs import STREET, sweep

from pcseg_core.distill.cache import read_arrays
from pcseg_core.distill.lidar_teacher import LidarTargets
from pcseg_core.distill.observation import flat_arrays
from pcseg_core.distill.pixels import PointPixels
from pcseg_core.errors import InputError
from pcseg_core.learning import shards
from pcseg_core.learning.dataset import StepDataset, TrainingSweep
from pcseg_core.learning.recipe import OptimizerConfig, TrainingRecipe
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.shards import Unit, chosen, prepared, scenes_of

RECIPE = TrainingRecipe(optimizer=OptimizerConfig(steps=4, batch_size=2))


def rich(scene: str, seed: int) -> TrainingSweep:
    """A sweep with image features and targets of a 3D teacher."""
    rng, plain = np.random.default_rng(seed), sweep(scene, seed)
    pixels = PointPixels(
        np.arange(0, 600, 3, dtype=np.int32),
        rng.random((200, 8)).astype(np.float16),
        patch=np.zeros(200, np.int32),
        patch_image=rng.random((1, 8)).astype(np.float16),
    )
    targets = LidarTargets(np.zeros(600, np.int32), rng.random((1, 8)).astype(np.float16))
    return replace(plain, pixels=pixels, lidar=targets)


def units(count: int, counts: Counter[str] | None = None) -> list[Unit]:
    def make(scene: int) -> Iterator[TrainingSweep]:
        for seed in range(2 + scene):
            if counts is not None:
                counts["made"] += 1
            yield rich(f"scene{scene}", 10 * scene + seed)

    return [(f"{scene:03d}", partial(make, scene)) for scene in range(count)]


def test_shards_give_the_same_batches_as_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", 30_000)  # two sweeps
    here = prepared(units(3), None).sweeps
    there = prepared(units(3), str(tmp_path)).sweeps
    assert len(list(tmp_path.glob("*.shard"))) == 5 and len(there) == len(here) == 9
    assert scenes_of(there) == scenes_of(here)
    for one, other in zip(here, there):
        mine, theirs = dict(flat_arrays(one)), dict(flat_arrays(other))
        assert list(mine) == list(theirs)
        for name, array in mine.items():
            assert array.dtype == theirs[name].dtype
            np.testing.assert_array_equal(array, theirs[name])
    more, mask = [sweep("simulated", 7)], np.arange(9) % 2 == 1
    drawn = [LabeledSectors(chosen(s, mask, more), RECIPE, STREET).draw(3) for s in (here, there)]
    for own, other in zip(*drawn):
        torch.testing.assert_close(vars(own.points), vars(other.points), rtol=0, atol=0)
        assert own.pixels is None or torch.equal(own.pixels.image, other.pixels.image)


def test_batches_in_the_middle_are_those_of_a_whole_pass(tmp_path: Path) -> None:
    sectors = LabeledSectors(prepared(units(2), str(tmp_path)).sweeps, RECIPE, STREET)
    whole = [StepDataset(sectors, 0, 6)[step] for step in range(6)]
    resumed = [StepDataset(sectors, 4, 2)[step] for step in range(2)]
    for expected, found in zip(whole[4:], resumed, strict=True):
        assert torch.equal(expected.points.xyz, found.points.xyz)
    assert not torch.equal(whole[0].points.xyz[:50], whole[1].points.xyz[:50])


def test_shards_are_written_once_and_hold_safetensors(tmp_path: Path) -> None:
    counts = Counter[str]()
    first = prepared(units(2, counts), str(tmp_path), lambda: counts)
    assert first.counts == {"made": 5}
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = prepared(units(2, counts), str(tmp_path), lambda: counts)
    assert counts["made"] == 5 and again.counts == first.counts and len(again.sweeps) == 5
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    index = read_arrays(tmp_path / "index-1.npz")
    name = json.loads(index["about"].item())["files"][0]
    record = (tmp_path / name).read_bytes()[: int(index["end"][0])]
    assert load(record)["xyz"].shape == (600, 3)


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    sweeps = prepared(units(1), str(tmp_path)).sweeps
    shard = tmp_path / "000-0000.shard"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert len(sweeps[0].xyz) == 600
    with pytest.raises(InputError, match=r"000-0000.shard: cut short; remove .*index-1.npz and"):
        _ = sweeps[1]
    shard.unlink()
    with pytest.raises(InputError, match=r"000-0000.shard: No such file"):
        _ = sweeps[1]
    (tmp_path / "index-1.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="the index of the shards is damaged"):
        prepared(units(1), str(tmp_path))


def large(count: int) -> list[Unit]:
    """Sweeps of half a megabyte."""

    def make(number: int) -> Iterator[TrainingSweep]:
        one = sweep("a", number)
        parts = (one.xyz, one.intensity, one.label, one.confidence)
        yield TrainingSweep(*(np.concatenate([part] * 40) for part in parts), f"scene{number % 5}")

    return [(f"{number:03d}", partial(make, number)) for number in range(count)]


def peak(count: int, place: Path | None) -> int:
    """Most bytes that numpy and Python held at a time, to prepare sweeps and to draw from them."""
    tracemalloc.start()
    sweeps = prepared(large(count), None if place is None else str(place)).sweeps
    sectors = LabeledSectors(sweeps, RECIPE, STREET)
    for step in range(4):
        sectors.draw(step)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_number_of_sweeps(tmp_path: Path) -> None:
    few, many = peak(10, tmp_path / "few"), peak(60, tmp_path / "many")
    assert many < few + 1_000_000
    assert peak(60, None) > many + 20_000_000


def test_processes_share_the_writing(tmp_path: Path) -> None:
    place = str(tmp_path / "shards")

    def action() -> None:
        import os

        from pcseg_core.learning.distributed import join

        join(False)
        counts = Counter[str]()
        found = prepared(units(3, counts), place, lambda: counts)
        assert found.counts == {"made": 9} and scenes_of(found.sweeps)[0] == "scene0"
        (tmp_path / f"{os.environ['RANK']}.json").write_text(json.dumps([counts["made"]]))

    logs = tmp_path / "logs"
    assert in_processes(2, action, logs) == [0, 0], (logs / "0.txt").read_text()
    made = [json.loads((tmp_path / f"{rank}.json").read_text())[0] for rank in (0, 1)]
    assert made == [2 + 4, 3]
    one = prepared(units(3), str(tmp_path / "alone")).sweeps
    two = prepared(units(3), place).sweeps
    assert all(np.array_equal(a.xyz, b.xyz) for a, b in zip(one, two, strict=True))
