# SPDX-License-Identifier: Apache-2.0
"""Linear classifiers on features of points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def logistic_regression(
    inputs: Array,
    targets: Array,
    class_weights: Array,
    *,
    decay: float = 1e-4,
    iterations: int = 200,
    rounds: int = 1,
    after_round: Callable[[float, Array, Array], None] | None = None,
) -> tuple[Array, Array]:
    """Weighted multinomial logistic regression by L-BFGS, from zero, so deterministic.

    Args:
        inputs: (N, D) features; standardized inside, constant columns are harmless.
        targets: (N,) class ids in 0..C-1.
        class_weights: (C,) weight of the points of each class.
        decay: L2 penalty on the weights of standardized features.
        iterations: of the solver, at most, in every round.
        rounds: that follow each other.
        after_round: called with the loss, and with weight and bias as they are returned.

    Returns:
        Weight (D, C) and bias (C,) float32 for features that are not standardized.
    """
    mean, spread = inputs.mean(axis=0), inputs.std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1.0)
    x = torch.from_numpy(((inputs - mean) / spread).astype(np.float32))
    y = torch.from_numpy(targets.astype(np.int64))
    balance = torch.from_numpy(np.asarray(class_weights, np.float32))
    weight = torch.zeros(x.shape[1], len(balance), requires_grad=True)
    bias = torch.zeros(len(balance), requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight + bias, y, balance)
        value = value + decay * weight.square().sum()
        value.backward()
        return value

    def unscaled() -> tuple[Array, Array]:
        scaled = weight.detach().numpy() / spread[:, None]
        shifted = bias.detach().numpy() - mean @ scaled
        return scaled.astype(np.float32), shifted.astype(np.float32)

    for _ in range(rounds):
        value = float(torch.as_tensor(solver.step(loss)).detach())
        if after_round is not None:
            after_round(value, *unscaled())
    return unscaled()
