# SPDX-License-Identifier: Apache-2.0
"""A segmenter without a network, and the node around it as a program.

Run as a script it is `segment_node` with the fake inside. Its behaviour comes from the parameter
`checkpoint`, a string like `fake:delay=0.2`.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace


def expected_labels(xyz: np.ndarray) -> np.ndarray:
    """The fake's labels: a function of each point alone, so that a changed order shows."""
    finite = np.isfinite(xyz).all(axis=1)
    cells = np.where(finite, np.nan_to_num(xyz).sum(axis=1) * 10, 0).astype(np.int64)
    return np.where(finite, np.abs(cells) % 8, -1).astype(np.int32)


def expected_confidence(xyz: np.ndarray) -> np.ndarray:
    """The fake's confidence: 0.9 in front of the sensor, 0.4 behind it, 0 without position."""
    finite = np.isfinite(xyz).all(axis=1)
    front = np.where(np.nan_to_num(xyz[:, 0]) > 0, 0.9, 0.4)
    return np.where(finite, front, 0.0).astype(np.float32)


class FakeSegmenter:
    """Same doors as `pcseg_core.online.segmenter.Segmenter`."""

    def __init__(self, delay_s: float = 0.0, fail_every: int = 0) -> None:
        self.label_space = LabelSpace.load("street")
        self.device = "fake"
        self._delay_s = delay_s
        self._fail_every = fail_every
        self._count = 0

    def segment(self, cloud: PointCloud) -> Any:
        """Labels after a delay; every n-th sweep fails as a GPU without memory would."""
        self._count += 1
        time.sleep(self._delay_s)
        if self._fail_every and self._count % self._fail_every == 0:
            raise RuntimeError("CUDA out of memory (simulated)")
        return SimpleNamespace(
            labels=expected_labels(cloud.xyz),
            confidence=expected_confidence(cloud.xyz),
            timings_ms={},
        )


def make_fake(config: Any) -> FakeSegmenter:
    """`fake`, `fake:delay=0.2,fail_every=2,load=3`; anything else is a missing checkpoint."""
    kind, _, options = config.checkpoint.partition(":")
    if kind != "fake":
        raise InputError(f"no checkpoint at '{config.checkpoint}'")
    values = dict(option.split("=") for option in options.split(",") if option)
    if "load" in values:
        print("loading", flush=True)
        time.sleep(float(values["load"]))
    return FakeSegmenter(float(values.get("delay", 0)), int(values.get("fail_every", 0)))


if __name__ == "__main__":
    from pcseg_ros.segment_node import main

    main(segmenter_factory=make_fake)
