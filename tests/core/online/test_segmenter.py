# SPDX-License-Identifier: Apache-2.0
"""The segmenter on awkward clouds, and checkpoints that are not what they should be."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, load_checkpoint, save_checkpoint
from pcseg_core.cloud import PointCloud, encode_cloud, read_cloud
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.models.student import Points, Student, StudentConfig
from pcseg_core.native import library, tensors
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.sparse.backends import torch_backend


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a small random student."""
    torch.manual_seed(0)
    space = LabelSpace.load("street")
    config = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5)
    student = Student(config, len(space))
    folder = tmp_path_factory.mktemp("run")
    meta = CheckpointMeta(student=config.model_dump(mode="json"), label_space=space.to_dict())
    save_checkpoint(folder / FILE_NAME, student.state_dict(), meta)
    return folder


def cloud(points: int, seed: int = 0) -> PointCloud:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-20, 20, (points, 3)).astype(np.float32)
    return PointCloud(xyz, rng.random(points, np.float32))


def test_every_point_gets_a_label_in_order(run: Path) -> None:
    segmenter = Segmenter.load(run, device="cpu")
    sweep = cloud(3000)
    result = segmenter.segment(sweep)
    assert result.labels.shape == (3000,) and result.labels.dtype == np.int32
    assert (result.labels >= 0).all() and (result.labels < 8).all()
    assert ((result.confidence > 0.1) & (result.confidence <= 1)).all()
    order = np.random.default_rng(1).permutation(3000)
    shuffled = segmenter.segment(PointCloud(sweep.xyz[order], sweep.intensity[order]))
    assert (shuffled.labels == result.labels[order]).mean() > 0.999


@pytest.mark.parametrize("precision", ["fp32", None])
def test_a_sweep_leaves_nothing_to_the_garbage_collector(run: Path, precision: str | None) -> None:
    """Tables in a circle of references would wait for it, sweep after sweep."""
    segmenter = Segmenter.load(run, device="cpu")
    if precision is None:  # the network as plain modules
        segmenter._network = segmenter.student.network
    segmenter.segment(cloud(3000), probabilities=True)
    gc.collect()
    gc.disable()
    try:
        segmenter.segment(cloud(3000, seed=1), probabilities=True)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert [type(thing) for thing in gc.garbage] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_points_of_one_voxel_agree(run: Path) -> None:
    segmenter = Segmenter.load(run, device="cpu")
    xyz = np.concatenate([cloud(500).xyz, np.full((10, 3), 3.1, np.float32)])
    result = segmenter.segment(PointCloud(xyz))
    assert len(np.unique(result.labels[-10:])) == 1


@pytest.mark.parametrize("points", [0, 1, 2])
def test_hardly_any_points(run: Path, points: int) -> None:
    result = Segmenter.load(run, device="cpu").segment(cloud(points))
    assert len(result.labels) == points and (result.labels >= 0).all()


def test_points_without_a_position_keep_their_slot(run: Path) -> None:
    sweep = cloud(100)
    xyz, intensity = sweep.xyz.copy(), sweep.intensity.copy()
    xyz[3, 0], xyz[7] = np.nan, np.inf
    xyz[11] = (500, 0, 0)
    xyz[12] = (3e38, 3e38, 0)
    intensity[20] = np.nan
    result = Segmenter.load(run, device="cpu").segment(PointCloud(xyz, intensity))
    assert np.flatnonzero(result.labels == IGNORE).tolist() == [3, 7, 11, 12]
    assert (result.confidence[[3, 7, 11, 12]] == 0).all()
    nothing = Segmenter.load(run, device="cpu").segment(
        PointCloud(np.full((5, 3), np.nan, np.float32))
    )
    assert (nothing.labels == IGNORE).all()


