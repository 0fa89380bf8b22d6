# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one engine in a child process."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch

from benchmarks import engine_cases as cases
from benchmarks.measure import memory_mb
from benchmarks.sweeps import load_sweep
from pcseg_core.errors import PcsegError


def peak_rss_mb(
    sweep: str, voxel: float, engine: str, depth: int, width: float, copies: int
) -> float:
    """Peak resident memory in MB of loading a sweep, building the engine and two forwards.

    Args:
        engine: "native fp32", "native bf16", "native int8", "torch fp32" or "spconv fp32".
        copies: number of rotated copies of the sweep in the batch.

    Raises:
        PcsegError: the process failed; the message ends with its output.
    """
    command = [sys.executable, "-m", "benchmarks.engine_rss", sweep, str(voxel), engine]
    command += [str(depth), str(width), str(copies), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PcsegError(f"{engine}: memory could not be measured: {done.stderr[-500:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["rss_mb"])


def make_engine(name: str, net: cases.MinkUNet, grid: cases.Grid) -> cases.Forward:
    """The engine of a name that `peak_rss_mb` takes; integers are calibrated on the grid."""
    library, precision = name.split()
    if library == "native":
        return cases.native_engine(net, precision, grid)
    if library == "spconv":
        return cases.spconv_engine(net, 1)
    return cases.torch_engine(net)


def main() -> None:
    """Run in the subprocess; prints one line of JSON."""
    parser = argparse.ArgumentParser()
    for name, kind in (
        ("sweep", str),
        ("voxel", float),
        ("engine", str),
        ("depth", int),
        ("width", float),
        ("copies", int),
        ("threads", int),
    ):
        parser.add_argument(name, type=kind)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    points = torch.from_numpy(load_sweep(given.sweep))
    grid = cases.repeated(points, given.voxel, given.copies)
    torch.manual_seed(0)
    net = cases.MinkUNet(4, cases.CLASSES, given.depth, given.width).eval()
    run = make_engine(given.engine, net, grid)
    del net
    for _ in range(2):
        run(grid)
    print(json.dumps({"rss_mb": round(memory_mb(), 1), "voxels": len(grid.coords)}))


if __name__ == "__main__":
    main()
