# SPDX-License-Identifier: Apache-2.0
"""Small students with batch norms far from the identity, and voxels to run them on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pcseg_core.checkpoint import CheckpointMeta, CheckpointText
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.sparse import SparseTensor
from pcseg_core.vision.text_space import GeneratedText, table_of

STREET = LabelSpace.load("street")


@pytest.fixture(autouse=True)
def _needs_the_extra() -> None:
    pytest.importorskip("onnx", reason="pip install 'pcseg_ros[export]'")
    pytest.importorskip("onnxruntime", reason="pip install 'pcseg_ros[export]'")


@pytest.fixture(scope="session")
def make_segmenter() -> Callable[..., Segmenter]:
    """Builds a segmenter on the torch backend; keyword arguments go to StudentConfig."""

    def make(**settings: object) -> Segmenter:
        torch.manual_seed(0)
        config = StudentConfig(**{"depth": 14, "width": 0.25, **settings})
        student = Student(config, len(STREET))
        for module in student.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
        nn.init.normal_(student.network.classifier.weight, 0, 1)
        meta = CheckpointMeta(student=config.model_dump(mode="json"), label_space=STREET.to_dict())
        text = None
        if config.text_channels:
            words = [*STREET.names, "minivan", "jeep", "lamp post"]
            table = table_of(GeneratedText(config.text_channels), words)
            text = CheckpointText(table, {name: (name,) for name in STREET.names})
        return Segmenter(student, STREET, meta, device="cpu", backend="torch", text=text)

    return make


@pytest.fixture(scope="session")
def make_voxels() -> Callable[..., SparseTensor]:
    """Builds about `count` voxels of a rough surface with random features."""

    def make(count: int, channels: int = 2, seed: int = 0) -> SparseTensor:
        generator = torch.Generator().manual_seed(seed)
        side = max(2, int(count**0.5 * 1.5))
        plane = torch.randint(-side // 2, side // 2, (count, 3), generator=generator)
        plane[:, 2] = plane[:, 0] // 7 + torch.randint(0, 3, (count,), generator=generator)
        coords = torch.unique(plane, dim=0)
        coords = torch.cat([coords.new_zeros(len(coords), 1), coords], 1)
        feats = torch.randn(len(coords), channels, generator=generator)
        return SparseTensor(coords, feats, backend="torch")

    return make
