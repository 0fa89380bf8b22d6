# SPDX-License-Identifier: Apache-2.0
"""Load a sweep from a file: KITTI or nuScenes .bin, PCD, npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcseg_core.errors import InputError

_PCD_TYPES = {"F": "f", "I": "i", "U": "u"}


def load_sweep(path: str | Path) -> np.ndarray:
    """Finite points (N, 4) float32: x, y, z [m] and intensity (0 without intensity).

    Raises:
        InputError: the file is missing, unknown, damaged or without points.
    """
    path = Path(path)
    readers = {".bin": _read_bin, ".pcd": _read_pcd, ".npz": _read_npz}
    if path.suffix not in readers:
        raise InputError(f"{path}: expected a sweep ending in {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    points = readers[path.suffix](path)
    points = np.ascontiguousarray(points[np.isfinite(points).all(1)], np.float32)
    if not len(points):
        raise InputError(f"{path}: no finite points")
    return points


def _read_bin(path: Path) -> np.ndarray:
    """KITTI has four columns; nuScenes five, the last of them a ring of whole numbers."""
    values = np.fromfile(path, np.float32)
    if len(values) and len(values) % 5 == 0:
        table = values.reshape(-1, 5)
        ring = table[:, 4]
        if path.name.endswith(".pcd.bin") or (
            (ring == np.floor(ring)).all() and ring.min() >= 0 and ring.max() < 256
        ):
            return table[:, :4]
    if not len(values) or len(values) % 4:
        raise InputError(f"{path}: {len(values)} floats are neither rows of 4 nor of 5")
    return values.reshape(-1, 4)


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        name = next((n for n in ("xyz", "points", "cloud") if n in archive), None)
        if name is None:
            raise InputError(f"{path}: expected an array 'xyz', found {sorted(archive)}")
        xyz = archive[name].reshape(-1, archive[name].shape[-1])
        if xyz.shape[1] >= 4:
            return xyz[:, :4]
        intensity = (
            archive["intensity"].reshape(-1) if "intensity" in archive else np.zeros(len(xyz))
        )
        return np.column_stack([xyz, intensity])


def _read_pcd(path: Path) -> np.ndarray:
    header, body = _pcd_header(path)
    fields = header["FIELDS"]
    counts = [int(c) for c in header.get("COUNT", ["1"] * len(fields))]
    kinds = zip(header["TYPE"], header["SIZE"], strict=True)
    dtype = np.dtype(
        [
            (f"{name}_{i}" if name == "_" else name, f"<{_PCD_TYPES[kind]}{size}", (count,))
            for i, (name, (kind, size), count) in enumerate(zip(fields, kinds, counts, strict=True))
        ]
    )
    rows = int(header["POINTS"][0])
    if header["DATA"] == ["ascii"]:
        table = np.loadtxt(body.decode().splitlines(), ndmin=2)
        at = dict(zip(fields, np.cumsum([0, *counts[:-1]]), strict=True))
        columns = {name: table[:, at[name]] for name in at}
    elif header["DATA"] == ["binary"] and len(body) >= rows * dtype.itemsize:
        array = np.frombuffer(body, dtype, rows)
        columns = {name: array[name][:, 0] for name in dtype.names or ()}
    else:
        raise InputError(f"{path}: PCD data {header['DATA']} is unknown or cut short")
    if not {"x", "y", "z"} <= set(columns):
        raise InputError(f"{path}: expected fields x, y, z, found {fields}")
    intensity = columns.get("intensity", np.zeros(len(columns["x"])))
    return np.column_stack([columns["x"], columns["y"], columns["z"], intensity])


def _pcd_header(path: Path) -> tuple[dict[str, list[str]], bytes]:
    content, header = path.read_bytes(), {}
    while "DATA" not in header:
        line, newline, content = content.partition(b"\n")
        if not newline:
            raise InputError(f"{path}: not a PCD file (no DATA line)")
        words = line.decode("ascii", "replace").split()
        if words and not words[0].startswith("#"):
            header[words[0]] = words[1:]
    missing = {"FIELDS", "SIZE", "TYPE", "POINTS"} - set(header)
    if missing:
        raise InputError(f"{path}: the PCD header lacks {', '.join(sorted(missing))}")
    return header, content
