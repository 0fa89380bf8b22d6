# SPDX-License-Identifier: Apache-2.0
"""What each objective of pretraining is worth: every method from one start, probed alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcseg_core.data import Recording, open_recording
from pcseg_core.errors import InputError
from pcseg_core.evaluation.baselines import raw_inputs
from pcseg_core.evaluation.report import Figures, merge_of
from pcseg_core.files import atomic_path, slug, write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.pretrain import pretrain
from pcseg_core.learning.pretrain_recipe import PretrainRecipe
from pcseg_core.learning.probe import (
    Features,
    FrozenNetwork,
    Scan,
    probe_features,
    read_scans,
    untrained,
)
from pcseg_core.learning.runs import stored_rows
from pcseg_core.metrics.confusion import Confusion

RAW, UNTRAINED = "raw inputs", "random"

# Changes of the recipe that make each method: loss weights, and the kind of superpixels.
METHODS: dict[str, dict[str, Any]] = {
    "slic contrast": {"superpixel": 1.0, "kind": "slic"},
    "semantic contrast": {"superpixel": 1.0},
    "+ temporal": {"superpixel": 1.0, "temporal": 1.0},
    "+ point-to-segment": {"superpixel": 1.0, "temporal": 1.0, "point_to_segment": 1.0},
    "point-pixel contrast": {"point_pixel": 1.0, "kind": "slic"},
    "regression": {"regression": 1.0},
    "best mix": {"superpixel": 1.0, "temporal": 0.2, "point_to_segment": 0.2, "paired": 0.5},
}
_TERMS = ("superpixel", "temporal", "point_to_segment", "point_pixel", "regression")

_TOWNS = ("center", "suburb", "old-town", "avenue")  # trained and fitted in
_TEST_TOWN = "industrial"


@dataclass
class AblationData:
    """What an ablation trains on and is measured with.

    Attributes:
        train: sources of recordings with cameras.
        fit: sources of labeled sweeps that the probes are fitted to.
        test: sources of labeled sweeps they are measured on.
        split: where one source serves both, even scans are fitted to and odd ones tested on.
    """

    train: list[str]
    fit: list[str]
    test: list[str]
    split: bool = False


def simulated_data(recordings: int = 8, beams: int = 32) -> AblationData:
    """Simulated drives of four towns, labeled ones of the same towns, and a town never seen."""
    lidar = f"beams={beams},columns=1024"
    cameras = "cameras=2,width=640,height=384"
    train = [
        f"simulated:seed={100 + i},town={_TOWNS[i % 4]},sweeps=4,stride=2,{lidar},{cameras}"
        for i in range(recordings)
    ]
    fit = [
        f"simulated:seed={300 + i},town={town},sweeps=2,stride=20,{lidar},cameras=0"
        for i, town in enumerate(_TOWNS)
    ]
    test = [
        f"simulated:seed={500 + i},town={_TEST_TOWN},sweeps=2,stride=20,{lidar},cameras=0"
        for i in range(4)
    ]
    return AblationData(train, fit, test)


def folder_data(path: Path, fit: Sequence[str], test: Sequence[str]) -> AblationData:
    """All recordings with cameras below a folder, and its labeled sequences unless others are
    named.

    Raises:
        InputError: no recording, or no labeled sweeps to probe with.
    """
    raw = sorted({p.parent for p in path.glob("**/velodyne_points")})
    objects = sorted(
        {
            p.parent
            for p in path.glob("**/velodyne")
            if (p.parent / "image_2").is_dir() and (p.parent / "calib").is_dir()
        }
    )
    labeled = sorted(p.parent for p in path.glob("**/labels") if (p.parent / "velodyne").is_dir())
    train = [f"kitti-raw:{p}" for p in raw] + [f"kitti-object:{p}" for p in objects]
    if not train:
        raise InputError(f"{path}: no KITTI raw drive or object folder below it to train on")
    if fit and test:
        return AblationData(train, list(fit), list(test))
    if not labeled:
        raise InputError(f"{path}: no labeled sequence below it; give --fit and --test")
    sources = [f"semantic-kitti:{p}" for p in labeled]
    if len(sources) > 1:
        return AblationData(train, sources[:1], sources[1:])
    return AblationData(train, sources, sources, split=True)


def scans_of(sources: Sequence[str], space: LabelSpace, reach: float, cache: Path) -> list[Scan]:
    """Labeled scans of sources, kept in a file each since simulated ones take long to make."""
    scans: list[Scan] = []
    for source in sources:
        file = cache / "scans" / f"{slug(source)[-150:]}-{space.name}-{reach:g}.npz"
        if not file.is_file():
            found = list(read_scans(open_recording(source), space, reach))
            arrays = {f"{i}_{k}": v for i, s in enumerate(found) for k, v in vars(s).items()}
            _save(file, {"count": np.array(len(found)), **arrays})
        with np.load(file, allow_pickle=False) as stored:
            names = Scan.__dataclass_fields__
            for i in range(int(stored["count"])):
                values = {name: stored[f"{i}_{name}"] for name in names}
                scans.append(Scan(**{**values, "name": str(values["name"])}))
    if not scans:
        raise InputError(f"no labeled sweep in {', '.join(sources)}")
    return scans


def _save(file: Path, arrays: Mapping[str, Any]) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, **arrays)


def method_recipe(base: PretrainRecipe, method: str, seed: int) -> PretrainRecipe:
    """The recipe of a method: the base with other losses and, maybe, plain superpixels."""
    changes = dict(METHODS[method])
    kind = changes.pop("kind", base.superpixels.name)
    loss = base.loss.model_copy(update={**dict.fromkeys(_TERMS, 0.0), **changes})
    superpixels = base.superpixels.model_copy(update={"name": kind})
    return base.model_copy(update={"loss": loss, "superpixels": superpixels, "seed": seed})


class Ablation:
    """Rows of (method, seed), made one by one and kept, so that it can be interrupted.

    Args:
        base: recipe that the methods change.
        data: what is trained on and measured with.
        out: JSON file of the rows.
        work: folder of views, runs and scans.
        space: label space of the probes.
        device: where it runs.
        keep: methods to run; all if not given.
    """

    def __init__(
        self,
        base: PretrainRecipe,
        data: AblationData,
        out: Path,
        work: Path,
        space: LabelSpace,
        device: str = "auto",
        keep: Sequence[str] | None = None,
    ) -> None:
        unknown = set(keep or ()) - {RAW, UNTRAINED, *METHODS}
        if unknown:
            known = ", ".join((RAW, UNTRAINED, *METHODS))
            raise InputError(f"no method {', '.join(sorted(unknown))}; methods: {known}")
        self.base, self.data, self.out, self.work, self.space = base, data, out, work, space
        self.device = device
        self.keep = list(keep or (RAW, UNTRAINED, *METHODS))
        self.settings = {
            "recipe": base.model_dump(mode="json", exclude={"seed"}),
            **vars(data),
            "label_space": space.name,
        }
        self.rows = stored_rows(out, self.settings)

    def run(self, seeds: int, tell: Callable[[str], None] = print) -> dict[str, Any]:
        """Make the rows that are missing.

        Args:
            seeds: per method; the raw inputs have none and get one row.
            tell: called with a line before and after each row.

        Returns:
            The content of the JSON file.
        """
        reach = self.base.student.max_range_m
        fit = scans_of(self.data.fit, self.space, reach, self.work)
        test = scans_of(self.data.test, self.space, reach, self.work)
        if self.data.split:
            fit, test = fit[::2], test[1::2]
        for method, seed in self._missing(seeds):
            tell(f"{method}, seed {seed}")
            features = self._features(method, seed, fit)
            found = probe_features(features, fit, test, len(self.space), seed=seed)
            self.rows.append({"method": method, "seed": seed, **self._row(found.confusion)})
            tell(f"{method}, seed {seed}: {100 * self.rows[-1]['miou']:.1f} mIoU")
            self._write()
        return self._write()

    def _missing(self, seeds: int) -> Iterator[tuple[str, int]]:
        done = {(row["method"], row["seed"]) for row in self.rows}
        for seed in range(seeds):
            for method in self.keep:
                if (method != RAW or seed == 0) and (method, seed) not in done:
                    yield method, seed

    def _features(self, method: str, seed: int, fit: Sequence[Scan]) -> Features:
        if method == RAW:
            return raw_inputs
        device = "cuda" if self.device == "cuda" else "cpu"
        if method == UNTRAINED:
            return untrained(self.base.student, fit, seed, device)
        recipe = method_recipe(self.base, method, seed)
        run = self.work / "runs" / f"{slug(method)}-{seed}"
        recordings: dict[str, Recording] = {
            source: open_recording(source) for source in self.data.train
        }
        pretrain(recordings, recipe, run, self.work / "cache", self.device)
        return FrozenNetwork.load(run, device)

    def _row(self, confusion: Confusion) -> dict[str, Any]:
        figures = Figures.of(confusion, self.space.names, merge_of(self.space))
        return figures.model_dump(exclude_none=True)

    def _write(self) -> dict[str, Any]:
        content = {"settings": self.settings, "rows": self.rows, "summary": summarize(self.rows)}
        write_atomic(self.out, json.dumps(content, indent=1) + "\n")
        return content


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per method, in the order of the methods: mean and deviation of the mIoU over the seeds."""
    found = []
    for method in (RAW, UNTRAINED, *METHODS):
        values = [row["miou"] for row in rows if row["method"] == method]
        if values:
            mean, deviation = float(np.mean(values)), float(np.std(values))
            found.append(
                {"method": method, "seeds": len(values), "miou": mean, "deviation": deviation}
            )
    return found


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: a bar per method, a dot per seed."""
    from pcseg_core.evaluation import pictures

    summary = content["summary"]
    figure = pictures.new_figure(1100, 90 + 55 * len(summary))
    axes = figure.add_axes((0.22, 0.16, 0.74, 0.74))
    for place, row in enumerate(reversed(summary)):
        axes.barh(place, 100 * row["miou"], color="#9ec5fe", height=0.62)
        values = [100 * r["miou"] for r in content["rows"] if r["method"] == row["method"]]
        axes.plot(values, [place] * len(values), "o", color=pictures.ACCENT, markersize=4)
        axes.text(max(values) + 1.0, place, f"{100 * row['miou']:.1f}", va="center")
    axes.set_yticks(range(len(summary)), [row["method"] for row in reversed(summary)])
    axes.set_xlim(0, 100 * max(row["miou"] for row in summary) + 8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Linear probe on frozen features, mIoU in percent; dots are seeds", loc="left")
    pictures.save(figure, path)
