# SPDX-License-Identifier: Apache-2.0
"""Tables and picture of the projection study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.studies.projection_faults import ANGLES_DEG, DISTANCES_M, EXACT, KINDS, title
from benchmarks.studies.projection_labels import FUSED, METHODS, OWN, VOTES
from benchmarks.studies.projection_views import FACTORS
from benchmarks.studies.study import Row
from pcseg_core.evaluation import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (EXACT, title("rotation", 1.0), title("position", 0.2), title("time", 0.1))
"""Conditions whose labels are shown by class and by group."""

_FUSIONS = (OWN, VOTES, FUSED)
_COLORS = (pictures.ACCENT, "#f0a202", "#2a9d8f", "#d1495b")


def figure_of(content: Mapping[str, Any], row: str, *path: str) -> float | None:
    """Mean of a figure over the seeds of a row; None where it was not measured."""
    found = []
    for entry in content["rows"]:
        if entry["row"] == row:
            value: Any = entry
            for key in path:
                value = None if value is None else value.get(key)
            if value is not None:
                found.append(value)
    return float(np.mean(found)) if found else None


def markdown(content: Mapping[str, Any]) -> str:
    """Tables in Markdown: known points, labels, labels by group and class, unseen, students."""
    names = list(dict.fromkeys(row["row"] for row in content["rows"]))
    labeled = [name for name in names if not name.startswith("student")]
    students = [name for name in names if name not in labeled]
    tables = [
        _known_points(content, labeled),
        _labels(content, labeled),
        _groups(content, [name for name in SHOWN if name in labeled]),
        _unseen(content, labeled),
    ]
    if students:
        tables.append(_students(content, students))
    return "\n\n".join(tables)


def _known_points(content: Mapping[str, Any], names: Sequence[str]) -> str:
    head = ["known points", "px", "px 95 %", *(f"{d:g} m, m" for d in DISTANCES_M)]
    head += [f"{d:g} m, px" for d in DISTANCES_M] + [f"{a:g} deg, px" for a in ANGLES_DEG]
    paths = [("all", "px"), ("all", "px_95"), *(("distance", f"{d:g}", "m") for d in DISTANCES_M)]
    paths += [("distance", f"{d:g}", "px") for d in DISTANCES_M]
    paths += [("angle", f"{a:g}", "px") for a in ANGLES_DEG]
    rows = []
    for name in names:
        values = (figure_of(content, name, "points", *path) for path in paths)
        rows.append([name, *(f"{v:.2f}" if v is not None else "-" for v in values)])
    return _table(head, rows)


def _labels(content: Mapping[str, Any], names: Sequence[str]) -> str:
    head = ["labeled %, right %, mIoU", *(method.name for method in METHODS)]
    rows = []
    for name in names:
        cells = []
        for method in METHODS:
            path = ("labels", method.name)
            figures = (figure_of(content, name, *path, n) for n in ("labeled", "accuracy", "miou"))
            cells.append(" / ".join(map(_percent, figures)))
        rows.append([name, *cells])
    return _table(head, rows)


def _groups(content: Mapping[str, Any], names: Sequence[str]) -> str:
    """Accuracy of labels by group and class: from own pixels and from votes."""
    head = ["right %, own pixels / votes", "points", *names]
    rows = []
    for group, path in _parts(content):
        points = figure_of(content, names[0], "labels", OWN, *path, "points") if names else None
        cells = [f"{points:,.0f}" if points is not None else "-"]
        for name in names:
            pair = (figure_of(content, name, "labels", m, *path, "accuracy") for m in (OWN, VOTES))
            cells.append(" / ".join(map(_percent, pair)))
        rows.append([group, *cells])
    return _table(head, rows)


def _parts(content: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Groups and classes with points, and where their figures are."""
    for factor, groups in FACTORS.items():
        yield from ((f"{factor}: {name}", ("by", factor, name)) for name in groups)
    labeled = [row["labels"] for row in content["rows"] if "labels" in row]
    classes: dict[str, Row] = labeled[0][OWN]["class"] if labeled else {}
    for name, figures in classes.items():
        if figures["points"]:
            yield f"class: {name}", ("class", name)


