# SPDX-License-Identifier: Apache-2.0
"""ESPNetv2 and the teacher made of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.espnetv2 import ESPNetv2, branch_dilations
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Classes, load_espnetv2


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "espnetv2.safetensors"
    save_file(ESPNetv2(20, 0.5).state_dict(), str(path))
    return path


def test_dilations_fall_back_over_the_receptive_limit() -> None:
    assert branch_dilations(13) == [1, 2, 3, 4]
    assert branch_dilations(7) == [1, 1, 2, 3]


def test_probabilities_cover_the_image(weights: Path) -> None:
    space = LabelSpace.load("cityscapes")
    teacher = ESPNetv2Classes(weights, space, scales=(1.0, 0.5), flip=True)
    image = np.random.default_rng(0).integers(0, 255, (75, 121, 3), np.uint8)
    probabilities = teacher.probabilities(image)
    assert probabilities.shape == (19, 38, 61)
    assert (probabilities >= 0).all() and (probabilities.sum(0) <= 1 + 1e-5).all()
    assert teacher.features(image).shape[0] == 32


def test_mirror_averaging_makes_the_teacher_symmetric(weights: Path) -> None:
    teacher = ESPNetv2Classes(weights, LabelSpace.load("cityscapes"), flip=True)
    image = np.random.default_rng(1).integers(0, 255, (64, 96, 3), np.uint8)
    mirrored = teacher.probabilities(np.ascontiguousarray(image[:, ::-1]))
    assert np.allclose(mirrored[:, :, ::-1], teacher.probabilities(image), atol=1e-5)


@pytest.mark.parametrize("damage", ["missing", "text", "tensor", "shape", "classes"])
def test_unfit_weights_are_named(weights: Path, tmp_path: Path, damage: str) -> None:
    state = load_espnetv2(weights).state_dict()
    path = tmp_path / "bad.safetensors"
    if damage == "text":
        path.write_text("not tensors")
    elif damage == "tensor":
        state.pop("bu_br_l2.1.weight")
    elif damage == "shape":
        state["bu_br_l2.1.weight"] = torch.zeros(3)
    elif damage == "classes":
        state = ESPNetv2(8, 0.5).state_dict()
    if damage in ("tensor", "shape", "classes"):
        save_file(state, str(path))
    with pytest.raises(InputError, match="bad.safetensors"):
        ESPNetv2Classes(path, LabelSpace.load("cityscapes"))


def test_gray_or_float_images_are_refused(weights: Path) -> None:
    teacher = ESPNetv2Classes(weights, LabelSpace.load("cityscapes"))
    with pytest.raises(InputError, match="uint8 RGB"):
        teacher.probabilities(np.zeros((32, 32), np.uint8))


@pytest.mark.parametrize("scale", ["0.5", "2.0"])
def test_published_weights_know_a_street(shared_data: Path, scale: str) -> None:
    from PIL import Image

    path = shared_data / f"weights/espnetv2_s{scale}_cityscapes_1024x512.safetensors"
    space = LabelSpace.load("cityscapes")
    teacher = ESPNetv2Classes(path, space)
    image = np.asarray(Image.open(shared_data / "kitti_object/training/image_2/000008.png"))
    winner = teacher.probabilities(image).argmax(0)
    # A road straight ahead, a parked car at the lower left, sky in the middle of the top.
    assert (winner[140:165, 360:400] == space.index("road")).mean() > 0.9
    assert (winner[130:170, 30:80] == space.index("car")).mean() > 0.9
    assert (winner[5:20, 370:400] == space.index("sky")).mean() > 0.9
