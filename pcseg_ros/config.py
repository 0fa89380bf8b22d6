# SPDX-License-Identifier: Apache-2.0
"""Configuration of the segmentation node: the source of its ROS parameters. No ROS imports."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pcseg_core.config import Section

# Marks a field that may change while the node runs; all others become read-only parameters.
LIVE: dict[str, Any] = {"live": True}


class NodeConfig(Section):
    """Parameters of `segment_node`."""

    checkpoint: str = Field(
        "",
        description="Run directory of `pcseg distill`, or a checkpoint file in it; empty takes the "
        "one that comes with the package, trained on simulated drives",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where inference runs: auto, cpu, cuda or cuda:N",
    )
    backend: Literal["auto", "torch", "native", "torchsparse"] = Field(
        "auto", description="Implementation of the sparse convolutions"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Arithmetic of the network on a CPU; auto takes bf16 where the CPU multiplies "
        "it itself (avx512_bf16)",
    )
    autostart: bool = Field(
        True, description="Configure and activate at start, without waiting for a lifecycle manager"
    )
    intensity_scale: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Factor that brings the intensity to 0..1, for example 0.00392 for 0..255; "
        "0 guesses it from every sweep",
    )
    input_reliability: Literal["auto", "reliable", "best_effort"] = Field(
        "auto",
        description="Delivery asked of the publishers of the sweeps; auto asks for reliable and "
        "takes best effort where a publisher offers no more",
    )
    diagnostics_period_s: float = Field(
        1.0, ge=0.1, le=60.0, description="Time between two messages on /diagnostics, s"
    )
    min_confidence: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Points labeled with less confidence become unlabeled (65535)",
        json_schema_extra=LIVE,
    )
    max_age_s: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Sweeps whose stamp is older than this when inference would start are "
        "dropped, s; 0 drops none. Needs sensor stamps in the node's clock",
        json_schema_extra=LIVE,
    )
    publish_rgb: bool = Field(
        False, description="Add the class colour as the field rgb", json_schema_extra=LIVE
    )
    only_when_subscribed: bool = Field(
        True, description="Skip inference while nobody subscribes", json_schema_extra=LIVE
    )
