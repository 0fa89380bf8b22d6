# SPDX-License-Identifier: Apache-2.0
"""Teachers whose networks bring their own class names, and averages over views of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field

from pcseg_core.errors import InputError, PcsegError
from pcseg_core.labels import LabelSpace, group_probabilities
from pcseg_core.vision.class_names import NameMatch, match_names, own_space, read_mapping
from pcseg_core.vision.pixel_classes import TeacherConfig
from pcseg_core.vision.registry import LocatedPath
from pcseg_core.vision.superpixels import check_image

Float32 = npt.NDArray[np.float32]
OWN_NAMES = "own"
"""In place of a label space: the names of the network are the classes."""
_TOLERANCE = 1e-2  # of sums of probabilities, for half precision


class NamedSource(Protocol):
    """A network with class names of its own.

    `features(image)`, as in `PixelClasses`, is optional, and so is `probabilities_at(image, scale)`
    of a source that resizes images itself; others get resized images.

    Attributes:
        names: of the classes, in the order of the outputs.
    """

    names: tuple[str, ...]

    def probabilities(self, image: npt.NDArray[np.uint8]) -> Float32:
        """(H, W, 3) uint8 RGB -> (C, h, w) probabilities, see `PixelClasses`."""


class NamedConfig(TeacherConfig):
    """A teacher whose class names map to the classes of the label space."""

    label_space: str = Field(
        "cityscapes",
        description="Label space that the names of the teacher's classes map to; own keeps them as "
        "classes, for words, and maps them to the label space of the student alone",
    )
    mapping: Annotated[dict[str, tuple[str, ...]] | Path, LocatedPath()] = Field(
        default_factory=dict,
        description="Class of the label space -> names of the teacher, with * as wildcard; or a "
        "YAML file of them. Other names take the class of their name or synonym",
    )
    ignore: tuple[str, ...] = Field(
        (), description="Names of the teacher without a class; '*' is all that are left"
    )


class NetworkConfig(NamedConfig):
    """A network with test-time augmentation."""

    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(
        (1.0,), min_length=1, description="Image scales whose predictions are averaged"
    )
    flip: bool = Field(False, description="Average with the prediction of the mirrored image")


class NamedClasses:
    """`PixelClasses` of a source with names of its own.

    Args:
        source: the network.
        match: classes of its names.
        name: for messages.
        scales: image scales whose predictions are averaged.
        flip: also average over the mirrored image.
    """

    def __init__(
        self,
        source: NamedSource,
        match: NameMatch,
        name: str,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        self.source, self.match, self.name = source, match, name
        self.label_space = match.space
        self.scales, self.flip = tuple(scales), flip

    def probabilities(self, image: npt.NDArray[np.uint8]) -> Float32:
        """See `PixelClasses`."""
        check_image(image)
        found = average_views(self._predict, image, self.scales, self.flip)
        table, classes = self.match.table, len(self.label_space)
        if np.array_equal(table, np.arange(classes)):
            return found
        return group_probabilities(found, table, classes)

    def features(self, image: npt.NDArray[np.uint8]) -> Float32:
        """See `PixelClasses`.

        Raises:
            InputError: the teacher has no features.
        """
        make = getattr(self.source, "features", None)
        if make is None:
            raise InputError(
                f"teacher '{self.name}' has no features; set loss.regression to 0 and alignment to "
                "null, or give a teacher with a method features(image)"
            )
        found: Float32 = np.asarray(make(image), np.float32)
        return found

    def _predict(self, image: npt.NDArray[np.uint8], scale: float) -> Float32:
        """The answer of the source at a scale, after a check."""
        scaled = getattr(self.source, "probabilities_at", None)
        try:
            if scaled is not None:
                answer = scaled(image, scale)
            else:
                answer = self.source.probabilities(_resized(image, scale))
        except PcsegError:
            raise
        except Exception as error:  # code of another package
            raise InputError(
                f"teacher '{self.name}' failed on an image of {image.shape[1]} x {image.shape[0]}: "
                f"{type(error).__name__}: {error}"
            ) from error
        found = np.asarray(answer, np.float32)
        classes = len(self.match.names)
        if found.ndim != 3 or found.shape[0] != classes or found.size == 0:
            raise InputError(
                f"teacher '{self.name}': probabilities of shape {found.shape}; expected "
                f"({classes}, h, w), one map for each of its {classes} class names"
            )
        if not found.min() >= -_TOLERANCE or not found.sum(0).max() <= 1 + _TOLERANCE:
            raise InputError(
                f"teacher '{self.name}': values from {found.min():.3g} to {found.max():.3g}; "
                "expected probabilities in 0..1 that sum to at most 1 per pixel (apply softmax)"
            )
        return found


def average_views(
    predict: Callable[[npt.NDArray[np.uint8], float], Float32],
    image: npt.NDArray[np.uint8],
    scales: Sequence[float],
    flip: bool,
) -> Float32:
    """Mean prediction over scales and mirrored views of an image, at the size of the first.

    Args:
        predict: (H, W, 3) image and scale -> (C, h, w).
        image: (H, W, 3) uint8 RGB.
        scales: one or more.
        flip: also average over the mirrored image.
    """
    total: torch.Tensor | None = None
    for scale in scales:
        for mirrored in (False, True)[: 1 + flip]:
            shown = np.ascontiguousarray(image[:, ::-1]) if mirrored else image
            found = torch.from_numpy(np.ascontiguousarray(predict(shown, scale)))
            found = found.flip(-1) if mirrored else found
            if total is None:
                total = found
                continue
            if found.shape != total.shape:
                size = total.shape[-2:]
                found = F.interpolate(found[None], size, mode="bilinear", align_corners=False)[0]
            total = total + found
    assert total is not None
    count = len(scales) * (1 + flip)
    mean: Float32 = (total if count == 1 else total / count).numpy()
    return mean


def _resized(image: npt.NDArray[np.uint8], scale: float) -> npt.NDArray[np.uint8]:
    if scale == 1.0:
        return image
    size = [max(1, round(side * scale)) for side in (image.shape[1], image.shape[0])]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def named_classes(source: NamedSource, config: NamedConfig, name: str) -> NamedClasses:
    """A source with the classes and views of its configuration.

    Args:
        source: the network.
        config: label space, mapping and views.
        name: for messages.

    Raises:
        InputError: see `match_names` and `NameMatch.require_all`.
    """
    mapping = read_mapping(config.mapping)
    if config.label_space == OWN_NAMES:
        space = own_space(source.names, name, mapping)
        match = match_names(source.names, space)
    else:
        space = LabelSpace.load(config.label_space)
        match = match_names(source.names, space, mapping, config.ignore)
    match.require_all(f"teacher '{name}'")
    views = (config.scales, config.flip) if isinstance(config, NetworkConfig) else ((1.0,), False)
    return NamedClasses(source, match, name, *views)
