# SPDX-License-Identifier: Apache-2.0
"""Tables and picture of the teacher study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies import study
from benchmarks.studies.study import Row
from pcseg_core.evaluation import pictures

TASKS = ("distillation", "probe", "zero-shot")
_FIGURES = {"distillation": "miou", "probe": "miou", "zero-shot": "hiou"}
_TITLES = {
    "distillation": "Distillation, mIoU",
    "probe": "Linear probe after contrast, mIoU",
    "zero-shot": "Zero-shot, harmonic mean IoU",
}


def figure_of(row: Mapping[str, Any]) -> float:
    """The figure of the task of a row, a fraction."""
    return float(row.get(_FIGURES[row["task"]]) or 0.0)


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Per source and task: mean and deviation of the figure, IoU per class, and failures."""
    found = []
    for source, task in dict.fromkeys((row["source"], row["task"]) for row in rows):
        same = [row for row in rows if (row["source"], row["task"]) == (source, task)]
        done = [row for row in same if "error" not in row]
        names = dict.fromkeys(name for row in done for name in row["iou"])
        iou = {n: study.spread([row["iou"].get(n) for row in done], "iou")["iou"] for n in names}
        entry = {"source": source, "task": task, "seeds": len(done), "iou": iou}
        entry |= study.spread([figure_of(row) for row in done], "mean")
        errors = dict.fromkeys(row["error"] for row in same if "error" in row)
        found.append({**entry, "errors": list(errors)})
    return found


def markdown(content: Mapping[str, Any]) -> str:
    """Two tables in Markdown: the figure of each task, and IoU by class, in percent."""
    cells = {(row["source"], row["task"]): row for row in content["summary"]}
    sources = list(dict.fromkeys(source for source, _ in cells))
    lines = [_line(["source", *TASKS]), _line(["---"] * (1 + len(TASKS)))]
    lines += [_line([s, *(_cell(cells.get((s, task))) for task in TASKS)]) for s in sources]
    names = content["classes"]
    lines += ["", _line(["IoU", "task", *names]), _line(["---"] * (2 + len(names)))]
    for row in _by_task([row for row in cells.values() if row["seeds"]]):
        values = (_percent(row["iou"].get(name)) for name in names)
        lines.append(_line([row["source"], row["task"], *values]))
    failed = [f"{r['source']}, {r['task']}: {e}" for r in cells.values() for e in r["errors"]]
    return "\n".join([*lines, *(["", "failed:", *failed] if failed else [])])


def _by_task(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: TASKS.index(row["task"]))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    if not row["seeds"]:
        return "failed"
    return f"{_percent(row['mean'])} ± {_percent(row['mean_deviation'])}"


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: a bar per source in each task, a dot per seed; IoU by class below."""
    done = [row for row in content["summary"] if row["seeds"]]
    tasks = [task for task in TASKS if any(row["task"] == task for row in done)]
    sources = list(dict.fromkeys(row["source"] for row in done))
    if not done:
        return
    top, bottom = 90 + 50 * len(sources), 110 + 26 * len(done)
    height = top + bottom
    figure = pictures.new_figure(1500, height)
    for column, task in enumerate(tasks):
        place = (0.19 + 0.27 * column, (bottom + 30) / height, 0.23, (top - 80) / height)
        axes = figure.add_axes(place)
        cells = {row["source"]: row for row in done if row["task"] == task}
        means = [cells[s]["mean"] if s in cells else None for s in sources]
        dots = [[figure_of(r) for r in content["rows"] if _is_seed(r, s, task)] for s in sources]
        study.draw_bars(axes, sources if column == 0 else [""] * len(sources), means, dots)
        axes.set_title(f"{_TITLES[task]}, percent", loc="left", fontsize=11)
    axes = figure.add_axes((0.28, 20 / height, 0.69, (bottom - 90) / height))
    _draw_classes(axes, _by_task(done), content["classes"])
    pictures.save(figure, path)


def _is_seed(row: Mapping[str, Any], source: str, task: str) -> bool:
    return (row["source"], row["task"]) == (source, task) and "error" not in row


def _draw_classes(axes: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    values = np.array([[100 * (row["iou"].get(n) or 0.0) for n in names] for row in rows])
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        color = "white" if value > 60 else pictures.INK
        axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=9, color=color)
    axes.set_xticks(range(len(names)), list(names))
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [f"{row['source']}: {row['task']}" for row in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
