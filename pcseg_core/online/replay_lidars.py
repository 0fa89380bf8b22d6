# SPDX-License-Identifier: Apache-2.0
"""Labels of the messages of several LiDARs of a bag, whose sweeps are labeled united."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.data.bag import BagRecording
from pcseg_core.errors import InputError
from pcseg_core.online.pipeline import LabeledSweep, Sweep

Fields: TypeAlias = "dict[str, npt.NDArray[Any]]"
Message: TypeAlias = "tuple[str, int]"  # topic, and position in its index


class UnitedLabels:
    """Gives each message of a bag its part of the labels of the sweep that it belongs to.

    Args:
        recording: of several cloud topics.
        label: labels the sweep of an index; may raise InputError.
        fields: fields of labeled points (N,).
        skipped: counts why sweeps have no labels.
    """

    def __init__(
        self,
        recording: BagRecording,
        label: Callable[[int, Sweep], LabeledSweep],
        fields: Callable[[LabeledSweep], Fields],
        skipped: Counter[str],
    ) -> None:
        self._recording = copy.deepcopy(recording)  # reads while others iterate over the files
        self._label, self._fields, self._skipped = label, fields, skipped
        self._ready: dict[Message, Fields] = {}
        self._sweep_of: dict[Message, int] = {
            (topic, position): sweep
            for sweep in range(len(recording))
            for topic, position in recording.sweeps.members(sweep).items()
        }
        self._seen: Counter[tuple[str, int]] = Counter()
        self._position: dict[tuple[str, int, int], int] = {}
        for topic, lidar in recording.sweeps.lidars.items():
            rows = zip(lidar.index.bag_ns.tolist(), lidar.index.occurrence.tolist())
            self._position |= {(topic, *row): position for position, row in enumerate(rows)}

    def of(self, topic: str, bag_ns: int) -> Fields | None:
        """Fields of the next message of a topic with this recording time, or None."""
        number = self._seen[topic, bag_ns]
        self._seen[topic, bag_ns] += 1
        message = topic, self._position.get((topic, bag_ns, number), -1)
        sweep = self._sweep_of.pop(message, None)
        if sweep is not None:
            self._process(sweep)
        return self._ready.pop(message, None)

    def _process(self, sweep: int) -> None:
        """Label a sweep and keep the parts of its messages until they come."""
        members = [(t, p) for t, p in self._recording.sweeps.members(sweep).items()]
        for message in members:
            self._sweep_of.pop(message, None)
        try:
            sample = self._recording[sweep]
            labeled = self._label(sweep, Sweep.of(sample))
        except InputError as error:
            self._skipped[str(error)] += 1
            return
        fields, source = self._fields(labeled), sample.cloud.source
        assert source is not None
        for topic, position in members:
            own = np.flatnonzero(source == self._recording.sweeps.topics.index(topic))
            self._ready[topic, position] = {name: values[own] for name, values in fields.items()}
