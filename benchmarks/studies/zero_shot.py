# SPDX-License-Identifier: Apache-2.0
"""What each part of zero-shot learning is worth: one row per part and seed, on the same data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.contrast import scans_of
from pcseg_core.distill.alignment import AlignmentConfig
from pcseg_core.distill.consolidation import ConsolidationConfig
from pcseg_core.errors import InputError
from pcseg_core.files import slug, write_atomic
from pcseg_core.learning.probe import Scan
from pcseg_core.learning.runs import stored_rows
from pcseg_core.learning.zero_shot import zero_shot
from pcseg_core.learning.zero_shot_recipe import SelfTrainingConfig, ZeroShotRecipe
from pcseg_core.learning.zero_shot_split import Split

SEEN_ONLY = "seen labels alone"
FULL = "+ consolidation"
FREE = "no labels, images alone"
FREE_FULL = "no labels, all parts"

# What each row takes from the recipe; the rest is left out. Rows build on each other.
ROWS: dict[str, tuple[str, ...]] = {
    SEEN_ONLY: ("seen",),
    "no alignment": (),
    "global": ("global_weight",),
    "local": ("local_weight",),
    "both": ("global_weight", "local_weight"),
    "+ self-training": ("global_weight", "local_weight", "self_training"),
    FULL: ("global_weight", "local_weight", "self_training", "consolidation"),
    "self-training alone": ("self_training",),
    "consolidation alone": ("consolidation",),
    FREE: ("annotation-free",),
    FREE_FULL: (
        "annotation-free",
        "global_weight",
        "local_weight",
        "self_training",
        "consolidation",
    ),
}
_KEYS = ("seen", "unseen", "hiou")
_LIDAR, _CAMERAS = "beams=32,columns=1024", "cameras=2,width=320,height=192"
_TOWNS = ("center", "suburb", "old-town", "avenue")
_TEST_TOWN = "industrial"


@dataclass
class ZeroShotData:
    """Sources of labeled recordings: with images to train on, and to measure on."""

    train: list[str]
    test: list[str]


def simulated_data(recordings: int = 10, sweeps: int = 5, tests: int = 6) -> ZeroShotData:
    """Drives in four towns with two cameras each, measured in a town never seen."""
    rig = f"sweeps={sweeps},stride=5,{_LIDAR},{_CAMERAS}"
    train = [f"simulated:seed={100 + i},town={_TOWNS[i % 4]},{rig}" for i in range(recordings)]
    test = [
        f"simulated:seed={500 + i},town={_TEST_TOWN},sweeps=2,stride=20,{_LIDAR},cameras=0"
        for i in range(tests)
    ]
    return ZeroShotData(train, test)


def folder_data(path: Path, test: Sequence[str]) -> ZeroShotData:
    """The labeled SemanticKITTI sequences with images below a folder.

    Sequence 08 is measured on, as is the custom, or the last where there is none.

    Args:
        path: folder of sequences.
        test: recordings to measure on instead; they are not trained on.

    Raises:
        InputError: nothing labeled with images there, or nothing left to train on.
    """
    found = sorted(
        p.parent
        for p in path.glob("**/labels")
        if (p.parent / "velodyne").is_dir() and (p.parent / "calib.txt").is_file()
    )
    if not found:
        raise InputError(
            f"{path}: no labeled sequence with calib.txt below it; expected SemanticKITTI "
            "sequences with images beside their labels, or a source (reader:path) and --test"
        )
    places = {str(p.resolve()): p for p in found}
    tested = [str(Path(t.partition(":")[2] or t).resolve()) for t in test]
    if not test:
        last = next((key for key, p in places.items() if p.name == "08"), list(places)[-1])
        tested = [last]
    train = [f"semantic-kitti:{p}" for key, p in places.items() if key not in tested]
    if not train:
        raise InputError(f"{path}: one labeled sequence alone; give others with --test")
    measured = list(test) or [f"semantic-kitti:{places[key]}" for key in tested]
    return ZeroShotData(train, measured)


def row_recipe(base: ZeroShotRecipe, row: str, seed: int) -> ZeroShotRecipe:
    """The recipe of a row: the base without the parts that the row leaves out."""
    parts = ROWS[row]
    weights = {
        key: getattr(base.alignment, key) if key in parts else 0.0
        for key in ("global_weight", "local_weight")
    }
    aligned = base.alignment.model_copy(update=weights)
    if not aligned.active:  # settings of a part that is left out do not tell rows apart
        aligned = AlignmentConfig(**weights, patch_px=base.alignment.patch_px)
    alone = base.labels.model_copy(update={"consolidation": ConsolidationConfig(voxel_m=0)})
    return base.model_copy(
        update={
            "alignment": aligned,
            "supervision": next(
                (p for p in parts if p in ("seen", "annotation-free")), "zero-shot"
            ),
            "self_training": base.self_training
            if "self_training" in parts
            else SelfTrainingConfig(start=1.0),
            "labels": base.labels if "consolidation" in parts else alone,
            "seed": seed,
        }
    )


def digest(recipe: ZeroShotRecipe) -> str:
    """A short name of everything in a recipe."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]


