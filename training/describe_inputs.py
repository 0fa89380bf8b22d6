# SPDX-License-Identifier: Apache-2.0
"""Store the distribution of the training's sweeps in a checkpoint; the weights stay.

    python training/describe_inputs.py CHECKPOINT [SOURCE ...]

Sources are those of the training; without any, those that the checkpoint names. New checkpoints
get this from the training itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcseg_core.bundled import checkpoint_file
from pcseg_core.checkpoint import load_checkpoint, load_text, save_checkpoint
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


def main() -> None:
    """Measure, and rewrite the checkpoint in place."""
    file, *sources = sys.argv[1:]
    path = checkpoint_file(Path(file))
    state, meta = load_checkpoint(path)
    inputs = InputStatistics.measure(clouds(sources or list(meta.metrics["poses"])))
    save_checkpoint(path, state, meta.model_copy(update={"inputs": inputs}), load_text(path))
    print(inputs.model_dump_json(indent=2))


if __name__ == "__main__":
    main()
