# SPDX-License-Identifier: Apache-2.0
"""Table and picture of the engine benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pcseg_core.files import atomic_path

Row = dict[str, Any]

_COLUMNS = (
    ("what", "", lambda r: f"{r['kind']}: {r['network']}" + (f" x{r['width']}" * (r["width"] > 0))),
    ("voxels", ">", lambda r: str(r.get("voxels", ""))),
    ("engine", "", lambda r: f"{r['engine']} {r['precision']}, {r['threads']} thr."),
    ("ms", ">", lambda r: f"{r['median_ms']:.1f}"),
    ("vs spconv", ">", lambda r: _times(r.get("ratio"))),
    ("vs torch", ">", lambda r: _times(r.get("ratio_to_torch"))),
    ("of peak", ">", lambda r: f"{r['fraction_of_peak']:.0%}" if "fraction_of_peak" in r else ""),
    ("GFLOP/s", ">", lambda r: f"{r['gflops']:.0f}" if "gflops" in r else ""),
    ("peak RSS MB", ">", lambda r: f"{r['rss_mb']:.0f}" if "rss_mb" in r else ""),
    ("error", ">", lambda r: f"{r['relative_error']:.1e}" if "relative_error" in r else ""),
    ("", "", lambda r: "WRONG" if r.get("wrong") else ""),
    ("argmax", ">", lambda r: f"{r['argmax_changed']:.2%}" if "argmax_changed" in r else ""),
)


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio else ""


def tables(rows: list[Row]) -> str:
    """Rows as aligned text."""
    cells = [[name for name, _, _ in _COLUMNS]]
    cells += [[text(row) for _, _, text in _COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = []
    for line in cells:
        fields = [
            f"{cell:{align}{width}}"
            for cell, width, (_, align, _) in zip(line, widths, _COLUMNS, strict=True)
        ]
        lines.append("  ".join(fields).rstrip())
    return "\n".join(lines)


def picture(rows: list[Row], path: Path) -> None:
    """Bars per network and engine, or time over voxels for a scaling run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scaling = [row for row in rows if row["kind"] == "scaling"]
    if scaling:
        figure = _scaling(pyplot, scaling)
    else:
        figure = _bars(pyplot, [row for row in rows if row["kind"] == "network"])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _bars(pyplot: Any, rows: list[Row]) -> Any:
    names = sorted({(row["network"], row["width"]) for row in rows})
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.5 * len(names), 2.6), squeeze=False)
    colors = {"native": "#1b7837", "torch": "#8c6bb1", "spconv": "#999999"}
    for axis, (network, width) in zip(axes[0], names, strict=True):
        chosen = [r for r in rows if (r["network"], r["width"]) == (network, width)]
        chosen.sort(key=lambda row: -row["median_ms"])
        labels = [_label(row) for row in chosen]
        bars = axis.barh(
            labels,
            [r["median_ms"] for r in chosen],
            color=[colors.get(r["engine"], "#444444") for r in chosen],
        )
        for bar, row in zip(bars, chosen, strict=True):
            if row.get("wrong"):
                bar.set(facecolor="none", edgecolor="#b2182b", hatch="///")
        axis.bar_label(bars, [f" {r['median_ms']:.0f}" for r in chosen])
        axis.set_title(f"{network}, width {width:g}, {chosen[0]['voxels']} voxels", fontsize=10)
        axis.set_xlabel("ms per sweep")
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _label(row: Row) -> str:
    text = f"{row['engine']} {row['precision']}, {row['threads']} thr."
    return f"{text}\nwrong result" if row.get("wrong") else text


def _scaling(pyplot: Any, rows: list[Row]) -> Any:
    figure, axis = pyplot.subplots(figsize=(5, 3.5))
    for precision in ("fp32", "bf16"):
        chosen = [row for row in rows if row["precision"] == precision]
        x, y = [r["voxels"] for r in chosen], [r["median_ms"] for r in chosen]
        axis.loglog(x, y, "o-", label=f"native {precision}")
        per_voxel = y[-1] / x[-1]
        axis.loglog(x, [per_voxel * v for v in x], ":", color="0.6")
    axis.set_xlabel("voxels")
    axis.set_ylabel("ms (dotted: proportional)")
    axis.set_title(f"{rows[0]['network']}, width {rows[0]['width']:g}", fontsize=10)
    axis.legend()
    axis.grid(True, which="both", alpha=0.2)
    return figure
