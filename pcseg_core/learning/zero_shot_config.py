# SPDX-License-Identifier: Apache-2.0
"""Settings of zero-shot learning beside those of every training."""

from __future__ import annotations

from pydantic import Field

from pcseg_core.config import Section


class SelfTrainingConfig(Section):
    """Labels by the averaged network itself, in addition to those by images."""

    start: float = Field(
        0.5, ge=0, le=1, description="Share of the steps after which it starts; 1 disables it"
    )
    quantile: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Labels below this quantile of the confidences of their class are not used",
    )
    mix: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the image labels that are replaced; replacing all collapses",
    )
    unlabeled: bool = Field(
        True, description="Also label points that no camera sees or no label is confident for"
    )


class StackingConfig(Section):
    """Calibrated stacking against the bias toward seen classes."""

    tolerance: float = Field(
        0.01, ge=0, lt=1, description="Largest loss of mean IoU of seen classes on held-out sweeps"
    )
    held_out: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the scenes that is not trained on; of the sweeps for one scene",
    )