@pytest.mark.parametrize(
    ("top", "bright"), [(1.0, 1.01), (1.0, 1e30), (255.0, 260.0), (255.0, 1e6)]
)
def test_one_bright_point_changes_no_other_label(top: float, bright: float) -> None:
    segmenter = Segmenter.load("bundled", device="cpu")
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-30, 30, (20_000, 3)).astype(np.float32) * np.float32([1, 1, 0.05])
    intensity = (rng.beta(1, 3, len(xyz)) * top).astype(np.float32)
    xyz[17] = (75, 0, 0)  # alone in its voxel, far from the others
    results = []
    for value in (top, bright):
        intensity[17] = value
        columns = {**dict(zip("xyz", xyz.T)), "intensity": intensity}
        results.append(segmenter.segment(read_cloud(encode_cloud(columns))))
    assert np.array_equal(results[0].labels, results[1].labels)
    assert np.array_equal(results[0].confidence, results[1].confidence)


def test_intensities_are_clipped_as_in_training(run: Path) -> None:
    segmenter = Segmenter.load(run, device="cpu")
    sweep = cloud(3000)
    wild, mild = sweep.intensity.copy(), sweep.intensity.copy()
    wild[:6], mild[:6] = (1e30, 1e6, np.inf, -np.inf, -3, np.nan), (1, 1, 1, 0, 0, 0)
    results = [segmenter.segment(PointCloud(sweep.xyz, values)) for values in (wild, mild)]
    assert np.array_equal(results[0].confidence, results[1].confidence)


def test_exact_zeros_are_no_returns(run: Path) -> None:
    segmenter = Segmenter.load(run, device="cpu")
    sweep = cloud(2000)
    alone = segmenter.segment(PointCloud(sweep.xyz[::2], sweep.intensity[::2]))
    sweep.xyz[1::2] = 0
    result = segmenter.segment(sweep)
    assert (result.labels[1::2] == IGNORE).all() and (result.confidence[1::2] == 0).all()
    assert np.array_equal(result.labels[::2], alone.labels)
    assert result.out_of_range == 0


def test_returns_out_of_range_are_counted(run: Path) -> None:
    sweep = cloud(100)
    xyz = sweep.xyz * np.float32(1000)  # millimeters
    xyz[:3] = (np.nan, np.inf, 0), (np.inf, 0, 0), (0, 0, 0)
    result = Segmenter.load(run, device="cpu").segment(PointCloud(xyz))
    assert (result.labels == IGNORE).all() and result.out_of_range == 97


def test_arrays_are_refused_with_the_right_call(run: Path) -> None:
    with pytest.raises(InputError, match=r"got ndarray \(100, 3\).*PointCloud\(xyz, intensity\)"):
        Segmenter.load(run, device="cpu").segment(cloud(100).xyz)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_network_that_diverged_labels_nothing(run: Path, backend: str) -> None:
    if backend == "native" and isinstance(library.load(), str):
        pytest.skip("the native library was not built")
    segmenter = Segmenter.load(run, "cpu", "fp32", backend)
    segmenter._trained = replace(
        segmenter._trained, logits=lambda x: [torch.full((len(x), 8), torch.nan)]
    )
    segmenter.set_prompts(None)
    sweep = cloud(300)
    sweep.xyz[0] = np.nan
    result = segmenter.segment(sweep, probabilities=True)
    assert (result.labels == IGNORE).all() and result.not_finite == 299
    assert (result.confidence == 0).all()
    assert result.probabilities is not None and (result.probabilities == 0).all()


def test_probabilities_of_every_class_belong_to_the_labels(run: Path) -> None:
    segmenter = Segmenter.load(run, device="cpu")
    sweep = cloud(3000)
    sweep.xyz[7] = np.nan
    result = segmenter.segment(sweep, probabilities=True)
    assert result.probabilities is not None
    assert result.probabilities.shape == (3000, 8) and result.probabilities.dtype == np.float32
    used = result.labels != IGNORE
    assert np.allclose(result.probabilities[used].sum(1), 1, atol=1e-5)
    assert (result.probabilities[~used] == 0).all()
    assert (result.probabilities.argmax(1)[used] == result.labels[used]).all()
    assert np.array_equal(result.probabilities.max(1), result.confidence)
    assert segmenter.segment(sweep).probabilities is None


def test_a_missing_device_is_named(run: Path) -> None:
    with pytest.raises(InputError, match="banana"):
        Segmenter.load(run, device="banana")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="CUDA"):
            Segmenter.load(run, device="cuda")


