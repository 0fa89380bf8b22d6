# SPDX-License-Identifier: Apache-2.0
"""Load the native library through ctypes; no torch.

The library comes from this package, or from the path in the variable PCSEG_NATIVE_LIBRARY. The file
is checked before it is loaded: a file that was cut would end the process. ctypes releases the
interpreter lock during a call.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import struct
import sys
import warnings
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_uint32, c_void_p
from pathlib import Path

from pcseg_core.errors import InputError
from pcseg_core.native import build

REBUILD = "run: python -m pcseg_core.native.build"
VARIABLE = "PCSEG_NATIVE_LIBRARY"
"""Environment variable: path of the library, in place of that of the package."""

_STATUS = {1: "the native library refused its arguments", 2: "out of memory in the native library"}


_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}  # numbers of the ELF format
_SEGMENT = struct.Struct("<IIQQQQQQ")  # type, flags, offset, two addresses, length, memory, align


class ConvArgs(ctypes.Structure):
    """Mirror of ConvArgs in native.h."""

    _fields_ = (
        ("x", c_void_p),
        ("pairs", c_void_p),
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
        ("residual_factor", c_float),
        ("residual_shift", c_float),
        ("out_factor", c_float),
        ("out_shift", c_float),
        ("scale", c_void_p),
    )


class GradArgs(ctypes.Structure):
    """Mirror of GradArgs in native.h."""

    _fields_ = (
        ("x", c_void_p),
        ("dy", c_void_p),
        ("pairs", c_void_p),
        ("grad", c_void_p),
        ("n_in", c_int64),
        ("n_out", c_int64),
        ("offsets", c_int32),
        ("cin", c_int32),
        ("cout", c_int32),
    )


class HighestArgs(ctypes.Structure):
    """Mirror of HighestArgs in splat.cpp."""

    _fields_ = (
        ("uv", c_void_p),
        ("values", c_void_p),
        ("penalty", c_void_p),
        ("result", c_void_p),
        ("n", c_int64),
        ("height", c_int32),
        ("width", c_int32),
        ("cell_px", c_int32),
        ("reach", c_int32),
    )


class VoxelTable(ctypes.Structure):
    """Mirror of VoxelTable in native.h."""

    _fields_ = (("slots", c_void_p), ("rows", c_void_p), ("bits", c_int32), ("columns", c_int32))


_SIGNATURES = {
    "pcseg_isa_name": (c_char_p, [c_int32]),
    "pcseg_has_bfloat16": (c_int32, [c_int32]),
    "pcseg_packed_bytes": (c_int64, [c_int32] * 5),
    "pcseg_pack": (c_int32, [c_int32, c_void_p, c_void_p, *[c_int32] * 6, c_void_p, c_int32]),
    "pcseg_pair_words": (c_int64, [*[c_int32] * 3, c_int64, c_int64]),
    "pcseg_list_pairs": (
        c_int32,
        [c_int32, c_int32, c_void_p, c_int32, c_int64, c_int64, c_void_p, c_int32],
    ),
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
    "pcseg_voxelize": (c_int32, [c_void_p, c_int32]),
    "pcseg_classify": (c_int32, [c_void_p, c_int32]),
    "pcseg_spread": (c_int32, [c_void_p, c_int32]),
    "pcseg_highest": (c_int32, [POINTER(HighestArgs)]),
    "pcseg_fit_headings": (c_int32, [c_void_p, *[c_int32] * 3, c_float, c_void_p]),
    "pcseg_move_points": (c_int32, [c_void_p, c_void_p, c_int64, c_void_p, c_void_p]),
    "pcseg_group": (c_int32, [c_void_p]),
    "pcseg_extents": (c_int32, [c_void_p] * 5),
    "pcseg_boxes": (c_int32, [c_void_p] * 5),
    "pcseg_most_frequent": (c_int32, [c_void_p, c_void_p, c_int32, c_void_p]),
    "pcseg_id_sums": (
        c_int32,
        [c_void_p, c_void_p, c_int64, c_uint32, c_int64, c_void_p, c_void_p],
    ),
    "pcseg_outside": (c_int32, [c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p]),
    "pcseg_nearest_box": (
        c_int32,
        [c_void_p, c_int64, c_void_p, c_int64, c_int64, c_double, c_double, c_void_p],
    ),
    "pcseg_gaps": (c_int32, [c_void_p, c_int64, c_void_p, c_int64, c_double, c_void_p]),
    "pcseg_overlap": (c_int32, [c_void_p, c_int64, c_void_p, c_int64, c_double, c_int32, c_void_p]),
    "pcseg_beside": (c_int32, [c_void_p, c_int64, c_void_p, c_int64, c_double, c_void_p]),
    "pcseg_track_costs": (c_int32, [c_void_p]),
    "pcseg_join_parts": (c_int32, [c_void_p]),
    "pcseg_write_records": (c_int32, [c_void_p, c_int32]),
    "pcseg_take_records": (c_int32, [c_void_p, c_int64, c_int64, c_void_p, c_int32, c_int32]),
    "pcseg_choose": (c_int32, [c_void_p, c_int32]),
    "pcseg_point_values": (c_int32, [*[c_void_p] * 3, c_int64, c_int32, c_int32]),
    "pcseg_confidence_bytes": (c_int32, [*[c_void_p] * 3, c_int64, c_int32]),
    "pcseg_row_entropy": (c_int32, [c_void_p, c_int64, c_int32, c_int64, c_void_p, c_int32]),
    "pcseg_autoware_points": (c_int32, [c_void_p, POINTER(c_int32), c_int32]),
    "pcseg_all_finite": (c_int32, [c_void_p, c_int64, c_int64, c_int32, c_int64, c_int64, c_int32]),
    "pcseg_range_image": (c_int32, [c_void_p, c_int32]),
    "pcseg_passed": (c_int32, [c_void_p, c_void_p, c_void_p, c_int32]),
    "pcseg_behind": (c_int32, [c_void_p, c_void_p, c_void_p]),
    "pcseg_times_passed": (c_int32, [c_void_p, c_int32, c_void_p, c_void_p]),
    "pcseg_cluster": (c_int32, [c_void_p]),
    "pcseg_near": (c_int32, [c_void_p, c_void_p, c_float, c_void_p]),
    "pcseg_draw_grid": (c_int32, [c_void_p, c_int32]),
    "pcseg_use_openmp": (None, [c_void_p]),
}


@functools.cache
def load() -> ctypes.CDLL | str:
    """The library, or one line with the reason why it cannot be used.

    Warns:
        RuntimeWarning: there is a library, or one was asked for, and it cannot be used.
    """
    given = os.environ.get(VARIABLE)
    path = (Path(given) if given else build.SOURCES / build.LIBRARY).resolve()
    loaded = _load(path)
    if isinstance(loaded, str) and (given or path.exists()):
        named = f"{VARIABLE}={given}: " if given else ""
        loaded = named + loaded
        warnings.warn(f"plain torch is used, several times slower: {loaded}", RuntimeWarning, 2)
    return loaded


def _load(path: Path) -> ctypes.CDLL | str:
    if not path.exists():
        return f"the native library was not built (a C++ compiler is needed); {REBUILD}"
    problem = check_file(path)
    if problem:
        return f"{path.name} cannot be used ({problem}); {REBUILD}"
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


def check_file(path: Path) -> str:
    """Why a file is no complete shared library for this machine, or "".

    The headers say where its parts lie. The loader maps them without a check, and a part beyond the
    end of the file ends the process.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(64)
            if head[:7] != b"\x7fELF\x02\x01\x01" or len(head) < 64:
                return "it is no 64-bit shared library"
            kind, machine, _, _, segments, sections = struct.unpack_from("<HHIQQQ", head, 16)
            entry, count, section_entry, section_count = struct.unpack_from("<HHHH", head, 54)
            if kind != 3 or machine != _MACHINES.get(platform.machine(), machine):
                return "it is no shared library for this machine"
            file.seek(min(segments, size))
            table = file.read(entry * count)
    except OSError as error:
        return str(error)
    if entry != _SEGMENT.size or len(table) < entry * count:
        return "its list of parts is cut off"
    ends = [offset + length for _, _, offset, _, _, length, *_ in _SEGMENT.iter_unpack(table)]
    if max([*ends, sections + section_entry * section_count]) > size:
        return f"it has {size} bytes and its parts need more; the file was cut off"
    return ""


def optional_library() -> ctypes.CDLL | None:
    """The library, or None: the caller then computes with numpy or torch."""
    loaded = load()
    return None if isinstance(loaded, str) else loaded


def thread_count() -> int:
    """Threads of a pass over a sweep: those of torch, 1 where torch is not loaded."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else 1


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
