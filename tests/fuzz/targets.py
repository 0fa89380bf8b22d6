# SPDX-License-Identifier: Apache-2.0
"""All targets by name."""

from __future__ import annotations

from . import bags, checkpoints, clouds, files, folders, frames, images, kernels, published_weights
from .harness import Target

_MODULES = (clouds, images, frames, bags, folders, files, checkpoints, published_weights, kernels)
TARGETS: dict[str, Target] = {
    target.name: target for module in _MODULES for target in module.TARGETS
}
