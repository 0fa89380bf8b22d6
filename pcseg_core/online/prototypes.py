# SPDX-License-Identifier: Apache-2.0
"""Classes learned from example pictures: logistic regression on frozen image features.

The student regresses the features of an image encoder. A classifier of the encoder's pixels
therefore works on the student's points too (IGLOSS does this with DINOv2 and scikit-learn).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcseg_core.errors import InputError
from pcseg_core.labels import LabelClass, LabelSpace
from pcseg_core.online.prompts import spread_color
from pcseg_core.text_table import word_key

if TYPE_CHECKING:
    from pcseg_core.vision.pixel_features import FeatureSource

_PIXELS_PER_PICTURE = 2000
_ROUNDS = 200


@dataclass(frozen=True, eq=False)
class Picture:
    """An example of a class.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, where the class is; None for everywhere.
    """

    image: np.ndarray
    mask: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Prototypes:
    """A linear classifier of unit features.

    Attributes:
        names: of the classes.
        weight: (C, D) float32.
        bias: (C,) float32.
    """

    names: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray

    def label_space(self, trained: LabelSpace) -> LabelSpace:
        """The classes, colored as the trained class of the same name or by spread hues."""
        known = {word_key(c.name): c.color for c in trained.classes}
        return LabelSpace(
            "prototypes",
            tuple(
                LabelClass(i, name, known.get(word_key(name), spread_color(i)))
                for i, name in enumerate(self.names)
            ),
        )


def fit_prototypes(
    encoder: FeatureSource, pictures: Mapping[str, Sequence[Picture]], seed: int = 0
) -> Prototypes:
    """Learn classes from a few pictures each.

    Args:
        encoder: image encoder whose features the student regresses.
        pictures: class name -> examples.
        seed: for the choice of pixels of large pictures.

    Raises:
        InputError: fewer than two classes, a class without pictures, or a mask that is empty or
            differs in size from its picture.
    """
    if len(pictures) < 2:
        raise InputError("prototypes: give pictures of at least two classes")
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for class_id, (name, examples) in enumerate(pictures.items()):
        if not examples:
            raise InputError(f"prototypes: class '{name}' has no picture")
        for picture in examples:
            found = _pixels(encoder, picture, name)
            rows.append(rng.permutation(found)[:_PIXELS_PER_PICTURE])
            labels.append(np.full(len(rows[-1]), class_id))
    weight, bias = logistic_regression(np.concatenate(rows), np.concatenate(labels))
    return Prototypes(tuple(pictures), weight, bias)


def _pixels(encoder: FeatureSource, picture: Picture, name: str) -> np.ndarray:
    """(n, D) features of the pixels of a picture that show its class."""
    features = encoder.features(picture.image)
    flat = features.reshape(len(features), -1).T
    if picture.mask is None:
        result: np.ndarray = flat
        return result
    if picture.mask.shape != picture.image.shape[:2] or not picture.mask.any():
        raise InputError(
            f"prototypes: a mask of class '{name}' is {picture.mask.shape} with "
            f"{int(picture.mask.sum())} pixels set; expected {picture.image.shape[:2]} and some"
        )
    share = torch.from_numpy(picture.mask.astype(np.float32))[None, None]
    inside = F.interpolate(share, features.shape[1:], mode="area")[0, 0].numpy().ravel()
    chosen = inside >= min(0.5, float(inside.max()))  # a thin class fills no whole feature
    values: np.ndarray = flat[chosen]
    return values


def logistic_regression(
    features: np.ndarray, labels: np.ndarray, inverse_penalty: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression of unit features with balanced class weights.

    Minimizes C sum_i w_i CE_i + |W|^2 / 2 with w_i = n / (K n_k), the objective of scikit-learn's
    LogisticRegression(class_weight="balanced").

    Args:
        features: (n, D); rows are normalized first.
        labels: (n,) class ids 0 to K-1, each at least once.
        inverse_penalty: C.

    Returns:
        (K, D) float32 weights and (K,) float32 biases.
    """
    x = F.normalize(torch.from_numpy(np.asarray(features, np.float64)), dim=1)
    y = torch.from_numpy(np.asarray(labels, np.int64))
    counts = torch.bincount(y)
    weights = len(y) / (len(counts) * counts.double())
    weight = torch.zeros(len(counts), x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(counts), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_ROUNDS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        losses = F.cross_entropy(x @ weight.t() + bias, y, reduction="none") * weights[y]
        total: Tensor = inverse_penalty * losses.sum() + weight.square().sum() / 2
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(objective)
    return weight.detach().float().numpy(), bias.detach().float().numpy()


class PrototypeHead:
    """Logits of prototype classes from the penultimate features of the student.

    Args:
        regression: the student's head that regresses the encoder's features.
        prototypes: classifier of those features.
        device: of the student.
    """

    def __init__(self, regression: nn.Module, prototypes: Prototypes, device: torch.device) -> None:
        self.regression = regression
        self.weight = torch.from_numpy(prototypes.weight).to(device)
        self.bias = torch.from_numpy(prototypes.bias).to(device)

    def __call__(self, features: Tensor) -> Tensor:
        """(M, F) features -> (M, C) logits."""
        unit = F.normalize(self.regression(features.float()), dim=1)
        return torch.addmm(self.bias, unit, self.weight.t())
