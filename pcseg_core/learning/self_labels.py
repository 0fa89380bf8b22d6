# SPDX-License-Identifier: Apache-2.0
"""Class probabilities of all points of a sweep by the student itself, averaged over views.

Labels near the vehicle are rare, and come from few places, if cameras look far ahead. A student
then learns the density of points instead of the surface: near ground is one class, far ground
another. So near surfaces are shown to it as thin as far ones, for which it has labels of many
places.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from pcseg_core.geometry import from_euler
from pcseg_core.learning.augment import thinned
from pcseg_core.learning.recipe import RoundsConfig
from pcseg_core.models.inference import compile_inference
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.models.student import Student
from pcseg_core.models.sweep_input import sweep_input
from pcseg_core.sparse.backends import resolve

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class SelfLabeler:
    """A trained student that labels the sweeps of its own training.

    Args:
        student: the network.
        config: views.
        seed: of the random views.
    """

    def __init__(self, student: Student, config: RoundsConfig, seed: int) -> None:
        self.student, self.config, self.seed = student.eval(), config, seed
        self.device = next(student.parameters()).device
        self.backend = resolve("auto", self.device)
        network = student.network
        compiled = self.backend == "native" and isinstance(network, MinkUNet)
        self.network = compile_inference(network, "fp32") if compiled else network  # type: ignore

    def probabilities(self, xyz: Array, intensity: Array, sweep: str) -> Float32:
        """(N, C) class probabilities of all points, rows of 0 out of range.

        Args:
            xyz: (N, 3) float32 points of a sweep [m].
            intensity: (N,) float32 in 0..1.
            sweep: its name; the same sweep gets the same views.
        """
        rng = np.random.default_rng((self.seed, zlib.crc32(sweep.encode())))
        views = [self._view(xyz, intensity, rng) for _ in range(self.config.views)]
        result: Float32 = np.mean(views, axis=0)
        return result

    @torch.inference_mode()
    def _view(self, xyz: Array, intensity: Array, rng: np.random.Generator) -> Float32:
        kept = np.flatnonzero(thinned(xyz, rng.uniform(*self.config.thin_m), rng))
        turn = from_euler(0, 0, rng.uniform(-np.pi, np.pi))[:3, :3].astype(np.float32)
        if rng.random() < 0.5:
            turn = turn @ np.diag([1.0, -1.0, 1.0]).astype(np.float32)
        moved = np.ascontiguousarray(xyz[kept] @ turn.T)
        sweep = sweep_input(self.student, moved, intensity[kept], self.device, self.backend)
        classes = self.student.network.classifier.out_features
        found = np.zeros((len(xyz), classes), np.float32)
        if sweep.sparse is None:
            return found
        likely = self.network(sweep.sparse).feats.float().softmax(1).cpu().numpy()
        inverse = sweep.inverse.cpu().numpy()
        found[kept[inverse >= 0]] = likely[inverse[inverse >= 0]]
        left_out = np.ones(len(xyz), bool)
        left_out[kept] = False
        if len(kept):
            found[left_out] = found[kept[cKDTree(xyz[kept]).query(xyz[left_out])[1]]]
        return found
