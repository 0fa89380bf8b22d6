# SPDX-License-Identifier: Apache-2.0
"""Pretraining: exact pairs under augmentation, faults skipped, resuming, two processes as one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from pcseg_core.camera import CameraModel
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.distill.image_views import ImageViewer, ViewConfig, average_down, map_pixels
from pcseg_core.distill.observation import Observer, StoredObservation
from pcseg_core.distill.temporal import TemporalConfig, segment_files
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, from_euler, invert, transform
from pcseg_core.labels import IGNORE
from pcseg_core.learning.augment import draw_members
from pcseg_core.learning.dataset import NAMES_PER_SECTOR, StepDataset
from pcseg_core.learning.distributed import gather_rows, synchronize
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives.contrast import majority
from pcseg_core.learning.pairs import PairedSectors, load
from pcseg_core.learning.pretrain import new_module
from pcseg_core.learning.recipe import (
    AugmentConfig,
    LossConfig,
    OptimizerConfig,
    PairAugmentConfig,
    Recipe,
)
from pcseg_core.learning.trainer import train
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.vision.encoder_kinds import ESPNetv2FeaturesConfig
from pcseg_core.vision.image_cache import SuperpixelCache
from pcseg_core.vision.superpixels import SegmentMap

WIDTH, HEIGHT, TILE = 64, 48, 16
# LiDAR axes (x forward, y left, z up) into camera axes (z forward, x right, y down).
T_CAM_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)


class TileSegments:
    """Squares of the image, each of a class of its own."""

    name, parameters = "tiles", {"tile": TILE}

    def segment(self, image: np.ndarray) -> SegmentMap:
        rows, columns = np.indices(image.shape[:2]) // TILE
        ids = (rows * (WIDTH // TILE) + columns).astype(np.int32)
        return SegmentMap(ids, np.arange(ids.max() + 1, dtype=np.int16))


class Places:
    """Features that tell row and column of their pixel, and the image's red value."""

    name, channels, parameters = "places", 3, {"v": 1}

    def features(self, image: np.ndarray) -> np.ndarray:
        rows, columns = np.indices(image.shape[:2], np.float32)
        values = np.stack([rows, columns, image[..., 0].astype(np.float32)])
        return average_down(values, 4)


class Fakes:
    """A drive of given samples."""

    def __init__(self, samples: list[Any], scene: str = "street") -> None:
        self.samples, self.name, self.label_space = samples, "fakes", None
        self.scenes, self.pose_source = [scene] * len(samples), "exact"
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        if isinstance(self.samples[index], Exception):
            raise self.samples[index]
        return self.samples[index]


def sample(number: int = 0, **changes: Any) -> Sample:
    """A wall of points before the camera and two blocks behind, seen from a moving vehicle."""
    rng = np.random.default_rng(7)
    wall = rng.uniform((12, -9, -6), (12, 9, 6), (1500, 3))
    blocks = [rng.uniform((-9, y - 1, -1), (-7, y + 1, 1), (300, 3)) for y in (-5, 5)]
    stamps = np.arange(-1, 12) * 100_000_000
    poses = np.stack([from_euler(0, 0, 0.05 * k, (0.3 * k, 0, 0)) for k in range(-1, 12)])
    trajectory = Trajectory(stamps, poses)
    stamp = number * 100_000_000
    xyz = transform(invert(trajectory.at(stamp)), np.concatenate([wall, *blocks]))
    strength = rng.uniform(0, 1, len(xyz)).astype(np.float32)
    cloud = PointCloud(xyz.astype(np.float32), strength, frame_id="lidar", stamp_ns=stamp)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    camera = CameraModel.pinhole(32.0, 32.0, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5, WIDTH, HEIGHT)
    frame = CameraFrame("front", stamp, camera, T_CAM_LIDAR, changes.pop("image", image))
    values = {"cloud": cloud, "cameras": [frame], "trajectory": trajectory, "name": f"s{number}"}
    return Sample(**{**values, **changes})


def maker(folder: Path, mirror: bool = False) -> Observer:
    cache = SuperpixelCache(folder / "superpixels", TileSegments())
    return Observer(folder, images=ImageViewer(Places(), cache, ViewConfig(), mirror))


def quiet(_done: int, _total: int) -> None:
    pass


