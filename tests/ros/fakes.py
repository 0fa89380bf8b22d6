# SPDX-License-Identifier: Apache-2.0
"""A segmenter without a network, and the node around it as a program.

Run as a script it is `segment_node` with the fake inside. Its behavior comes from the parameter
`checkpoint`, a string like `fake:delay=0.2`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.input_check import InputStatistics
from pcseg_core.labels import LabelSpace

# Of sweeps of 2,000 points with 64 beams, as `harness.sweep` makes them.
_TRAINED_ON = InputStatistics(
    intensity=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    range_m=(16.5, 20.9, 24.1, 26.8, 29.1, 31.3, 33.4, 36.0, 39.3),
    returns=(1800, 2200),
    rings=(64, 64),
)


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


@dataclass
class FakeSegmentation:
    """Has the fields of `pcseg_core.online.segmenter.Segmentation`, which needs torch."""

    labels: np.ndarray
    confidence: np.ndarray
    timings_ms: dict[str, float]
    probabilities: np.ndarray | None
    label_space: LabelSpace
    out_of_range: int = 0
    not_finite: int = 0
    uncalibrated: np.ndarray | None = None


class FakeSegmenter:
    """Has the methods of `pcseg_core.online.segmenter.Segmenter`."""

    KNOWN = ("car", "truck", "bus", "tree", "bush", "road", "person", "bäume")

    def __init__(
        self,
        delay_s: float = 0.0,
        fail_every: int = 0,
        trained: bool = False,
        damaged: bool = False,
        painted: bool = False,
    ) -> None:
        self.label_space = LabelSpace.load("street")
        self.device = "fake"
        self.engine = "fake fp32"
        self._delay_s = delay_s
        self._fail_every = fail_every
        self.trained_on = _TRAINED_ON if trained else None
        self._damaged = damaged
        self._painted = painted
        self._count = -1  # the sweep that warms up is not counted

    def set_prompts(self, prompts: list[str] | None) -> LabelSpace:
        """As the real one: groups before a colon, '*' for everything else, None for its own."""
        if prompts is None:
            self.label_space = LabelSpace.load("street")
            return self.label_space
        names = [entry.partition(":")[0].strip() for entry in prompts]
        words = [w.strip() for e in prompts for w in e.rpartition(":")[2].split(",")]
        unknown = [word for word in words if word not in (*self.KNOWN, "*")]
        if not prompts or unknown:
            raise InputError(f"no embedding of '{unknown[0] if unknown else ''}'")
        classes = [{"name": n, "color": [i, i, i]} for i, n in enumerate(names)]
        self.label_space = LabelSpace.from_dict({"name": "prompts", "classes": classes})
        return self.label_space

    def segment(self, cloud: PointCloud, probabilities: bool = False) -> FakeSegmentation:
        """Labels after a delay; every n-th sweep fails as a GPU without memory would."""
        self._count += 1
        time.sleep(self._delay_s if self._count else 0)
        if self._fail_every and self._count and self._count % self._fail_every == 0:
            raise RuntimeError("CUDA out of memory (simulated)")
        classes = len(self.label_space)
        labels = expected_labels(cloud.xyz)
        if self._painted and cloud.intensity is not None:
            labels = np.where(labels < 0, -1, np.round(10 * cloud.intensity)).astype(np.int32)
        labels = np.where(labels < 0, -1, labels % classes).astype(np.int32)
        confidence = expected_confidence(cloud.xyz)
        if self._damaged:
            confidence[:1] = np.nan
        every = None
        if probabilities:
            rest = (1.0 - confidence) / max(classes - 1, 1)
            every = np.where(labels[:, None] < 0, 0.0, np.repeat(rest[:, None], classes, 1))
            known = np.flatnonzero(labels >= 0)
            every[known, labels[known]] = confidence[known]
            every = every.astype(np.float32)
        return FakeSegmentation(labels, confidence, {}, every, self.label_space)


def make_fake(config: Any) -> FakeSegmenter:
    """`fake`, `fake:delay=0.2,fail_every=2,load=3`; anything else is a missing checkpoint.

    With `trained=1` it knows the distribution of its training, with `damaged=1` it gives a point
    a confidence of NaN, with `painted=1` the class of a point is ten times its intensity.
    """
    kind, _, options = config.checkpoint.partition(":")
    if kind != "fake":
        raise InputError(f"no checkpoint at '{config.checkpoint}'")
    values = dict(option.split("=") for option in options.split(",") if option)
    if "load" in values:
        print("loading", flush=True)
        time.sleep(float(values["load"]))
    flags = ("trained" in values, "damaged" in values, "painted" in values)
    return FakeSegmenter(float(values.get("delay", 0)), int(values.get("fail_every", 0)), *flags)


if __name__ == "__main__":
    from pcseg_ros.segment_node import main

    main(segmenter_factory=make_fake)
