# SPDX-License-Identifier: Apache-2.0
"""Markdown tables of the GPU benchmark."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.gpu.machine import Row

Column = tuple[str, Callable[[Row], str]]


def _number(key: str, form: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = row.get(key)
        return "" if value is None else format(value, form)

    return text


def _network(row: Row) -> str:
    width = f" x{row['width']:g}" if row["network"] != "bundled" else ""
    return f"{row['network']}{width}, {row['voxel_m']:g} m"


def _engine(row: Row) -> str:
    return str(row["engine"])


_TIMES: list[Column] = [("p50 ms", _number("p50_ms", ".2f")), ("p95 ms", _number("p95_ms", ".2f"))]
_RATIOS: list[Column] = [
    ("vs torch", _number("vs_torch", ".2f")),
    ("vs torch fp32", _number("vs_torch_fp32", ".2f")),
]
_FIRST: list[Column] = [("first s", _number("first_s", ".1f"))]
_MEMORY: list[Column] = [("peak MiB", _number("peak_mib", ".0f"))]
_ERROR: Column = ("error", _number("relative_error", ".1e"))
_COLUMNS: dict[str, list[Column]] = {
    "pipeline": [
        ("network", _network),
        ("engine", _engine),
        *_TIMES,
        *_RATIOS,
        ("labels changed", _number("labels_changed", ".3%")),
        *_MEMORY,
        *_FIRST,
    ],
    "network": [
        ("network", _network),
        ("voxels", _number("voxels", "d")),
        ("engine", _engine),
        *_TIMES,
        ("GPU alone ms", _number("device_ms", ".2f")),
        *_RATIOS,
        _ERROR,
        ("argmax changed", _number("argmax_changed", ".3%")),
        *_MEMORY,
        *_FIRST,
    ],
    "training step": [
        ("network", _network),
        ("voxels", _number("voxels", "d")),
        ("engine", _engine),
        *_TIMES,
        *_RATIOS,
        _ERROR,
        *_MEMORY,
        *_FIRST,
    ],
    "layer": [
        ("layer", lambda row: f"{row['layer']}, level {row['level']}"),
        ("voxels", _number("voxels", "d")),
        ("pairs", _number("pairs_per_row", ".1f")),
        ("way", lambda row: str(row["way"])),
        ("engine", _engine),
        ("GPU ms", _number("p50_ms", ".3f")),
        ("wall ms", _number("wall_ms", ".3f")),
        *_RATIOS,
        ("TFLOP/s", _number("tflops", ".1f")),
    ],
    "geometry": [
        ("step", _engine),
        ("voxel m", _number("voxel_m", "g")),
        ("voxels", _number("voxels", "d")),
        *_TIMES,
    ],
}


def markdown(about: Row, parts: list[Row], rows: list[Row]) -> str:
    """The machine, one table per kind of row, and everything that failed."""
    lines = ["# GPU benchmark", ""]
    lines += [f"- {key}: {value}" for key, value in about.items() if key != "backends"]
    lines += [f"- backend {name}: {note}" for name, note in about["backends"].items()]
    rates = [row for row in rows if row["kind"] == "ceiling"]
    lines += [f"- measured {row['what']}: {row['rate']:.0f}" for row in rates]
    lines += ["", *_equality(rows)]
    for kind, columns in _COLUMNS.items():
        chosen = [row for row in rows if row["kind"] == kind]
        if chosen:
            lines += ["", f"## {kind.capitalize()}", "", *_table(columns, chosen)]
    lines += _stages(rows)
    lines += ["", "## Parts", ""]
    lines += [f"- {p['part']}: {p['seconds']} s {p.get('failed', '')}".rstrip() for p in parts]
    failed = [row for row in rows if "failed" in row]
    lines += ["", "## Failures", ""] + [f"- {_title(row)}: {row['failed']}" for row in failed]
    return "\n".join(lines if failed else lines[:-3]) + "\n"


def _title(row: Row) -> str:
    keys = ("kind", "network", "layer", "case", "way", "engine", "precision")
    return " ".join(str(row[key]) for key in keys if key in row)


def _table(columns: list[Column], rows: list[Row]) -> list[str]:
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(text(row) for _, text in columns) + " |" for row in rows]


def _equality(rows: list[Row]) -> list[str]:
    """Worst error per engine and precision, and each case that is wrong."""
    rows = [row for row in rows if row["kind"] == "equality"]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["engine"], row.get("precision", "exact")), []).append(row)
    lines = ["## Equality", "", "| engine | precision | cases | wrong | worst error |"]
    lines += ["|---|---|---|---|---|"]
    for (engine, precision), group in groups.items():
        wrong = sum(not row["ok"] for row in group)
        worst = max((row["worst"] for row in group if "worst" in row), default=0.0)
        lines.append(f"| {engine} | {precision} | {len(group)} | {wrong} | {worst:.1e} |")
    wrong_rows = [row for row in rows if not row["ok"]]
    lines += [""] * bool(wrong_rows)
    return lines + [
        f"- WRONG: {_title(row)}: {row.get('errors', row.get('failed', row.get('worst')))}"
        for row in wrong_rows
    ]


def _stages(rows: list[Row]) -> list[str]:
    rows = [row for row in rows if "stages_ms" in row]
    if not rows:
        return []
    names = list(rows[0]["stages_ms"])
    columns: list[Column] = [("network", _network), ("engine", _engine)]
    columns += [(name, _stage(name)) for name in names]
    return ["", "## Stages of the pipeline, one after the other [ms]", "", *_table(columns, rows)]


def _stage(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row['stages_ms'][name]:.2f}"
