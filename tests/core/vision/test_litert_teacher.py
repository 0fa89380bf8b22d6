# SPDX-License-Identifier: Apache-2.0
"""Teachers in TensorFlow Lite format: the real interpreter with a network of two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pcseg_core.errors import InputError, MissingDependency
from pcseg_core.known_weights import KNOWN, WEIGHTS_VARIABLE
from pcseg_core.vision.named_classes import NamedClasses
from pcseg_core.vision.pixel_classes import TEACHERS, load_teacher
from pcseg_core.vision.windows import square_windows
from tests.core.vision.tiny_litert import GRID, SIDE, write_network

NAMES = ["road", "car"]
LOGITS = "logits/BiasAdd"
RED = np.zeros((66, 132, 3), np.uint8)
RED[:, :66, 0], RED[:, 66:, 1] = 255, 255


def load(**values: Any) -> NamedClasses:
    teacher = load_teacher(TEACHERS.parse({"name": "litert", "names": NAMES, **values}, "teacher"))
    assert isinstance(teacher, NamedClasses)
    return teacher


@pytest.fixture
def network(tmp_path: Path) -> str:
    return str(write_network(tmp_path / "net.tflite"))


def test_logits_within_the_network_are_dequantized(network: str) -> None:
    teacher = load(file=network, tensor=LOGITS)
    found = teacher.source.probabilities(np.full((33, 33, 3), (255, 0, 0), np.uint8))
    assert found.shape == (2, 8, 8)
    assert np.allclose(found[1], 1 / (1 + np.exp(16)), rtol=1e-4)  # codes 180 and 20 by 0.1


def test_the_output_of_the_network_may_be_ids(network: str) -> None:
    found = load(file=network, output="ids", flip=False).source.probabilities(RED)
    half = found.shape[2] // 2
    assert found.shape == (2, 16, 33)
    assert (found[0, :, : half - 1] == 1).all() and (found[1, :, half + 2 :] == 1).all()


@pytest.mark.parametrize("sides", [[], [33], [40, 90], [200]])
def test_windows_of_all_sizes_find_the_edge_at_its_place(network: str, sides: list[int]) -> None:
    found = load(file=network, tensor=LOGITS, windows_px=sides).probabilities(RED)
    assert found.shape == (19, 16, 33) and np.allclose(found.sum(0), 1, atol=1e-5)
    assert (found[0, :, :14] > 0.95).all() and (found[13, :, 19:] > 0.95).all()
    # The edge is in the middle, but for half the distance of the values of the network.
    assert np.abs(found[0].sum(1) - 16.5).max() < 1.5


@pytest.mark.parametrize(("seen", "grid"), [(513, 33), (512, 32), (33, 9), (64, 64)])
@pytest.mark.parametrize("side", [75, 100, 190])
def test_maps_of_windows_keep_their_place(seen: int, grid: int, side: int) -> None:
    image, size = (76, 150), (19, 37)
    stride = (seen - 1) / (grid - 1) if (seen - 1) % (grid - 1) == 0 else None
    cells = (np.arange(grid) * stride + 0.5) / seen if stride else (np.arange(grid) + 0.5) / grid
    covered = np.zeros(size, bool)
    for window in square_windows(image, side, 0.4):
        down, across = (start + window.side * cells for start in (window.top, window.left))
        maps = np.stack(np.meshgrid(down, across, indexing="ij")).astype(np.float32)
        place, moved, soft = window.placed(maps, seen, image, size)
        covered[place] = True
        centers = [(np.arange(n) + 0.5) * length / n for n, length in zip(size, image)]
        for k, axis in enumerate((down, across)):
            true = centers[k][place[k]].clip(axis[0], axis[-1])
            assert np.allclose(moved[k], np.expand_dims(true, 1 - k), atol=1e-3)
        assert soft.max() <= 1 and soft.min() > 0
    assert covered.all()


def test_mirrored_windows_are_mirrored_back(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.broadcast_to(np.arange(GRID, dtype=np.float32), (2, GRID, GRID))
    network_ = load(file=network, tensor=LOGITS).source
    monkeypatch.setattr(network_, "_run", lambda image: ramp.copy())
    assert np.allclose(network_._scores(np.zeros((SIDE, SIDE, 3), np.uint8)), (GRID - 1) / 2)


def test_windows_beyond_the_image_see_gray_there() -> None:
    (window,) = square_windows((20, 30), 40, 0.4)
    cut = window.cut(np.zeros((20, 30, 3), np.uint8))
    assert (window.top, window.left, cut.shape) == (-10, -5, (40, 40, 3))
    assert (cut == 0).sum() == 20 * 30 * 3 and (cut[10:30, 5:35] == 0).all()
    grown = square_windows((41, 100), 40, 0.5)  # one row of windows, not two
    assert {w.top for w in grown} == {0} and {w.side for w in grown} == {41}


def test_what_is_wrong_with_a_file_is_named(network: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(Path(network).read_bytes()[:300])
    gray = write_network(tmp_path / "gray.tflite", channels=1)
    for values, message in (
        ({"file": str(bad)}, r"bad.tflite: not usable as a TensorFlow Lite file \(.*Flatbuffer"),
        ({"file": network}, r"output of the network is ArgMax \(1, 9, 9\); expected \(1, h, w, 2"),
        ({"file": network, "tensor": "softmax"}, r"no tensor 'softmax'; it has, .*BiasAdd;more"),
        (
            {"file": network, "tensor": LOGITS, "names": ["road", "car", "person"]},
            r"'logits/BiasAdd' is logits/BiasAdd;more \(1, 9, 9, 2\); .* each of the 3 class names",
        ),
        ({"file": str(gray)}, r"first of shape \(1, 33, 33, 1\); expected one square image"),
        ({"file": network, "names": None, "label_space": "own"}, "give 'names' or 'names_file'"),
        ({"file": network, "names": None, "tensor": LOGITS}, "each of the 19 class names"),
        ({"file": str(tmp_path / "none.tflite")}, "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            load(**values)


def test_the_message_without_the_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert.interpreter", None)
    (tmp_path / "net.tflite").write_bytes(b"any")
    with pytest.raises(MissingDependency, match=r"pcseg_ros\[teachers\]"):
        load(file=str(tmp_path / "net.tflite"))


def test_the_published_network_finds_the_street(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert", reason="pip install 'pcseg_ros[teachers]'")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(shared_data / "weights"))
    if not (shared_data / "weights" / KNOWN["deeplab-cityscapes"].file).is_file():
        pytest.skip("no deeplab-cityscapes among the real weights")
    teacher = load(
        file="deeplab-cityscapes", tensor="logits/semantic/BiasAdd", names=None, flip=False
    )
    file = min((shared_data / "kitti_raw").glob("*/*/image_02/data/*.png"))
    found = teacher.probabilities(np.asarray(Image.open(file).convert("RGB")))
    assert found.shape[0] == 19 and np.allclose(found.sum(0), 1, atol=1e-4)
    ahead = found[:, -12:, found.shape[2] // 2 - 20 : found.shape[2] // 2 + 20]
    assert (ahead.argmax(0) == teacher.label_space.index("road")).mean() > 0.9
