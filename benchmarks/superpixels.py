# SPDX-License-Identifier: Apache-2.0
"""Compare SLIC implementations: time and explained color variance.

    python -m benchmarks.superpixels IMAGE... --json OUT

All get about the same number of segments, since more segments explain more. Implementations take
turns on each image. OpenCV needs opencv-contrib-python-headless, the reference scikit-image;
implementations that are not installed are skipped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import interleaved, threads
from pcseg_core.files import write_atomic
from pcseg_core.vision.slic import Slic, cielab
from pcseg_core.vision.superpixels import resize_ids

Segment = Callable[[np.ndarray], np.ndarray]


def explained_variance(image: np.ndarray, ids: np.ndarray) -> float:
    """Share of the CIELAB variance explained by the mean colors of the segments, 0..1.

    Moore et al., Superpixel lattices, CVPR 2008.
    """
    lab = cielab(image)[0].flatten(1).numpy().astype(np.float64)
    _, inverse = np.unique(ids, return_inverse=True)
    inverse = inverse.ravel()
    count = np.bincount(inverse)
    means = np.stack([np.bincount(inverse, channel) / count for channel in lab])
    center = lab.mean(1, keepdims=True)
    between = ((means - center) ** 2 * count).sum()
    return float(between / ((lab - center) ** 2).sum())


def _reference(image: np.ndarray, segments: int, sigma: float) -> np.ndarray:
    from skimage.segmentation import slic

    return slic(image, segments, 6.0, sigma=sigma, start_label=0)


def _half(image: np.ndarray, segments: int) -> np.ndarray:
    height, width = image.shape[:2]
    small = np.asarray(Image.fromarray(image).reduce(2))
    return resize_ids(_reference(small, segments, 1.5), height, width)


def _opencv(image: np.ndarray, segments: int, kind: str) -> np.ndarray:
    import cv2

    lab = cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), 1.0), cv2.COLOR_RGB2LAB)
    side = round((image.shape[0] * image.shape[1] / segments) ** 0.5)
    if kind == "LSC":
        worker = cv2.ximgproc.createSuperpixelLSC(lab, side)
    else:
        worker = cv2.ximgproc.createSuperpixelSLIC(lab, getattr(cv2.ximgproc, kind), side)
    worker.iterate(10)
    worker.enforceLabelConnectivity(25)
    return worker.getLabels()


def implementations(segments: int) -> dict[str, Segment]:
    """Installed implementations; the reference makes fewer segments than requested."""
    found: dict[str, Segment] = {"pcseg": lambda image: Slic(segments).segment(image).ids}
    if find_spec("skimage"):
        asked = round(1.6 * segments)
        found["scikit-image"] = partial(_reference, segments=asked, sigma=3.0)
        found["scikit-image, half size"] = partial(_half, segments=asked)
    if find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        for kind in ("SLIC", "SLICO", "LSC") if hasattr(cv2, "ximgproc") else ():
            found[f"OpenCV {kind}"] = partial(_opencv, segments=segments, kind=kind)
    return found


def compare(images: list[np.ndarray], segments: int, rounds: int) -> list[dict[str, Any]]:
    """One row per implementation: medians over rounds, means over images."""
    rows: dict[str, dict[str, list[float]]] = {}
    for image in images:
        runs = {name: partial(f, image) for name, f in implementations(segments).items()}
        with threads(1):
            times = interleaved(runs, rounds)
        for name, run in runs.items():
            ids = run()
            row = rows.setdefault(name, {"ms": [], "segments": [], "explained_variance": []})
            row["ms"].append(times[name])
            row["segments"].append(len(np.unique(ids)))
            row["explained_variance"].append(explained_variance(image, ids))
    return [
        {"name": name, **{k: round(float(np.mean(v)), 4) for k, v in row.items()}}
        for name, row in rows.items()
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--segments", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in options.images]
    rows = compare(pictures, options.segments, options.rounds)
    print("| implementation | ms | segments | explained variance |\n|---|---|---|---|")
    for row in rows:
        figures = f"{row['ms']:.0f} | {row['segments']:.0f} | {row['explained_variance']:.3f}"
        print(f"| {row['name']} | {figures} |")
    if options.json:
        write_atomic(options.json, json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
