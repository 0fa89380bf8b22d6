# SPDX-License-Identifier: Apache-2.0
"""A student with a network of another family than MinkUNet, from the segmenter to its limits."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pcseg_core.checkpoint import CheckpointMeta
from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.models import student as students
from pcseg_core.models.inference import only_minkunet
from pcseg_core.models.network import Network
from pcseg_core.models.student import Student, StudentConfig, stored_config
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.sparse import SparseTensor

STREET = LabelSpace.load("street")
CONFIG = StudentConfig(inputs=("x", "y", "z"), voxel_size_m=0.5)


class Thresholds(Network):
    """The class is the sign of each coordinate, in binary."""

    in_channels, out_channels, feature_channels = 3, 8, 3

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 8)
        bits = torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)]) * 2.0 - 1
        with torch.no_grad():
            self.classifier.weight.copy_(bits)
            self.classifier.bias.zero_()

    def features(self, x: SparseTensor) -> Tensor:
        return x.feats.sign()


@pytest.fixture
def student(monkeypatch: pytest.MonkeyPatch) -> Student:
    monkeypatch.setattr(students, "make_network", lambda config, classes: Thresholds())
    return Student(CONFIG.model_copy(update={"text_channels": 4}), len(STREET))


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_segmenter_runs_another_family_as_a_module(student: Student, backend: str) -> None:
    meta = CheckpointMeta(
        student=student.config.model_dump(mode="json"), label_space=STREET.to_dict()
    )
    segmenter = Segmenter(student, STREET, meta, "cpu", backend=backend)
    rng = np.random.default_rng(0)
    xyz = (rng.choice([-1, 1], (500, 3)) * rng.uniform(0.6, 20, (500, 3))).astype(np.float32)
    expected = (xyz > 0) @ np.array([1, 2, 4])
    np.testing.assert_array_equal(segmenter.segment(PointCloud(xyz)).labels, expected)
    assert segmenter.engine == "torch fp32"
    with pytest.raises(InputError, match="Thresholds runs in fp32 only"):
        Segmenter(student, STREET, meta, "cpu", "bf16", backend=backend)


def test_settings_of_other_families_are_not_stored() -> None:
    """Their defaults may change: a stored one would then look like a setting without effect."""
    stored = StudentConfig().model_dump(mode="json")
    assert "width" in stored and not {"waffleiron", "ptv3"} & set(stored)
    inputs = ("intensity", "x", "y", "z")
    other = StudentConfig(network="waffleiron", inputs=inputs)
    stored = other.model_dump(mode="json")
    assert "waffleiron" in stored and not {"width", "planes", "ptv3"} & set(stored)
    assert stored_config(stored, "run") == other
    with pytest.raises(InputError, match="checkpoint run: .*width: of the network 'minkunet'"):
        stored_config({**stored, "width": 0.25}, "run")


def test_commands_for_minkunet_only_say_so() -> None:
    with pytest.raises(InputError, match="pcseg quantize: expected .* 'minkunet'.*Thresholds"):
        only_minkunet(Thresholds(), "pcseg quantize")
