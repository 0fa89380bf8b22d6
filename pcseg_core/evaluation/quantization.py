# SPDX-License-Identifier: Apache-2.0
"""Calibrate a network in 8-bit integers on sweeps, and compare its labels with float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pcseg_core.checkpoint import (
    MAX_MAGNITUDE,
    IntegerScales,
    load_checkpoint,
    load_text,
    save_checkpoint,
)
from pcseg_core.data import readable
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace, grouping, regroup, truth_of
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.models.inference import only_minkunet
from pcseg_core.models.quantized import MeasuredMinkUNet
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.segmenter import Segmenter

if TYPE_CHECKING:
    from pcseg_core.data import Recording, Sample

Progress = Callable[[int, int], None]
_MEASURED_IN = "street"


def quantize(
    checkpoint: Path,
    recording: Recording,
    out: Path,
    sweeps: int = 16,
    progress: Progress | None = None,
) -> IntegerScales:
    """Write a copy of a checkpoint that also runs in 8-bit integers.

    The first half of the recording sets the scales. Sweeps of the second half are labeled in
    float32 and in integers and compared.

    Args:
        checkpoint: as `Segmenter.load` takes it.
        recording: sweeps, with or without labels.
        out: the file to write.
        sweeps: the most sweeps of each half; they are evenly spaced.
        progress: called with (sweeps done, sweeps in all).

    Raises:
        InputError: see `Segmenter.load`; another family than MinkUNet; fewer than two sweeps; no
            points; no native library.
    """
    exact = Segmenter.load(checkpoint, "cpu", "fp32", "native")
    first, second = _halves(len(recording), sweeps, recording.name)
    count = len(first) + len(second)
    measured = MeasuredMinkUNet(only_minkunet(exact.student.network, "pcseg quantize"))
    exact.replace_network(measured)
    pipeline, used = Pipeline(exact), 0
    for used, (_, sample) in enumerate(readable(recording, first), start=1):
        pipeline.process(Sweep.of(sample))
        if progress:
            progress(used, count)
    if not any(measured.tops):
        raise InputError(f"{recording.name}: no points to calibrate on in its first half")
    if max(measured.tops) > MAX_MAGNITUDE:
        raise InputError(f"{checkpoint}: layers give up to {max(measured.tops):g}; train it again")
    scales = IntegerScales(tops=measured.tops, source=recording.name, sweeps=used)
    comparison = _Comparison(exact, scales)
    for done, (_, sample) in enumerate(readable(recording, second), start=1):
        comparison.add(sample)
        if progress:
            progress(len(first) + done, count)
    scales = comparison.scales()
    state, meta = load_checkpoint(checkpoint)
    meta = meta.model_copy(update={"int8": scales})
    save_checkpoint(out, state, meta, load_text(checkpoint))
    return scales


def _halves(count: int, most: int, name: str) -> tuple[list[int], list[int]]:
    """Indices of sweeps to calibrate and to compare on."""
    if count < 2:
        raise InputError(
            f"{name}: {count} sweeps; expected at least two, one to calibrate on and one to "
            "compare on"
        )
    return _spaced(range(count // 2), most), _spaced(range(count // 2, count), most)


def _spaced(indices: range, most: int) -> list[int]:
    """At most so many of the indices, evenly spaced."""
    chosen = min(most, len(indices))
    return [indices[i * len(indices) // chosen] for i in range(chosen)]


class _Comparison:
    """Labels in float32 and in integers, and with the ground truth where it is known."""

    def __init__(self, exact: Segmenter, scales: IntegerScales) -> None:
        meta = exact.meta.model_copy(update={"int8": scales})
        space = exact.label_space
        integers = Segmenter(exact.student, space, meta, "cpu", "int8", backend="native")
        self._scales = scales
        self._pipelines = Pipeline(exact), Pipeline(integers)
        self._space = LabelSpace.load(_MEASURED_IN)
        self._groups: npt.NDArray[np.int64] | None = None
        with suppress(InputError):  # the labels have no place in the space
            self._groups = grouping(space, self._space)
        self._confusions = tuple(Confusion(len(self._space)) for _ in self._pipelines)
        self._same = self._points = self._sweeps = 0

    def add(self, sample: Sample) -> None:
        given = [pipeline.process(Sweep.of(sample)).labels for pipeline in self._pipelines]
        labeled = given[0] >= 0
        self._same += int((given[0] == given[1])[labeled].sum())
        self._points += int(labeled.sum())
        self._sweeps += 1
        truth = self._truth(sample)
        if truth is not None and self._groups is not None:
            for confusion, labels in zip(self._confusions, given, strict=True):
                confusion.update(regroup(labels, self._groups), truth)

    def _truth(self, sample: Sample) -> npt.NDArray[np.int64] | None:
        """Ground truth; None without any, or if it has no place in the label space."""
        try:
            return truth_of(sample, self._space)
        except InputError:
            return None

    def scales(self) -> IntegerScales:
        """The scales with the result of the comparison."""
        agreement = self._same / self._points if self._points else 0.0
        figures: dict[str, object] = {"compared": self._sweeps, "agreement": agreement}
        before, after = (confusion.miou for confusion in self._confusions)
        if np.isfinite(before) and np.isfinite(after):
            figures |= {"miou_fp32": float(before), "miou_int8": float(after)}
        return self._scales.model_copy(update=figures)
