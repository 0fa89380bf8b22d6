# SPDX-License-Identifier: Apache-2.0
"""The optimizer that all protocols share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from pcseg_core.learning.recipe import OptimizerConfig


def adamw(parameters: Iterable[Any], config: OptimizerConfig) -> dict[str, Any]:
    """AdamW with linear warm-up and cosine decay to zero, as Lightning takes it.

    Args:
        parameters: parameters, or groups of them (dicts) with learning rates of their own.
        config: learning rate of what has none of its own, weight decay, steps and warm-up.
    """
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    warm = max(1, round(config.warmup * config.steps))

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, config.steps - warm)
        return 0.5 * (1 + math.cos(min(1.0, progress) * math.pi))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
