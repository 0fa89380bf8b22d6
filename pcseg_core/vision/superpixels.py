# SPDX-License-Identifier: Apache-2.0
"""Superpixel maps: interface of generators, clean-up of raw maps, look-up by points.

A map is int32. Ids are consecutive from 0 within their image; pixels without a segment are IGNORE.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE

Int32 = npt.NDArray[np.int32]
SmallSegments = Literal["merge", "ignore"]


@dataclass(frozen=True)
class SegmentMap:
    """The segments of one image.

    Attributes:
        ids: (H, W) int32 segment of each pixel, consecutive from 0; IGNORE for none.
        classes: (S,) int16 class of each segment, IGNORE if unknown; None for segments without
            classes. The generator defines the classes, the same for all its images.
    """

    ids: Int32
    classes: npt.NDArray[np.int16] | None = None

    @property
    def count(self) -> int:
        """Number S of segments."""
        return int(self.ids.max(initial=IGNORE)) + 1

    def check(self, name: str) -> None:
        """Check the map; `name` identifies it in the error.

        Raises:
            InputError: wrong type or shape, unused ids, or a wrong number of classes.
        """
        if self.ids.ndim != 2 or self.ids.dtype != np.int32:
            raise InputError(
                f"{name}: superpixel map of shape {self.ids.shape} and type {self.ids.dtype}; "
                "expected (H, W) int32"
            )
        present = np.unique(self.ids)
        if not np.array_equal(present[present != IGNORE], np.arange(self.count)):
            raise InputError(f"{name}: segment ids are not consecutive from 0; see `tidy`")
        if self.classes is not None and self.classes.shape != (self.count,):
            raise InputError(f"{name}: {len(self.classes)} classes for {self.count} segments")


class SuperpixelGenerator(Protocol):
    """Cuts images into segments.

    Attributes:
        name: short name, such as "slic".
        parameters: all parameters of its maps as JSON values (weights by checksum).
    """

    name: str
    parameters: dict[str, Any]

    def segment(self, image: npt.NDArray[np.uint8]) -> SegmentMap:
        """(H, W, 3) uint8 RGB -> segments, of the size of the image."""


def check_image(image: npt.NDArray[Any]) -> None:
    """Check an image.

    Raises:
        InputError: not (H, W, 3) uint8, or without pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise InputError(
            f"image of shape {image.shape} and type {image.dtype}: expected (H, W, 3) uint8 RGB"
        )


def tidy(
    ids: npt.NDArray[Any],
    classes: npt.NDArray[Any] | None = None,
    min_area: int = 1,
    small: SmallSegments = "merge",
    within_class: bool = False,
) -> SegmentMap:
    """Clean up a raw map: no small segments, consecutive ids.

    Args:
        ids: (H, W) integer ids of any range; negative for no segment.
        classes: classes by raw id: (max id + 1,) integers, IGNORE if unknown.
        min_area: segments of fewer pixels are small [px].
        small: "merge" merges each small segment with the neighbor of the longest common border, or
            the smallest of equals (IGNORE without a neighbor). "ignore" makes its pixels IGNORE.
        within_class: merge only segments of equal class; those without such a neighbor are kept.

    Returns:
        The map; segments keep the order of their raw ids.
    """
    dense, values = _dense(ids)
    target = np.arange(len(values))
    if min_area > 1:
        chosen = None if classes is None else np.asarray(classes)[values]
        target = _absorb(dense, len(values), min_area, small, chosen if within_class else None)
    kept = np.unique(target[target != IGNORE])
    renumbered = np.full(len(values) + 1, IGNORE, np.int32)  # the last entry serves IGNORE
    renumbered[kept] = np.arange(len(kept), dtype=np.int32)
    final = renumbered[np.append(target, IGNORE)][dense]
    if classes is None:
        return SegmentMap(final)
    return SegmentMap(final, np.asarray(classes)[values[kept]].astype(np.int16))


