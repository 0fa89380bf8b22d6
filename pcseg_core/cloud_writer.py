# SPDX-License-Identifier: Apache-2.0
"""Write sensor_msgs/PointCloud2: add fields to a cloud, or encode arrays as a cloud."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pcseg_core import cloud_records
from pcseg_core.cloud_layout import (
    DATATYPES,
    TYPES,
    Array,
    EncodedCloud,
    Field,
    PointCloud2Like,
    positions,
    structured,
)
from pcseg_core.errors import InputError


def append_fields(
    msg: PointCloud2Like, fields: Mapping[str, npt.ArrayLike], replace: bool = True
) -> EncodedCloud:
    """Add fields to every point of a cloud.

    Existing fields, their order and bytes, the byte order and the organization stay. New fields
    follow, each aligned to its size. Padding at the ends of rows is removed. An existing field of
    the same name and type is overwritten in place; one of another type, or that shares bytes with
    another field, is replaced by a new field at the end.

    Args:
        msg: a PointCloud2 message.
        fields: name -> values (N,), (height, width) or (N, count), of a PointField type.
        replace: whether a field of the same name may be overwritten.

    Raises:
        InputError: values of the wrong length or type, or the layout of `msg` is wrong.
    """
    points = structured(msg)
    height, width = points.shape
    columns = {name: _column(name, values, points.shape) for name, values in fields.items()}
    existing = [Field(f.name, int(f.offset), int(f.datatype), int(f.count)) for f in msg.fields]
    clash = [f.name for f in existing if f.name in columns]
    if clash and not replace:
        raise InputError(f"cloud: it already has the field {', '.join(clash)}")
    kept = [
        f
        for f in existing
        if f.name not in columns or (_holds(f, columns[f.name]) and _is_alone(f, existing))
    ]
    in_place = {f.name for f in kept if f.name in columns}
    old_step = int(msg.point_step)
    added, step = _layout({n: c for n, c in columns.items() if n not in in_place}, old_step)
    written = [f for f in kept if f.name in in_place] + added
    before = [(points.view(np.dtype((np.void, old_step))), 0)] if old_step and points.size else []
    buffer = cloud_records.zeros(step * points.size)
    _write(buffer, step, before + _placed(written, columns, bool(msg.is_bigendian)))
    return EncodedCloud(
        height=height,
        width=width,
        fields=kept + added,
        is_bigendian=bool(msg.is_bigendian),
        point_step=step,
        row_step=step * width,
        buffer=buffer,
        is_dense=_is_dense(points),
    )


def encode_cloud(
    fields: Mapping[str, npt.ArrayLike], height: int | None = None, width: int | None = None
) -> EncodedCloud:
    """Encode arrays as a little-endian cloud, each field aligned to its size.

    Args:
        fields: name -> values (N,), (height, width) or (N, count), in the order of the fields.
        height, width: organization; default 1 and N.

    Raises:
        InputError: no fields, lengths that differ, or a type that PointField lacks.
    """
    if not fields:
        raise InputError("cloud: no fields to encode; give at least x, y and z")
    if height is None or width is None:
        height, width = 1, len(np.asarray(next(iter(fields.values()))))
    columns = {name: _column(name, v, (height, width)) for name, v in fields.items()}
    layout, step = _layout(columns, 0)
    step = _align(step, max(c.dtype.itemsize for c in columns.values()))
    buffer = cloud_records.zeros(step * height * width)
    _write(buffer, step, _placed(layout, columns, big=False))
    cloud = EncodedCloud(height, width, layout, False, step, step * width, buffer, True)
    return dataclasses.replace(cloud, is_dense=_is_dense(structured(cloud)))


def pack_rgb(colors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Colors (N, 3) uint8 as the float32 field `rgb`, whose bits are 0x00RRGGBB."""
    rgb = np.asarray(colors, dtype=np.uint8).astype(np.uint32)
    packed = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    return packed.view(np.float32)


def unpack_rgb(values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Colors (N, 3) uint8 from the field `rgb` (float32) or `rgba` (uint32)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.stack([bits >> 16, bits >> 8, bits], axis=-1).astype(np.uint8)


def _column(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> Array:
    """Values as (height, width) or (height, width, count) of a PointField type; a view."""
    array = np.asarray(values)
    code = array.dtype.kind + str(array.dtype.itemsize)
    if code not in DATATYPES:
        raise InputError(
            f"cloud: field '{name}' is {array.dtype}; PointCloud2 has int8 to int32, uint8 to "
            "uint32, float32 and float64"
        )
    count = shape[0] * shape[1]
    if array.shape[:1] == (count,) and array.ndim <= 2:
        return array.reshape(*shape, *array.shape[1:])
    if array.ndim == 2 and array.size == count:
        return array.reshape(shape)
    raise InputError(f"cloud: field '{name}' has shape {array.shape} for {count} points")


def _align(offset: int, size: int) -> int:
    return -(-offset // size) * size


def _layout(columns: Mapping[str, Array], start: int) -> tuple[list[Field], int]:
    """Place columns after `start`; returns their fields and the end of the last one."""
    fields = []
    for name, column in columns.items():
        count = _count(column)
        start = _align(start, column.dtype.itemsize)
        code = DATATYPES[column.dtype.kind + str(column.dtype.itemsize)]
        fields.append(Field(name, start, code, count))
        start += column.dtype.itemsize * count
    return fields, start


def _holds(existing: Field, column: Array) -> bool:
    """Whether a field has the type and count of a column."""
    code = column.dtype.kind + str(column.dtype.itemsize)
    return TYPES[existing.datatype] == code and max(1, existing.count) == _count(column)


def _count(column: Array) -> int:
    """Values per point."""
    return column.shape[2] if column.ndim == 3 else 1


def _is_alone(field: Field, fields: list[Field]) -> bool:
    """Whether a field shares no byte with another one."""
    return all(
        other is field or _end(other) <= field.offset or _end(field) <= other.offset
        for other in fields
    )


def _end(field: Field) -> int:
    """Offset of the first byte behind a field."""
    return field.offset + np.dtype(TYPES[field.datatype]).itemsize * max(1, field.count)


def _placed(
    fields: list[Field], columns: Mapping[str, Array], big: bool
) -> list[tuple[Array, int]]:
    """The columns of fields in a byte order, with their offsets."""
    order = ">" if big else "<"
    return [
        (columns[f.name].astype(order + TYPES[f.datatype], copy=False), f.offset) for f in fields
    ]


def _write(buffer: array.array[int], step: int, parts: list[tuple[Array, int]]) -> None:
    if len(buffer) and parts:
        out = np.frombuffer(buffer, np.dtype((np.void, step)))
        cloud_records.write(out.reshape(parts[0][0].shape[:2]), parts)


def _is_dense(points: Array) -> bool:
    together = positions(points)
    if together is not None:
        return cloud_records.all_finite(together)
    names = points.dtype.names or ()
    axes = [points[a] for a in "xyz" if a in names and points[a].dtype.kind == "f"]
    return all(map(cloud_records.all_finite, axes))
