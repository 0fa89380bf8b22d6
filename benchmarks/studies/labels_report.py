# SPDX-License-Identifier: Apache-2.0
"""Tables and picture of the label study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies import study
from benchmarks.studies.labels_measures import RANGES
from benchmarks.studies.labels_parts import ALL, NONE, row_alone, row_without
from benchmarks.studies.study import Row
from pcseg_core.evaluation import pictures

_PATHS: dict[str, tuple[str, ...]] = {
    "agreement": ("agreement", "all", "miou"),
    "accuracy": ("agreement", "all", "accuracy"),
    "own view": ("agreement", "own", "miou"),
    "own view, accuracy": ("agreement", "own", "accuracy"),
    "carried": ("agreement", "carried", "miou"),
    "carried, accuracy": ("agreement", "carried", "accuracy"),
    "turned": ("turned",),
    "next sweep": ("places",),
    "truth": ("truth", "miou"),
    "truth, accuracy": ("truth", "accuracy"),
    "truth, ground merged": ("truth", "miou_merged_ground"),
    **{reach: ("agreement", "all", "accuracy_by_range", reach) for reach in RANGES},
}
_GAINS = ("agreement", "accuracy", "turned", "next sweep", "truth")


def figure_of(row: Mapping[str, Any], name: str) -> float | None:
    """A figure of a row by its name, a fraction; None where it was not measured."""
    found: Any = row
    for key in _PATHS[name]:
        found = None if found is None else found.get(key)
    return found


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Per row: its seeds, mean and deviation of every figure."""
    found = []
    for name in dict.fromkeys(row["row"] for row in rows):
        same = [row for row in rows if row["row"] == name]
        entry: Row = {"row": name, "seeds": len(same)}
        for figure in _PATHS:
            entry |= study.spread([figure_of(row, figure) for row in same], figure)
        found.append(entry)
    return found


def gain(content: Mapping[str, Any], more: str, less: str, figure: str) -> dict[str, float | None]:
    """Mean and deviation of the gain of one row over another, seed by seed.

    Args:
        content: of the JSON file.
        more, less: names of rows.
        figure: its name.
    """
    pair = []
    for name in (more, less):
        stands = content["same"].get(name)
        same = [row for row in content["rows"] if row["row"] == stands]
        pair.append({row["seed"]: figure_of(row, figure) for row in same})
    both = [(value, pair[1].get(seed)) for seed, value in pair[0].items()]
    known = [a - b for a, b in both if a is not None and b is not None]
    return study.spread(known, "gain")


def markdown(content: Mapping[str, Any]) -> str:
    """Two tables in Markdown, in percent and points: the rows, and what each part is worth."""
    head = ["row", *_PATHS, "seeds"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in content["summary"]:
        cells = (_percent(row, figure) for figure in _PATHS)
        lines.append(_line([row["row"], *cells, str(row["seeds"])]))
    head = ["part", *(f"{figure}, {way}" for figure in _GAINS for way in ("alone", "in all"))]
    lines += ["", _line(head), _line(["---"] * len(head))]
    lines += [_line([part, *_worth(content, part)]) for part in content["parts"]]
    absent = ", ".join(content["absent"]) or "none"
    return "\n".join([*lines, "", f"Not in the recipe, so not in the study: {absent}."])


def _worth(content: Mapping[str, Any], part: str) -> Iterator[str]:
    for figure in _GAINS:
        for more, less in ((row_alone(part), NONE), (ALL, row_without(part))):
            yield _percent(gain(content, more, less, figure), "gain", "+")


def _percent(values: Mapping[str, Any], name: str, sign: str = "") -> str:
    mean, deviation = values[name], values[f"{name}_deviation"]
    return "-" if mean is None else f"{100 * mean:{sign}.1f} ± {100 * deviation:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: a bar of the agreement per row, a dot per seed, a diamond for the ground truth."""
    summary = content["summary"]
    names = [row["row"] for row in summary]
    dots = [
        [figure_of(row, "agreement") or 0.0 for row in content["rows"] if row["row"] == name]
        for name in names
    ]
    truths = [row["truth"] for row in summary]
    diamonds = truths if all(value is not None for value in truths) else []
    figure = pictures.new_figure(1100, 130 + 42 * len(summary))
    axes = figure.add_axes((0.25, 0.1, 0.71, 0.78))
    study.draw_bars(axes, names, [row["agreement"] for row in summary], dots, diamonds)
    title = "mIoU in percent against the camera teacher on held-out drives; dots are seeds"
    told = ", diamonds the ground truth" if diamonds else ""
    axes.set_title(title + told, loc="left", x=-0.3, fontsize=11)
    pictures.save(figure, path)