STILL = AugmentConfig(
    rotate=False,
    flip=False,
    scale=0,
    shift_z_m=0,
    tilt_deg=0,
    jitter_m=0,
    drop=0,
    beam_drop=0,
    intensity_gain=0,
)


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "encoder": ESPNetv2FeaturesConfig(name="espnetv2"),
        "student": StudentConfig(depth=14, width=0.25, voxel_size_m=0.5),
        "optimizer": OptimizerConfig(steps=4, batch_size=4, sector_deg=360),
        "temporal": TemporalConfig(ground="ransac", clusterer="sklearn", ground_distance_m=0.01),
        "loss": LossConfig(temporal=1, point_to_segment=1, regression=1, point_pixel=1, pairs=64),
    }
    return Recipe(**{**values, **changes})


def batches(stored: Any, settings: Recipe, first: int, count: int, *share: int) -> StepDataset:
    return StepDataset(PairedSectors(*stored, settings), first, count, *share)


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[StoredObservation], dict[int, Path]]:
    """Observations and segments of four sweeps."""
    folder = tmp_path_factory.mktemp("views")
    found = maker(folder).observe({"fakes": Fakes([sample(k) for k in range(4)])}, quiet)
    return found, segment_files(found, recipe().temporal, folder / "segments", quiet)


