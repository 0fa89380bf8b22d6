# SPDX-License-Identifier: Apache-2.0
"""Report of a robustness study, as JSON, as tables and as a baseline. Figures are fractions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pcseg_core.errors import InputError
from pcseg_core.evaluation.report import JsonReport, percent
from pcseg_core.metrics.figures import Figures
from pcseg_core.metrics.robustness import Mious, corruption_errors, mean_of, resilience_rates

if TYPE_CHECKING:
    from rich.table import Table

SINGLE, SMOOTHED = "single sweeps", "smoothed over time"


class ConditionFigures(Figures):
    """Figures of one method under one condition.

    Attributes:
        points: number of points compared.
        calibration_error: expected calibration error; None without ground truth.
        error_auroc: area under the ROC curve of the entropy for wrong (without ground truth:
            changed) points; None for smoothed labels, or where all are right.
        agreement: share of the points whose label is that of the clean sweep.
        lost, invented: share of the clean points that are lost, and share of noise in the rest.
    """

    points: int
    calibration_error: float | None = None
    error_auroc: float | None = None
    agreement: float | None = None
    lost: float = 0.0
    invented: float = 0.0


class MethodFigures(BaseModel):
    """Figures of one method.

    Attributes:
        clean: without corruption.
        corrupted: corruption -> severity -> figures.
        ce, rr: corruption error and resilience rate of each corruption.
        mce, mrr: their means.
        calibration_error: mean over the corrupted conditions; None without ground truth.
    """

    model_config = ConfigDict(extra="forbid")

    clean: ConditionFigures
    corrupted: dict[str, dict[str, ConditionFigures]]
    ce: dict[str, float] = Field(default_factory=dict)
    rr: dict[str, float] = Field(default_factory=dict)
    mce: float | None = None
    mrr: float | None = None
    calibration_error: float | None = None

    def mious(self) -> Mious:
        """mIoU of each corruption and severity; 0 where no point is left."""
        return {
            name: [figures.miou or 0.0 for figures in severities.values()]
            for name, severities in self.corrupted.items()
        }

    def compared_with(self, baseline: MethodFigures) -> MethodFigures:
        """The same figures with CE, RR and their means.

        Raises:
            InputError: the baseline lacks one of the corruptions or severities.
        """
        mious = self.mious()
        ce = corruption_errors(mious, baseline.mious())
        rr = resilience_rates(mious, self.clean.miou or 0.0)
        errors = [
            figures.calibration_error
            for severities in self.corrupted.values()
            for figures in severities.values()
            if figures.calibration_error is not None
        ]
        figures = {"ce": ce, "rr": rr, "mce": mean_of(ce), "mrr": mean_of(rr)}
        error = float(np.mean(errors)) if errors else None
        return self.model_copy(update={**figures, "calibration_error": error})


class RobustnessReport(JsonReport):
    """Report of one checkpoint.

    Attributes:
        checkpoint: the run.
        sources: name of each recording -> number of sweeps measured.
        label_space: that of the figures.
        reference: "ground truth" or "clean prediction".
        corruptions, severities, every, seed: what was measured.
        baseline: checkpoint that CE refers to.
        methods: `SINGLE`, and `SMOOTHED` where there are poses.
        left_out: corruption -> why it could not be applied.
        skipped: reason -> number of sweeps.
    """

    checkpoint: str
    sources: dict[str, int]
    label_space: str
    reference: str
    corruptions: list[str]
    severities: list[str]
    every: int
    seed: int
    baseline: str
    methods: dict[str, MethodFigures]
    left_out: dict[str, str] = Field(default_factory=dict)
    skipped: dict[str, int] = Field(default_factory=dict)

    def compared_with(self, baseline: RobustnessReport) -> RobustnessReport:
        """The report with CE and mCE against the single sweeps of another one.

        Raises:
            InputError: the other was measured on other data or in another way.
        """
        for key in ("sources", "label_space", "reference", "severities", "every", "seed"):
            own, other = getattr(self, key), getattr(baseline, key)
            if own != other:
                raise InputError(
                    f"baseline {baseline.checkpoint}: measured with {key.replace('_', ' ')} "
                    f"{_shown(other)}, and this run with {_shown(own)}; figures of different data "
                    "cannot be compared: measure the baseline in the same way"
                )
        reference = baseline.methods[SINGLE]
        missing = [name for name in self.corruptions if name not in reference.corrupted]
        if missing:
            raise InputError(
                f"baseline {baseline.checkpoint}: no figures of {', '.join(missing)}; choose "
                "others by --corruptions"
            )
        methods = {k: method.compared_with(reference) for k, method in self.methods.items()}
        return self.model_copy(update={"methods": methods, "baseline": baseline.checkpoint})

    def tables(self) -> list[Table]:
        """Tables for a terminal, one per method."""
        return [self._table(name, method) for name, method in self.methods.items()]

    def _table(self, name: str, method: MethodFigures) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        miou = "mIoU" if self.reference == "ground truth" else "mIoU with the clean labels"
        sweeps = sum(self.sources.values())
        title = f"{', '.join(self.sources)}: {sweeps} sweeps, {name}, {miou} in %"
        table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for column in (*self.severities, "RR", "CE", "ECE", "AUROC", "same"):
            table.add_column(column, justify="right")
        clean, blank = method.clean, [""] * (len(self.severities) - 1)
        table.add_row("clean", percent(clean.miou), *blank, "", "", *_trust([clean]))
        table.add_section()
        for corruption, severities in method.corrupted.items():
            figures = list(severities.values())
            rates = method.rr.get(corruption), method.ce.get(corruption)
            mious = (percent(figure.miou) for figure in figures)
            table.add_row(corruption, *mious, *map(percent, rates), *_trust(figures))
        table.add_section()
        shown = (percent(method.mrr), percent(method.mce), percent(method.calibration_error))
        table.add_row("mean", "", *blank, *shown, "", "")
        return table


def read_baseline(path: Path) -> RobustnessReport:
    """The report in a JSON file.

    Raises:
        InputError: it cannot be read or is no report of a robustness study.
    """
    try:
        return RobustnessReport.model_validate(json.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"--baseline {path}: cannot be read as JSON: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"--baseline {path}: no report of `pcseg robustness --json`: {place}: {first['msg']}"
        ) from None


def _trust(figures: list[ConditionFigures]) -> list[str]:
    """Means over severities: calibration error, AUROC of the entropy, agreement."""
    texts = []
    for key in ("calibration_error", "error_auroc", "agreement"):
        values = [getattr(figure, key) for figure in figures]
        known = [value for value in values if value is not None]
        texts.append(percent(float(np.mean(known)) if known else None))
    return texts


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({count} sweeps)" for name, count in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