def _dense(ids: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Ids numbered from 0 (IGNORE if negative), and the (S,) raw id of each number."""
    top = int(ids.max(initial=IGNORE))
    if top >= 1 << 22:  # sorting is faster than a table of all possible ids
        values, inverse = np.unique(ids, return_inverse=True)
        covered = values >= 0
        numbers = np.where(covered, np.cumsum(covered) - 1, IGNORE)
        return numbers[inverse.reshape(ids.shape)], values[covered]
    held = np.zeros(top + 2, bool)  # the last entry serves IGNORE
    held[np.maximum(ids, IGNORE)] = True
    held[-1] = False
    numbers = np.where(held, np.cumsum(held) - 1, IGNORE)
    return numbers[np.maximum(ids, IGNORE)], np.flatnonzero(held)


def _absorb(
    ids: npt.NDArray[Any],
    count: int,
    min_area: int,
    small: SmallSegments,
    classes: npt.NDArray[Any] | None,
) -> npt.NDArray[np.int64]:
    """(count,) new id of each segment; IGNORE for removed ones."""
    area = np.bincount(ids[ids >= 0], minlength=count)
    if small == "ignore":
        return np.where(area < min_area, IGNORE, np.arange(count))
    borders = _borders(ids, count, classes)
    target = list(range(count))
    queue = [(int(a), s) for s, a in enumerate(area) if a < min_area]
    heapq.heapify(queue)
    while queue:
        size, s = heapq.heappop(queue)
        if size != area[s] or target[s] != s:
            continue  # grown or removed since it was queued
        if not borders[s]:
            target[s] = IGNORE if classes is None else s
            continue
        into = min(borders[s], key=lambda n: (-borders[s][n], area[n], n))
        target[s] = into
        area[into] += size
        _join_borders(borders, s, into)
        if area[into] < min_area:
            heapq.heappush(queue, (int(area[into]), into))
    return np.array([_last(target, s) for s in range(count)], np.int64)


def _borders(
    ids: npt.NDArray[Any], count: int, classes: npt.NDArray[Any] | None
) -> list[dict[int, int]]:
    """Border of each segment with each neighbor (of its class), in pixel edges."""
    sides = [(ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])]
    touching = [(a, b, (a != b) & (a >= 0) & (b >= 0)) for a, b in sides]
    edges = [a[mask] * np.int64(count) + b[mask] for a, b, mask in touching]
    keys, lengths = np.unique(np.concatenate(edges), return_counts=True)
    borders: list[dict[int, int]] = [{} for _ in range(count)]
    for key, length in zip(keys.tolist(), lengths.tolist()):
        a_id, b_id = divmod(key, count)
        if classes is not None and classes[a_id] != classes[b_id]:
            continue
        borders[a_id][b_id] = borders[a_id].get(b_id, 0) + length
        borders[b_id][a_id] = borders[b_id].get(a_id, 0) + length
    return borders


def _join_borders(borders: list[dict[int, int]], gone: int, into: int) -> None:
    for neighbor, length in borders[gone].items():
        del borders[neighbor][gone]
        if neighbor != into:
            borders[into][neighbor] = borders[into].get(neighbor, 0) + length
            borders[neighbor][into] = borders[into][neighbor]
    borders[gone] = {}


def _last(target: list[int], s: int) -> int:
    """End of a chain of merges."""
    while s != IGNORE and target[s] != s:
        s = target[s]
    return s


def resize(segments: SegmentMap, height: int, width: int) -> SegmentMap:
    """The map at another size, by nearest pixel center; vanished segments are removed."""
    if segments.ids.shape == (height, width):
        return segments
    return tidy(resize_ids(segments.ids, height, width), segments.classes)


def resize_ids(ids: Int32, height: int, width: int) -> Int32:
    """(h, w) ids at another size, by nearest pixel center."""
    rows = (np.arange(height) + 0.5) * (ids.shape[0] / height)
    columns = (np.arange(width) + 0.5) * (ids.shape[1] / width)
    result: Int32 = ids[rows.astype(np.intp)[:, None], columns.astype(np.intp)]
    return result


def segments_at(
    ids: npt.NDArray[Any], uv: npt.NDArray[Any], size: tuple[int, int] | None = None
) -> Int32:
    """Segment under each pixel coordinate.

    Args:
        ids: (h, w) map that covers the whole image, of the image's size or smaller.
        uv: (M, 2) pixel coordinates in the image, integers at pixel centers.
        size: (width, height) of the image; None if it is that of the map.

    Returns:
        (M,) int32; IGNORE outside the image, at non-finite coordinates and without a segment.
    """
    height, width = ids.shape
    full_width, full_height = size or (width, height)
    uv = np.asarray(uv, np.float64)
    inside = np.isfinite(uv).all(1)
    place = np.where(inside[:, None], uv, -1) + 0.5
    inside &= (place >= 0).all(1) & (place[:, 0] < full_width) & (place[:, 1] < full_height)
    column = (place[inside, 0] * (width / full_width)).astype(np.intp)
    row = (place[inside, 1] * (height / full_height)).astype(np.intp)
    found = np.full(len(uv), IGNORE, np.int32)
    found[inside] = ids[row, column]
    return found