def _unseen(content: Mapping[str, Any], names: Sequence[str]) -> str:
    methods = [m.name for m in METHODS if m.fusion != VOTES]
    rows = []
    for name in names:
        cells = []
        for method in methods:
            pair = (figure_of(content, name, "unseen", method, n) for n in ("labeled", "accuracy"))
            cells.append(" / ".join(map(_percent, pair)))
        rows.append([name, *cells])
    return _table(["unseen classes: labeled %, right %", *methods], rows)


def _students(content: Mapping[str, Any], names: Sequence[str]) -> str:
    rows = []
    for name in names:
        seeds = sum(row["row"] == name for row in content["rows"])
        figures = (figure_of(content, name, "student", n) for n in ("miou", "accuracy"))
        rows.append([name, *map(_percent, figures), str(seeds)])
    return _table(["student", "mIoU", "right %", "seeds"], rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: accuracy of labels over the size of each fault, and by group under some faults."""
    figure = pictures.new_figure(1300, 860)
    axes = figure.subplots(2, 3, sharey="row")
    figure.subplots_adjust(left=0.05, right=0.98, top=0.94, bottom=0.13, hspace=0.28, wspace=0.08)
    for ax, kind in zip(axes[0], KINDS):
        _draw_kind(ax, content, kind)
    parts = [path for _, path in _parts(content)]
    for ax, kind in zip(axes[1], ("distance", "border", "class")):
        _draw_groups(ax, content, [path for path in parts if kind in path])
        _dress(ax, f"{OWN}, by {kind}")
    for row, place, columns in zip(axes, (0.03, 0.62), (3, 2)):
        handles, names = row[0].get_legend_handles_labels()
        figure.legend(
            handles,
            names,
            loc="lower left",
            bbox_to_anchor=(place, 0.01),
            frameon=False,
            fontsize=9,
            ncols=columns,
        )
    pictures.save(figure, path)


def _draw_kind(ax: Axes, content: Mapping[str, Any], kind: str) -> None:
    """Accuracy of every method over the size of a fault."""
    _, unit, sizes = KINDS[kind]
    rows = [EXACT, *(title(kind, size) for size in sizes)]
    for number, method in enumerate(METHODS):
        found = [figure_of(content, row, "labels", method.name, "accuracy") for row in rows]
        color = _COLORS[number % len(_FUSIONS)]
        _line(ax, (0.0, *sizes), found, color, method.name, "-" if method.occlusion else "--")
    _dress(ax, f"Right labels in percent, by error of {kind} [{unit}]")


def _draw_groups(ax: Axes, content: Mapping[str, Any], paths: Sequence[Sequence[str]]) -> None:
    """Accuracy of labels from own pixels in each group, for exact calibration and faults."""
    for name, color in zip(SHOWN, _COLORS):
        found = [figure_of(content, name, "labels", OWN, *path, "accuracy") for path in paths]
        _line(ax, range(len(paths)), found, color, name)
    slope = 20 if len(paths) > 5 else 0
    ax.set_xticks(range(len(paths)), [path[-1] for path in paths], rotation=slope)


def _line(
    ax: Axes,
    x: Sequence[float],
    shares: Sequence[float | None],
    color: str,
    label: str,
    style: str = "-",
) -> None:
    percents = [np.nan if share is None else 100 * share for share in shares]
    ax.plot(x, percents, style, color=color, marker="o", markersize=4, label=label)


def _dress(ax: Axes, words: str) -> None:
    ax.tick_params(labelsize=8)
    ax.grid(axis="y", color="#eaeef2", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(words, loc="left", fontsize=10)
