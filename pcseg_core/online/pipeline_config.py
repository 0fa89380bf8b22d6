# SPDX-License-Identifier: Apache-2.0
"""Settings of the chain from a sweep to its labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pcseg_core.config import LIVE, Section
from pcseg_core.online.temporal import TemporalBufferConfig


class MotionConfig(Section):
    """Motion of the platform within and between sweeps."""

    required: bool = Field(
        False,
        description="Drop sweeps whose motion is unknown instead of labeling them without "
        "deskewing and smoothing",
    )
    deskew: bool = Field(
        False, description="Correct the points for the motion within the sweep by their times"
    )
    time_field: str = Field(
        "auto", description="Field with the time of each point; auto knows the usual names"
    )
    stamp_reference: Literal["auto", "start", "mid", "end"] = Field(
        "auto", description="Moment of the sweep that its stamp refers to"
    )


class SmoothingConfig(TemporalBufferConfig):
    """Labels smoothed over time."""

    enabled: bool = Field(
        False, description="Smooth labels over the last seconds; needs the motion of the platform"
    )


class CameraUseConfig(Section):
    """The camera teacher at run time."""

    fuse: bool = Field(False, description="Fuse the teacher's pixel classes with the labels")
    camera_weight: float = Field(
        1.0,
        ge=0.0,
        le=4.0,
        description="Weight of a pixel's class relative to the point's; 1 trusts both equally",
    )


class PipelineConfig(Section):
    """Settings that decide the labels of a sweep, given the checkpoint and the teacher."""

    min_confidence: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Points labeled with less confidence become unlabeled (65535)",
        json_schema_extra=LIVE,
    )
    max_entropy: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Points whose class probabilities have a higher entropy, 0 to 1, become "
        "unlabeled (65535); 1 keeps all",
        json_schema_extra=LIVE,
    )
    match_intensity: bool = Field(
        True,
        description="Map the intensities of another sensor than the training's to those of the "
        "training, by rank over the first sweeps",
    )
    motion: MotionConfig = Field(MotionConfig(), description="Motion of the platform")
    temporal: SmoothingConfig = Field(SmoothingConfig(), description="Smoothing over time")
    teacher: CameraUseConfig = Field(CameraUseConfig(), description="Camera teacher")
