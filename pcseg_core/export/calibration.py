# SPDX-License-Identifier: Apache-2.0
"""What the convolutions of a student read on recorded sweeps: ranges for int8, and test inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import nn

from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.sparse import SparseConv3d, SparseTensor

Logits = Callable[[SparseTensor], npt.NDArray[np.float32]]


@dataclass
class Recorded:
    """What a network read.

    Attributes:
        peaks: largest input of each convolution of kernel 2 or 3 after the stem, by its name.
        sweeps: input of the network for each sweep.
    """

    peaks: dict[str, float] = field(default_factory=dict)
    sweeps: list[SparseTensor] = field(default_factory=list)

    def take(self, name: str, _: nn.Module, inputs: tuple[SparseTensor]) -> None:
        """Forward pre-hook of a convolution."""
        feats = inputs[0].feats
        peak = float(feats.max()) if len(feats) else 0.0
        self.peaks[name] = max(peak, self.peaks.get(name, 0.0))

    def take_input(self, _: nn.Module, inputs: tuple[SparseTensor]) -> None:
        """Forward pre-hook of the stem."""
        self.sweeps.append(inputs[0])


def record(segmenter: Segmenter, clouds: Sequence[PointCloud]) -> Recorded:
    """Label sweeps and record what the network reads.

    Args:
        segmenter: on the CPU with the backend "torch".
        clouds: the sweeps.

    Raises:
        InputError: no sweep has a point in range.
    """
    with recording(segmenter.student.network) as recorded:
        for cloud in clouds:
            segmenter.segment(cloud)
    if not recorded.sweeps:
        raise InputError(
            f"calibration: none of {len(clouds)} sweeps has a point within "
            f"{segmenter.student.config.max_range_m:g} m; give another recording"
        )
    return recorded


@contextmanager
def recording(network: nn.Module) -> Iterator[Recorded]:
    """Record what a network on the torch backend reads within the block."""
    recorded, handles = Recorded(), []
    for name, module in network.named_modules():
        if not isinstance(module, SparseConv3d):
            continue
        if name.startswith("stem."):  # reads signed numbers: stays in float32
            handles.append(module.register_forward_pre_hook(recorded.take_input))
        elif module.kernel_size > 1:
            handles.append(module.register_forward_pre_hook(partial(recorded.take, name)))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def labels_changed(exact: Logits, given: Logits, sweeps: Sequence[SparseTensor]) -> float:
    """Share of the voxels that two graphs label differently."""
    changed = total = 0
    for x in sweeps:
        changed += int((exact(x).argmax(1) != given(x).argmax(1)).sum())
        total += len(x)
    return changed / max(total, 1)