class ZeroShotAblation:
    """Rows of (part, seed), made one by one and kept, so that it can be interrupted.

    A row whose own recipe has changed since is made again.

    Args:
        base: recipe with all parts.
        data: what is trained on and measured with.
        split: which classes are never labeled.
        out: JSON file of the rows.
        work: folder of runs, looked-at sweeps and scans.
        device: where it runs.
        keep: rows to make; all if not given.
        every: only every k-th sweep is trained on.
    """

    def __init__(
        self,
        base: ZeroShotRecipe,
        data: ZeroShotData,
        split: Split,
        out: Path,
        work: Path,
        device: str = "auto",
        keep: Sequence[str] | None = None,
        every: int = 1,
    ) -> None:
        if unknown := set(keep or ()) - set(ROWS):
            raise InputError(f"no row {', '.join(sorted(unknown))}; rows: {', '.join(ROWS)}")
        self.base, self.data, self.split, self.out, self.work = base, data, split, out, work
        self.device, self.keep, self.every = device, list(keep or ROWS), every
        self.settings = {**vars(data), "split": split.model_dump(mode="json"), "every": every}
        stored = stored_rows(out, self.settings)
        self.rows = [row for row in stored if row["recipe"] == self._digest(row)]

    def _digest(self, row: Mapping[str, Any]) -> str:
        """What the recipe of a stored row must be, to be kept rather than made again."""
        return digest(row_recipe(self.base, row["row"], row["seed"]))

    def run(
        self, seeds: int, tell: Callable[[str], None] = print, limit: int | None = None
    ) -> dict[str, Any]:
        """Make the rows that are missing.

        Args:
            seeds: per row.
            tell: called with a line before and after each row.
            limit: make at most so many rows and leave the others to another call.

        Returns:
            The content of the JSON file.
        """
        missing = list(self._missing(seeds))[:limit]
        scans = self._scans() if missing else []
        for row, seed in missing:
            tell(f"{row}, seed {seed}")
            recipe = row_recipe(self.base, row, seed)
            run = self.work / "runs" / f"{slug(row)}-{seed}-{digest(recipe)}"
            metrics = zero_shot(
                self.data.train,
                scans,
                self.split,
                recipe,
                run,
                self.work / "cache",
                self.device,
                self.every,
            )
            figures = {k: metrics[k] for k in ("gamma", "labels", "training_s", "plain", "stacked")}
            self.rows.append({"row": row, "seed": seed, "recipe": digest(recipe), **figures})
            found = metrics["stacked"]
            tell(f"{row}, seed {seed}: " + ", ".join(f"{k} {_percent(found[k])}" for k in _KEYS))
            self._write()
        return self._write()

    def _scans(self) -> list[Scan]:
        reach = self.base.student.max_range_m
        return scans_of(self.data.test, self.split.space, reach, self.work)

    def _missing(self, seeds: int) -> Iterator[tuple[str, int]]:
        done = {(row["row"], row["seed"]) for row in self.rows}
        for seed in range(seeds):
            yield from ((row, seed) for row in self.keep if (row, seed) not in done)

    def _write(self) -> dict[str, Any]:
        content = {
            "settings": self.settings,
            "recipe": self.base.model_dump(mode="json"),
            "rows": self.rows,
            "summary": summarize(self.rows),
        }
        write_atomic(self.out, json.dumps(content, indent=1) + "\n")
        return content


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per row, in their order: means and deviations over the seeds, with and without stacking."""
    found = []
    for name in ROWS:
        members = [row for row in rows if row["row"] == name]
        if not members:
            continue
        entry: dict[str, Any] = {"row": name, "seeds": len(members)}
        for kind in ("plain", "stacked"):
            for key in _KEYS:
                values = [row[kind][key] for row in members if row[kind][key] is not None]
                entry[f"{kind}_{key}"] = float(np.mean(values)) if values else None
                entry[f"{kind}_{key}_deviation"] = float(np.std(values)) if values else None
        found.append(entry)
    return found


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def markdown(content: Mapping[str, Any]) -> str:
    """The summary as a table in Markdown, in percent."""
    lines = [
        "| row | seen | unseen | hIoU | seen, stacked | unseen, stacked | hIoU, stacked | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    keys = [f"{kind}_{key}" for kind in ("plain", "stacked") for key in _KEYS]
    for entry in content["summary"]:
        cells = [f"{_percent(entry[k])} ± {_percent(entry[k + '_deviation'])}" for k in keys]
        lines.append("| " + " | ".join([entry["row"], *cells, str(entry["seeds"])]) + " |")
    return "\n".join(lines)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: seen, unseen and harmonic mean IoU per row, a dot per seed."""
    from pcseg_core.evaluation import pictures

    summary = list(reversed(content["summary"]))
    figure = pictures.new_figure(1300, 110 + 62 * len(summary))
    titles = {"seen": "Seen classes", "unseen": "Unseen classes", "hiou": "Harmonic mean"}
    for column, (key, title) in enumerate(titles.items()):
        axes = figure.add_axes((0.19 + 0.27 * column, 0.11, 0.24, 0.77))
        for place, entry in enumerate(summary):
            mean = 100 * (entry[f"plain_{key}"] or 0)
            axes.barh(place, mean, color="#9ec5fe", height=0.62)
            members = [row for row in content["rows"] if row["row"] == entry["row"]]
            values = [100 * (row["plain"][key] or 0) for row in members]
            axes.plot(values, [place] * len(values), "o", color=pictures.ACCENT, markersize=4)
            stacked = 100 * (entry[f"stacked_{key}"] or 0)
            axes.plot(stacked, place, "D", color="#f0a202", markersize=5)
            axes.text(max([mean, stacked, *values]) + 2, place, f"{mean:.1f}", va="center")
        axes.set_yticks(range(len(summary)), [e["row"] if column == 0 else "" for e in summary])
        axes.set_xlim(0, 100)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=11)
    unseen = ", ".join(content["settings"]["split"]["unseen"])
    title = (
        f"mIoU in percent, never labeled: {unseen}; dots are seeds, diamonds means with stacking"
    )
    figure.text(0.015, 0.955, title, fontsize=12)
    pictures.save(figure, path)