def test_a_view_pairs_every_point_with_its_pixel(stored: Any) -> None:
    view = stored[0][1].load()
    camera = view.images[0]
    xyz = view.xyz[camera.point].astype(float)
    u, v = 32 * -xyz[:, 1] / xyz[:, 0] + 31.5, 32 * -xyz[:, 2] / xyz[:, 0] + 23.5
    assert len(xyz) > 400 and (xyz[:, 0] > 0).all()
    row, column = camera.pixel.T
    # A pixel of the map is four of the image; its features are the mean row and column.
    assert np.abs(camera.features[0, row, column] - v).max() < 2.6
    assert np.abs(camera.features[1, row, column] - u).max() < 2.6
    tile = np.floor((v + 0.5) / TILE) * (WIDTH // TILE) + np.floor((u + 0.5) / TILE)
    assert (camera.segment == tile).mean() > 0.995  # but for rounding on the edges


def test_mirrored_features_lie_where_the_others_do(tmp_path: Path) -> None:
    camera = maker(tmp_path, mirror=True).observe_sample(sample(), "fakes").images[0]
    assert camera.mirrored is not None
    assert np.allclose(camera.mirrored[2], camera.features[2], atol=0.5)  # the same pixels
    assert np.allclose(camera.mirrored[1], (WIDTH - 1) - camera.features[1])


def test_poisoned_sweeps_and_images_are_counted_and_skipped(tmp_path: Path) -> None:
    poisoned = sample()
    xyz = poisoned.cloud.xyz.copy()
    xyz[::2] = np.nan
    half = PointCloud(xyz, poisoned.cloud.intensity, frame_id="lidar")
    none = PointCloud(np.full_like(xyz, np.nan), poisoned.cloud.intensity, frame_id="lidar")
    turned = sample().cameras[0]
    away = CameraFrame(
        "back", 0, turned.camera, T_CAM_LIDAR @ from_euler(0, 0, 0, (-900, 0, 0)), turned.image
    )

    def broken() -> np.ndarray:
        raise InputError("frame.png: cannot be decoded")

    samples = [
        sample(),
        sample(cloud=half),
        sample(cloud=none),
        sample(cameras=[]),
        sample(cameras=[away]),
        sample(image=np.zeros((0, 0, 3), np.uint8)),
        sample(image=broken),
        InputError("000007.bin: truncated"),
        sample(cameras=[turned, away]),
    ]
    made = maker(tmp_path)
    entries = made.observe({"fakes": Fakes(samples)}, quiet)
    assert [entry.index for entry in entries] == [0, 1, 8]
    assert np.isfinite(entries[1].load().xyz).all()
    assert len(entries[1].load().xyz) == len(xyz) // 2
    reasons = " | ".join(made.skipped)
    for words in (
        "no finite points",
        "no camera has an image",
        "no point of the sweep",
        "cannot be decoded",
        "truncated",
        "no camera sees any point",
    ):
        assert words in reasons
    with pytest.raises(InputError, match="none of the 1 sweeps"):
        maker(tmp_path / "other").observe({"fakes": Fakes([sample(cameras=[])])}, quiet)


def test_views_are_made_once_and_damage_is_mended(tmp_path: Path) -> None:
    first = maker(tmp_path).observe({"fakes": Fakes([sample()])}, quiet)
    again = maker(tmp_path).observe({"fakes": Fakes([InputError("must not be read")])}, quiet)
    assert first == again
    first[0].path.write_bytes(first[0].path.read_bytes()[:500])
    maker(tmp_path).observe({"fakes": Fakes([sample()])}, quiet)
    assert len(first[0].load().images) == 1


def test_a_view_damaged_during_training_is_named(stored: Any, tmp_path: Path) -> None:
    content = bytearray(Path(stored[0][0].path).read_bytes())
    content[len(content) // 2] ^= 0xFF  # the directory of the file is whole, its arrays are not
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(content)
    with pytest.raises(InputError, match="damaged.npz: damaged .* run again"):
        load(replace(stored[0][0], path=damaged))


def test_pairs_stay_exact_under_all_augmentations(stored: Any) -> None:
    """Intensity tells which point is which, wherever it was moved, and whatever was cut."""
    pairs = PairAugmentConfig(cuboid_drop=1, crop=1, min_pairs=20, merge=0)
    wild = AugmentConfig(intensity_gain=0, jitter_m=0, thin_m=5, coarse=0.2, stretch=0.1)
    dataset = batches(stored, recipe(pairs=pairs, augment=wild), 0, 6)
    where = {float(s): i for i, s in enumerate(stored[0][0].load().intensity)}
    checked = 0
    for batch in (dataset[k] for k in range(6)):
        pixels, segments = batch.pixels, batch.segments
        assert pixels is not None and pixels.image is not None and segments is not None
        seen = batch.points.intensity[pixels.point]
        named = segments.point_segment >= 0
        rows = segments.point_segment // NAMES_PER_SECTOR
        assert torch.equal(rows[named], batch.points.batch[pixels.point][named])
        point = np.array([where[float(s)] for s in seen])
        checked += len(point)
        # Sweeps differ in what they see of the same points; the feature tells the pixel.
        tile = segments.point_segment.numpy() % NAMES_PER_SECTOR
        v, u = pixels.image[:, 0].numpy(), pixels.image[:, 1].numpy()
        expected = np.floor(v / TILE) * (WIDTH // TILE) + np.floor(u / TILE)
        known = named.numpy()
        assert (tile == expected)[known].mean() > 0.85  # map pixels at the tiles' edges
        # The same thing has the same temporal segment in both sweeps of a pair.
        for place in segments.place.unique():
            sectors = (segments.place == place).nonzero().squeeze(1)
            member = torch.isin(batch.points.batch, sectors) & (segments.temporal != IGNORE)
            names: dict[float, int] = {}
            for s, name in zip(batch.points.intensity[member], segments.temporal[member]):
                assert names.setdefault(float(s), int(name)) == int(name)
    assert checked > 1000


def test_batches_depend_on_seed_and_step_and_ranks_share_them(stored: Any) -> None:
    settings = recipe()
    early, late = batches(stored, settings, 0, 9), batches(stored, settings, 3, 4)
    assert torch.equal(early[5].points.xyz, late[2].points.xyz)
    assert torch.equal(early[5].segments.pixels, late[2].segments.pixels)
    assert not torch.equal(early[5].points.xyz[:9], early[6].points.xyz[:9])
    halves = [batches(stored, settings, 0, 9, rank, 2)[5] for rank in (0, 1)]
    together = torch.cat([half.points.intensity for half in halves])
    assert torch.equal(together, early[5].points.intensity)
    places = torch.cat([half.segments.place for half in halves])
    assert sorted(places) == sorted(early[5].segments.place)
    with pytest.raises(InputError, match="gives 2 of 3 processes something to do.*at least 6"):
        batches(stored, settings, 0, 9, 0, 3)[5]


def test_members_are_drawn_by_segment() -> None:
    ids = np.array([3, 3, 3, IGNORE, 8, 3, 8])
    drawn = draw_members(ids, 2, np.random.default_rng(0))
    assert (drawn == 3).sum() == 2 and (drawn == 8).sum() == 2 and drawn[3] == IGNORE
    assert ((drawn == ids) | (drawn == IGNORE)).all()
    assert len(draw_members(ids[:0], 2, np.random.default_rng(0))) == 0


def test_map_pixels_and_majority_by_hand() -> None:
    uv = np.array([[-0.4, -0.4], [63.4, 47.4], [31.6, 3.4], [31.4, 3.6]])
    assert map_pixels(uv, (64, 48), (12, 16)).tolist() == [[0, 0], [11, 15], [0, 8], [1, 7]]
    ids, classes = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([4, 4, 1, IGNORE, 0])
    assert majority(ids, classes, 3).tolist() == [4, IGNORE, 0]


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
