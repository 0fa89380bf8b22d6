# SPDX-License-Identifier: Apache-2.0
"""Labeled sweeps as PCD and LAS files, for programs that know no sequences.

Points are in the LiDAR frame, in recorded order. labels.yaml beside them gives the classes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud_writer import pack_rgb
from pcseg_core.data.label_files import LABELS_FILE, labels_yaml, raw_ids_of
from pcseg_core.data.label_formats.sweep import ExportSweep
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace

_PCD_CODES = {"I": "i", "U": "u", "F": "f"}
_UNLABELED = (128, 128, 128)
LAS_SCALE_M = 1e-4  # of a coordinate's integer
LAS_FIRST_CLASS = 64  # codes below have a meaning in the standard
_LAS_RECORD = np.dtype(
    [("xyz", "<i4", 3), ("intensity", "<u2"), ("returns", "u1"), ("flags", "u1"),
     ("classification", "u1"), ("user", "u1"), ("angle", "<i2"), ("source", "<u2"),
     ("gps_time", "<f8"), ("rgb", "<u2", 3), ("label", "<u2")]
)  # fmt: skip


class _CloudExport:
    """Writes one file per sweep, and labels.yaml."""

    suffix = ""

    def __init__(self, folder: Path, space: LabelSpace) -> None:
        self.folder, self.space, self.raw_ids = folder, space, raw_ids_of(space)

    def write(self, sweep: ExportSweep) -> str:
        """Write the sweep; see `Exporter`."""
        name = f"{sweep.place}{self.suffix}"
        path = self.folder / name
        content = self.encode(sweep)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return name

    def finish(self) -> list[str]:
        """Write the classes."""
        (self.folder / LABELS_FILE).write_text(labels_yaml(self.space, self.raw_ids))
        return []

    def encode(self, sweep: ExportSweep) -> bytes:
        """Content of the file of a sweep."""
        raise NotImplementedError

    def numbers(self, sweep: ExportSweep) -> npt.NDArray[np.uint32]:
        """(N,) number of the class of each point, 0 for none."""
        return np.where(sweep.labels < 0, 0, self.raw_ids[sweep.labels]).astype(np.uint32)


class PcdExport(_CloudExport):
    """Binary PCD 0.7: x, y, z, intensity (0 to 1), label (uint32), rgb."""

    suffix = ".pcd"

    def encode(self, sweep: ExportSweep) -> bytes:
        """Content of a .pcd; points without a return are NaN."""
        cloud = sweep.sample.cloud
        fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4")]
        points = np.zeros(len(cloud), np.dtype([*fields, ("label", "<u4"), ("rgb", "<f4")]))
        values = sweep.points(deskewed=False)
        values[~cloud.finite, :3] = np.nan
        for (name, _), column in zip(fields, values.T):
            points[name] = column
        points["label"] = self.numbers(sweep)
        points["rgb"] = pack_rgb(self.space.colorize(sweep.labels, ignored=_UNLABELED))
        header = (
            "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n"
            "FIELDS x y z intensity label rgb\nSIZE 4 4 4 4 4 4\nTYPE F F F F U F\n"
            f"COUNT 1 1 1 1 1 1\nWIDTH {cloud.width}\nHEIGHT {cloud.height}\n"
            f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(cloud)}\nDATA binary\n"
        )
        return header.encode() + points.tobytes()


def read_pcd_field(file: Path, name: str) -> npt.NDArray[np.int64]:
    """(N,) whole numbers of a field of a PCD file, ascii or binary, as an editor stored it.

    Raises:
        InputError: not such a file, no such field, or a value that is no whole number.
    """
    try:
        head, mark, body = file.read_bytes().partition(b"\nDATA ")
        kind, _, data = body.partition(b"\n")
        lines = [line.split() for line in head.decode("ascii").splitlines()]
        header = {line[0]: line[1:] for line in lines if line and line[0] != "#"}
        fields = header["FIELDS"]
        counts = [int(count) for count in header.get("COUNT", ["1"] * len(fields))]
        if not mark or kind.strip() not in (b"ascii", b"binary"):
            raise ValueError("expected data in ascii or binary; store it so")
        if kind.strip() == b"ascii":
            column = sum(counts[: fields.index(name)])
            values = np.loadtxt(data.decode("ascii").splitlines(), ndmin=2)[:, column]
        else:
            codes = [f"<{_PCD_CODES[t]}{size}" for t, size in zip(header["TYPE"], header["SIZE"])]
            types = [(f"{k}", code, count) for k, (code, count) in enumerate(zip(codes, counts))]
            rows = np.frombuffer(data, np.dtype(types), int(header["POINTS"][0]))
            values = rows[f"{fields.index(name)}"].reshape(len(rows), -1)[:, 0]
        whole = np.rint(values).astype(np.int64)
        if (whole != values).any() or (whole < 0).any():
            raise ValueError(f"a value of {name} is no whole number of 0 or more")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{file}: no field '{name}' of a PCD file: {error}") from error
    return whole


class LasExport(_CloudExport):
    """LAS 1.4, point format 7: coordinates in 0.1 mm, classification, colors, label (uint16).

    The classification is 64 plus the class id, since smaller codes have a meaning in the standard,
    and 1 (unclassified) for unlabeled points.
    """

    suffix = ".las"

    def __init__(self, folder: Path, space: LabelSpace) -> None:
        super().__init__(folder, space)
        if LAS_FIRST_CLASS + len(space) > 256:
            raise InputError(f"{len(space)} classes; LAS files have room for at most 192")

    def encode(self, sweep: ExportSweep) -> bytes:
        """Content of a .las; points without a return are (0, 0, 0)."""
        cloud = sweep.sample.cloud
        values = sweep.points(deskewed=False).astype(np.float64)
        if np.abs(values[:, :3]).max() > 2**31 * LAS_SCALE_M:
            raise InputError("points more than 200 km away, which LAS files of pcseg cannot hold")
        records = np.zeros(len(cloud), _LAS_RECORD)
        records["xyz"] = np.rint(values[:, :3] / LAS_SCALE_M)
        records["intensity"] = np.rint(np.clip(values[:, 3], 0, 1) * 65535)
        records["returns"] = 0x11  # the first of one
        records["classification"] = np.where(
            sweep.labels < 0, 1, LAS_FIRST_CLASS + sweep.labels
        ).astype(np.uint8)
        seconds = cloud.stamp_ns * 1e-9
        records["gps_time"] = seconds if cloud.time is None else seconds + np.nan_to_num(cloud.time)
        records["rgb"] = self.space.colorize(sweep.labels, ignored=_UNLABELED).astype("<u2") * 257
        records["label"] = self.numbers(sweep)
        tables = _class_table(self.space) + _extra_field("label", "number of the class")
        return _las_header(records, len(tables)) + tables + records.tobytes()


def _las_header(records: npt.NDArray[np.void], tables: int) -> bytes:
    """Public header block of LAS 1.4 (ASPRS, LAS Specification 1.4-R15, table 3)."""
    size, count = 375, len(records)
    integers = records["xyz"].astype(np.int64)
    low, high = integers.min(axis=0) * LAS_SCALE_M, integers.max(axis=0) * LAS_SCALE_M
    bounds = [value for pair in zip(high, low) for value in pair]
    head = struct.pack(
        "<4sHH16sBB32s32sHHHIIBHI5I",
        b"LASF", 0, 16, bytes(16), 1, 4, b"", b"pcseg", 0, 0, size, size + tables, 2, 7,
        records.dtype.itemsize, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    place = struct.pack("<12d", *[LAS_SCALE_M] * 3, 0, 0, 0, *bounds)
    return head + place + struct.pack("<QQIQ15Q", 0, 0, 0, count, count, *[0] * 14)


def _class_table(space: LabelSpace) -> bytes:
    """Variable length record "Classification Lookup": code and name of each class."""
    rows = [struct.pack("<B15s", k, b"") for k in range(256)]
    for c in space.classes:
        code = LAS_FIRST_CLASS + c.id
        rows[code] = struct.pack("<B15s", code, c.name.encode()[:15])
    return _record("LASF_Spec", 0, "classes", b"".join(rows))


def _extra_field(name: str, description: str) -> bytes:
    """Variable length record "Extra Bytes": one uint16 after each point."""
    field = struct.pack(
        "<2sBB32s4s24s24s24s24s24s32s",
        b"", 3, 0, name.encode(), b"", b"", b"", b"", b"", b"", description.encode(),
    )  # fmt: skip
    return _record("LASF_Spec", 4, "fields", field)


def _record(user: str, number: int, description: str, data: bytes) -> bytes:
    head = struct.pack("<H16sHH32s", 0, user.encode(), number, len(data), description.encode())
    return head + data
