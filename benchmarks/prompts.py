# SPDX-License-Identifier: Apache-2.0
"""Cost of prompts: a sweep labeled with the checkpoint's own classes and with words, in turn.

    python -m benchmarks.prompts --sweep FILE [--prompts 20] [--json OUT]

The network has random weights unless --checkpoint is given; its time does not depend on them.
"cost" is the median over rounds of the difference between words and own classes: wall time, and
CPU time of all threads, which depends less on other load of the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.sweeps import load_sweep
from pcseg_core.checkpoint import CheckpointMeta, CheckpointText
from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.files import write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.vision.text_space import GeneratedText, table_of

CHANNELS = 512  # of CLIP's text space


def build(arguments: argparse.Namespace) -> Segmenter:
    """The segmenter of a checkpoint, or one with random weights and words."""
    if arguments.checkpoint:
        return Segmenter.load(arguments.checkpoint, device="cpu")
    torch.manual_seed(0)
    config = StudentConfig(
        depth=arguments.depth,
        width=arguments.width,
        voxel_size_m=arguments.voxel,
        text_channels=CHANNELS,
    )
    space = LabelSpace.load("street")
    words = [f"word {i}" for i in range(arguments.prompts)]
    text = CheckpointText(table_of(GeneratedText(CHANNELS), [*space.names, *words]), {})
    meta = CheckpointMeta(student=config.model_dump(mode="json"), label_space=space.to_dict())
    return Segmenter(Student(config, len(space)), space, meta, "cpu", text=text)


def measure(segmenter: Segmenter, cloud: PointCloud, count: int, rounds: int) -> dict[str, Any]:
    """Medians of both, of their difference, and of setting the prompts."""
    if segmenter.text is None:
        raise InputError("the checkpoint knows no words")
    pipeline, sweep, table = Pipeline(segmenter), Sweep(cloud), segmenter.text.table
    prompts = [word for word in table.words if "," not in word and ":" not in word][-count:]

    actions = {
        "reset": lambda: pipeline.set_prompts(None),
        "own_classes": lambda: pipeline.process(sweep),
        "set_prompts": lambda: pipeline.set_prompts(prompts),
        "words": lambda: pipeline.process(sweep),
    }
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    spent: dict[str, list[float]] = {f"{a}_{c}_ms": [] for a in actions for c in clocks}
    for turn in range(rounds + 2):
        for name, action in actions.items():
            before = {clock: read() for clock, read in clocks.items()}
            action()
            for clock, read in clocks.items():
                if turn >= 2:
                    spent[f"{name}_{clock}_ms"].append(1e3 * (read() - before[clock]))
    row: dict[str, Any] = {"kind": "prompts", "points": len(cloud), "prompts": len(prompts)}
    row |= {name: statistics.median(values) for name, values in spent.items()}
    for clock in clocks:
        pairs = zip(spent[f"own_classes_{clock}_ms"], spent[f"words_{clock}_ms"])
        row[f"cost_{clock}_ms"] = statistics.median(b - a for a, b in pairs)
    return row | {"rounds": rounds, "threads": torch.get_num_threads()}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sweep", required=True, help="KITTI or nuScenes .bin, PCD or npz")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the row here")
    parser.add_argument("--checkpoint", help="run directory or checkpoint; default random weights")
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--voxel", type=float, default=0.1, help="edge of a voxel [m]")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    try:
        if arguments.rounds < 1 or arguments.prompts < 1:
            raise InputError("--rounds and --prompts: expected at least 1")
        points = load_sweep(arguments.sweep)
        row = measure(
            build(arguments),
            PointCloud(points[:, :3], points[:, 3]),
            arguments.prompts,
            arguments.rounds,
        )
        print(json.dumps(row, indent=1))
        if arguments.json:
            write_atomic(arguments.json, json.dumps([row], indent=1))
    except PcsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
