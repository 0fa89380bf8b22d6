# SPDX-License-Identifier: Apache-2.0
"""Load the native library through ctypes; no torch.

ctypes releases the interpreter lock during a call.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

from pcseg_core.errors import InputError
from pcseg_core.native import build

REBUILD = "run: python -m pcseg_core.native.build"
_STATUS = {1: "the native library refused its arguments", 2: "out of memory in the native library"}


class ConvArgs(ctypes.Structure):
    """Mirror of ConvArgs in native.h."""

    _fields_ = (
        ("x", c_void_p),
        ("table", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("residual", c_void_p),
        ("out", c_void_p),
        ("n_in", c_int64),
        ("n_out", c_int64),
        ("ldx", c_int64),
        ("ldres", c_int64),
        ("ldout", c_int64),
        ("offsets", c_int32),
        ("cin", c_int32),
        ("cout", c_int32),
        ("dtype", c_int32),
        ("out_dtype", c_int32),
        ("relu", c_int32),
    )


class GradArgs(ctypes.Structure):
    """Mirror of GradArgs in native.h."""

    _fields_ = (
        ("x", c_void_p),
        ("dy", c_void_p),
        ("table", c_void_p),
        ("grad", c_void_p),
        ("n_in", c_int64),
        ("n_out", c_int64),
        ("offsets", c_int32),
        ("cin", c_int32),
        ("cout", c_int32),
    )


class VoxelTable(ctypes.Structure):
    """Mirror of VoxelTable in native.h."""

    _fields_ = (("slots", c_void_p), ("rows", c_void_p), ("bits", c_int32), ("columns", c_int32))


_SIGNATURES = {
    "pcseg_isa_name": (c_char_p, [c_int32]),
    "pcseg_has_bfloat16": (c_int32, [c_int32]),
    "pcseg_packed_bytes": (c_int64, [c_int32] * 5),
    "pcseg_pack": (c_int32, [c_int32, c_void_p, c_void_p, *[c_int32] * 6, c_void_p, c_int32]),
    "pcseg_conv": (c_int32, [c_int32, POINTER(ConvArgs), c_int32]),
    "pcseg_grad_weight": (c_int32, [c_int32, POINTER(GradArgs), c_int32]),
    "pcseg_coarsen": (c_int32, [c_void_p, c_int64, c_void_p, POINTER(c_int64), c_int32]),
    "pcseg_build_table": (
        c_int32,
        [c_void_p, c_int64, c_void_p, c_int64, c_int32, c_int32, c_void_p, c_int32],
    ),
    "pcseg_invert_table": (c_int32, [c_void_p, c_int32, c_int64, c_int64, c_void_p, c_int32]),
    "pcseg_row_top": (c_int32, [c_void_p, c_int64, c_int32, c_int64, c_void_p, c_void_p]),
    "pcseg_row_means": (
        c_int32,
        [c_void_p, c_int64, c_int32, c_void_p, c_void_p, c_int64, c_int64, c_void_p],
    ),
    "pcseg_row_accumulate": (
        c_int32,
        [c_void_p, c_int64, c_int32, *[c_void_p] * 3, c_int64, c_float, c_void_p],
    ),
    "pcseg_voxel_locate": (
        c_int32,
        [POINTER(VoxelTable), c_void_p, c_int64, c_float, *[c_void_p] * 3, POINTER(c_int64)],
    ),
    "pcseg_use_openmp": (None, [c_void_p]),
}


@functools.cache
def load() -> ctypes.CDLL | str:
    """The library, or one line with the reason why it cannot be used."""
    path = Path(os.environ.get("PCSEG_NATIVE_LIBRARY", build.SOURCES / build.LIBRARY))
    if not path.exists():
        return f"the native library was not built (a C++ compiler is needed); {REBUILD}"
    try:
        library = ctypes.CDLL(str(path))
        library.pcseg_source_hash.restype = c_char_p
        built_from = library.pcseg_source_hash().decode()
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be used ({error}); {REBUILD}"
    if (build.SOURCES / "api.cpp").exists() and built_from != build.source_hash():
        return f"{path.name} was built from other sources; {REBUILD}"
    return library


def optional_library() -> ctypes.CDLL | None:
    """The library, or None: the caller then computes with numpy or torch."""
    loaded = load()
    return None if isinstance(loaded, str) else loaded


def library() -> ctypes.CDLL:
    """The library.

    Raises:
        InputError: it cannot be used; the message gives the reason and the remedy.
    """
    loaded = load()
    if isinstance(loaded, str):
        raise InputError(loaded)
    return loaded


@functools.cache
def isa_names() -> tuple[str, ...]:
    """Instruction sets that this CPU runs, slowest first, by the library's index."""
    names: list[str] = []
    while (name := library().pcseg_isa_name(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


@functools.cache
def best_isa() -> int:
    """Index of the fastest instruction set, or of the one in the variable PCSEG_ISA."""
    names = isa_names()
    wanted = os.environ.get("PCSEG_ISA")
    if wanted is None:
        return len(names) - 1
    if wanted not in names:
        raise InputError(f"PCSEG_ISA={wanted}: this machine runs {', '.join(names)}")
    return names.index(wanted)


def has_bfloat16(isa: int | None = None) -> bool:
    """Whether the CPU has bfloat16 instructions; otherwise bfloat16 is emulated."""
    return bool(library().pcseg_has_bfloat16(best_isa() if isa is None else isa))


def check(status: int) -> None:
    """Turn a status that the library returned into an error.

    Raises:
        InputError: the status is not 0.
    """
    if status:
        raise InputError(_STATUS.get(status, f"native library: status {status}"))
