# SPDX-License-Identifier: Apache-2.0
"""Store in a checkpoint what its users must know; the weights stay.

    python training/describe_inputs.py CHECKPOINT [SOURCE ...]
    python training/describe_inputs.py CHECKPOINT --measured DATA REPORT

The first command stores the distribution of the training's sweeps. Sources are those of the
training; without any, those that the checkpoint names. New checkpoints get this from the training
itself. The second one stores figures on real sweeps of a data set, from the JSON report of
`pcseg evaluate CHECKPOINT --semantic-kitti DIR --json REPORT`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcseg_core.bundled import checkpoint_file
from pcseg_core.checkpoint import Measurement, load_checkpoint, load_text, save_checkpoint
from pcseg_core.cloud import PointCloud
from pcseg_core.data import open_recording
from pcseg_core.input_check import InputStatistics

SWEEPS = 2  # of each source


def clouds(sources: list[str]) -> Iterator[PointCloud]:
    """Sweeps spread over each source."""
    for source in sources:
        recording = open_recording(source)
        for index in np.unique(np.linspace(0, len(recording) - 1, SWEEPS).astype(int)):
            yield recording[int(index)].cloud


def measured(data: str, file: str) -> Measurement:
    """Figures of a report of `pcseg evaluate`."""
    report = json.loads(Path(file).read_text(encoding="utf-8"))
    miou, accuracy = (round(report[key], 4) for key in ("miou", "accuracy"))
    return Measurement(data=data, sweeps=report["scans"], miou=miou, accuracy=accuracy)


def main() -> None:
    """Measure or read, and rewrite the checkpoint in place."""
    file, *rest = sys.argv[1:]
    path = checkpoint_file(Path(file))
    state, meta = load_checkpoint(path)
    if rest[:1] == ["--measured"]:
        changed = {"measured": measured(*rest[1:])}
    else:
        changed = {"inputs": InputStatistics.measure(clouds(rest or list(meta.metrics["poses"])))}
    save_checkpoint(path, state, meta.model_copy(update=changed), load_text(path))
    print("\n".join(section.model_dump_json(indent=2) for section in changed.values()))


if __name__ == "__main__":
    main()