def test_damaged_checkpoints_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "recipe.yaml").write_text("recipe: {}")
    with pytest.raises(InputError, match="not finished"):
        load_checkpoint(tmp_path)
    whole = (run / FILE_NAME).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(tmp_path / "cut.safetensors")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="not a pcseg checkpoint"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_missing_tensors_and_other_classes_are_refused(run: Path, tmp_path: Path) -> None:
    state, meta = load_checkpoint(run)
    state.pop("network.classifier.weight")
    save_checkpoint(tmp_path / FILE_NAME, state, meta)
    with pytest.raises(InputError, match=r"network\.classifier\.weight"):
        Segmenter.load(tmp_path, device="cpu")
    state, meta = load_checkpoint(run)
    other = meta.model_copy(update={"label_space": LabelSpace.load("nuscenes16").to_dict()})
    save_checkpoint(tmp_path / FILE_NAME, state, other)
    with pytest.raises(InputError, match="does not fit"):
        Segmenter.load(tmp_path, device="cpu")


def test_a_failed_save_leaves_the_old_checkpoint(run: Path, tmp_path: Path) -> None:
    state, meta = load_checkpoint(run)
    save_checkpoint(tmp_path / FILE_NAME, state, meta)
    before = (tmp_path / FILE_NAME).read_bytes()
    broken = {"a": torch.zeros(3).to_sparse()}
    with pytest.raises(Exception):  # noqa: B017 - whatever the writer raises
        save_checkpoint(tmp_path / FILE_NAME, broken, meta)
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("voxels", ["cartesian", "cylindrical"])
def test_student_inputs_and_voxels(voxels: str) -> None:
    config = StudentConfig(
        depth=14,
        width=0.25,
        voxels=voxels,
        voxel_size_m=0.5,
        inputs=("x", "y", "z", "range", "intensity", "one", "offset"),
        feature_channels=7,
    )
    student = Student(config, 3)
    sweep = cloud(200)
    points = Points(
        torch.from_numpy(sweep.xyz), torch.from_numpy(sweep.intensity), torch.arange(200) % 2
    )
    voxels = student.voxelize(points)
    inputs = student.inputs(points, voxels)
    assert inputs.shape == (200, 9) and inputs[:, 6:].abs().max() <= 0.5 / 0.3 + 1e-3
    assert torch.allclose(inputs[:, 3] * 30, points.xyz.norm(dim=1))
    assert torch.allclose(inputs[:, 2] * 2, points.xyz[:, 2])
    output = student(points)
    assert output.logits.shape == (len(output.voxels), 3)
    assert output.regressed.shape == (len(output.voxels), 7)


def test_segmenters_with_different_backends_live_in_one_process(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(library.load(), str):
        pytest.skip("the native library was not built")
    calls: list[str] = []
    for module, name in ((torch_backend, "torch"), (tensors, "native")):
        monkeypatch.setattr(module, "conv", recorded(module.conv, name, calls))
    native = Segmenter.load(run, "cpu", "fp32", backend="native")
    plain = Segmenter.load(run, "cpu", backend="torch")
    assert (native.backend, plain.backend) == ("native", "torch")
    assert Segmenter.load(run, "cpu").backend == "native"
    results = []
    for segmenter in (native, plain, native):
        calls.clear()
        results.append(segmenter.segment(cloud(3000), probabilities=True))
        assert set(calls) == {segmenter.backend}
    fast, reference, again = (result.probabilities for result in results)
    np.testing.assert_allclose(fast, reference, atol=1e-5)
    assert np.array_equal(fast, again)


def recorded(function: Callable[..., Tensor], name: str, calls: list[str]) -> Callable[..., Tensor]:
    """The function; its calls are noted."""

    def run(*arguments: object, **named: object) -> Tensor:
        calls.append(name)
        return function(*arguments, **named)

    return run


def test_an_unavailable_backend_is_an_error_at_load(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="'cudnn': expected one of auto, torch, native"):
        Segmenter.load(run, "cpu", backend="cudnn")
    monkeypatch.setattr(library, "load", lambda: "not built")
    assert Segmenter.load(run, "cpu").backend == "torch"
    with pytest.raises(InputError, match="'native' cannot be used: not built"):
        Segmenter.load(run, "cpu", backend="native")
