# SPDX-License-Identifier: Apache-2.0
"""Strategies that change bytes and nested values."""

from __future__ import annotations

import copy
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, -1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e9, 1e30, 1e38, 1e300, float("nan"), float("inf"))
JUNK: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    10**30,
    0.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "nan",
    "1e400",
    "x" * 5000,
    "\u00e9\U0001f600\x00",
    "../../etc/passwd",
    [],
    [[]],
    [1, 2, 3],
    [1.0] * 16,
    [None],
    list(range(300)),
    {},
    {"a": {"b": 1}},
    {f"k{number}": number for number in range(200)},
)


def floats() -> st.SearchStrategy[float]:
    """Numbers near one, and special ones."""
    return st.one_of(st.floats(-10, 10, width=32), st.sampled_from(FLOATS))


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes], edits: int = 4) -> bytes:
    """One of the seeds with up to `edits` changes of its bytes."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, edits))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        _edit(draw, data, place, seeds)
    return bytes(data)


def _edit(draw: st.DrawFn, data: bytearray, place: int, seeds: Sequence[bytes]) -> None:
    kind = draw(st.sampled_from(["bit", "byte", "byte", "number", "cut", "insert", "end", "other"]))
    if kind == "bit" and data:
        data[place] ^= 1 << draw(st.integers(0, 7))
    elif kind == "byte" and data:
        data[place] = draw(st.integers(0, 255))
    elif kind == "number":
        order, code = draw(st.sampled_from("<>")), draw(st.sampled_from("HIQ"))
        mask = (1 << 8 * struct.calcsize(code)) - 1
        value = struct.pack(order + code, draw(st.sampled_from(NUMBERS)) & mask)
        data[place : place + len(value)] = value
    elif kind == "cut":
        del data[place : place + draw(st.sampled_from([1, 2, 4, 8, 64, 1000]))]
    elif kind == "insert":
        data[place:place] = draw(st.binary(max_size=12))
    elif kind == "end":
        del data[place:]
    elif kind == "other":
        other = draw(st.sampled_from(seeds))
        begin = draw(st.integers(0, max(0, len(other) - 1)))
        part = other[begin : begin + draw(st.sampled_from([1, 8, 64, 1000]))]
        data[place : place + len(part)] = part


@st.composite
def altered(draw: st.DrawFn, values: Sequence[Any], edits: int = 3) -> Any:
    """One of the nested values with up to `edits` entries replaced, removed or repeated."""
    root = [copy.deepcopy(draw(st.sampled_from(values)))]
    for _ in range(draw(st.integers(0, edits))):
        parent, key = _any_entry(draw, root)
        kind = draw(st.sampled_from(["junk", "junk", "junk", "remove", "repeat", "rename"]))
        if kind == "junk" or parent is root:
            parent[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        elif kind == "remove":
            del parent[key]
        elif kind == "repeat" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["x", "", "name", 7, "x" * 400]))] = parent.pop(key)
    return root[0]


def _any_entry(draw: st.DrawFn, root: list[Any]) -> tuple[Any, Any]:
    """A container below the root and a key of it."""
    parent: Any = root
    key: Any = 0
    while isinstance(parent[key], (dict, list)) and parent[key] and draw(st.integers(0, 5)):
        parent = parent[key]
        keys = list(parent) if isinstance(parent, Mapping) else range(len(parent))
        key = draw(st.sampled_from(keys))
    return parent, key
