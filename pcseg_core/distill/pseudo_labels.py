# SPDX-License-Identifier: Apache-2.0
"""Pseudo labels of points: project pixel classes, vote over cameras, propagate across sweeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.data.sample import Sample
from pcseg_core.distill.consolidation import ConsolidationConfig, likeliest
from pcseg_core.distill.evidence import Evidence, PixelEvidence, places_of, world_keys
from pcseg_core.distill.see_through import SeeThrough, SeeThroughConfig
from pcseg_core.distill.shape_model import ShapeConfig
from pcseg_core.labels import LabelSpace, group_probabilities
from pcseg_core.projection import project_cloud

if TYPE_CHECKING:
    from pcseg_core.vision.pixel_classes import PixelClasses  # imports torch


class PseudoLabelConfig(Section):
    """How pixel classes become labels of points."""

    renamed: ClassVar[dict[str, str]] = {
        "carry_voxel_m": "propagate_voxel_m",
        "carry_weight": "propagate_weight",
        "carry_min_weight": "propagate_min_weight",
    }

    label_space: str = Field("street", description="Label space of the student")
    splat_radius_px: int = Field(2, ge=0, le=10, description="Occlusion splat radius [px]")
    border_px: float = Field(5.0, ge=0, description="Weight falls to 0 over this image border [px]")
    see_through: SeeThroughConfig = Field(
        default_factory=SeeThroughConfig,
        description="Points far behind the nearest returns of their image patch get no label",
    )
    full_range_m: float = Field(
        0.0, ge=0, description="Beyond this range the weight of a pixel falls [m]; 0 at no range"
    )
    full_angle_deg: float = Field(
        0.0,
        ge=0,
        le=90,
        description="The weight of a pixel falls where its ray meets the surface at a smaller "
        "angle [deg]; 0 at no angle",
    )
    shape: ShapeConfig = Field(
        default_factory=ShapeConfig,
        description="Height above ground, normal and roughness as evidence for classes",
    )
    priors: dict[str, float] = Field(
        default_factory=dict,
        description="Factors on the probabilities of target classes, by name, "
        "against a known bias of the teacher",
    )
    propagate_voxel_m: float = Field(
        0.2,
        ge=0,
        le=2,
        description="Edge of the world voxels that propagate labels between the sweeps of a "
        "scene with poses [m]; 0 propagates nothing",
    )
    propagate_weight: float = Field(
        1.0, ge=0, description="Weight of a voxel's mean evidence relative to a point's own"
    )
    propagate_min_weight: float = Field(
        2.0, gt=0, description="Evidence of a voxel, in fully visible pixels, that it needs"
    )
    propagate_moving: bool = Field(
        True,
        description="Also propagate labels at places that a sweep before or after sees through; "
        "what moves smears along its path",
    )
    carried_confidence: float = Field(
        1.0, gt=0, le=1, description="Factor on the confidence of points that only others see"
    )
    consolidation: ConsolidationConfig = Field(
        default_factory=ConsolidationConfig,
        description="Bayes fusion over the scene, used instead of propagation if its voxel_m is "
        "above 0",
    )


def pixel_evidence(
    sample: Sample, teacher: PixelClasses, groups: np.ndarray, classes: int
) -> Iterator[PixelEvidence]:
    """Pixel classes of the images of a sample, one by one.

    Args:
        sample: sweep with images.
        teacher: pixel classes.
        groups: (C_teacher,) target class of each of the teacher's classes, IGNORE for none.
        classes: number C of target classes.
    """
    for k, frame in enumerate(sample.cameras):
        grouped = group_probabilities(teacher.probabilities(frame.image), groups, classes)
        yield PixelEvidence(grouped, frame.camera, sample.T_cam_lidar(k))


def gather_evidence(
    xyz: np.ndarray,
    images: Iterable[PixelEvidence],
    classes: int,
    config: PseudoLabelConfig,
    space: LabelSpace | None = None,
) -> Evidence:
    """Add up the pixels of all images that the points of a sweep project to.

    Args:
        xyz: (N, 3) points in the LiDAR frame at the sweep's stamp, deskewed [m].
        images: pixel classes.
        classes: number C of classes.
        config: settings of the projection.
        space: of the classes, if it is not that of `config`.
    """
    through = None
    if config.see_through.patch_px > 0:
        space = space or LabelSpace.load(config.label_space)
        through = SeeThrough.of(xyz, space, config.see_through)
    sums = np.zeros((len(xyz), classes), np.float32)
    weights = np.zeros(len(xyz), np.float32)
    for image in images:
        seen, weight, votes = pixels_of_points(
            xyz, image, config.splat_radius_px, config.border_px, through
        )
        sums[seen] += weight[:, None] * votes
        weights[seen] += weight
    index = np.flatnonzero(weights > 0).astype(np.int32)
    return Evidence(index, weights[index], sums[index])


def pixels_of_points(
    xyz: np.ndarray,
    image: PixelEvidence,
    splat_radius_px: int,
    border_px: float,
    through: SeeThrough | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points (N, 3) that an image sees, with the pixels under them.

    Args:
        xyz: points in the LiDAR frame at the sweep's stamp [m].
        image: pixel classes.
        splat_radius_px, border_px: see `project_cloud`.
        through: drops points that the camera sees through something, if given.

    Returns:
        (M,) indices of the points, (M,) float32 weights in 0..1 that fall at image borders and
        depth edges, and (M, C) probabilities.
    """
    camera = image.camera
    projection = project_cloud(
        xyz, image.T_cam_lidar, camera, splat_radius_px=splat_radius_px, border_px=border_px
    )
    seen = np.flatnonzero(projection.visible & (projection.weight > 0))
    size = (camera.width, camera.height)
    pixels = sample_map(image.probabilities, projection.uv[seen], size)
    if through is not None:
        keep = through.keep(projection, seen, pixels)
        seen, pixels = seen[keep], pixels[keep]
    return seen, projection.weight[seen], pixels


def sample_map(values: np.ndarray, uv: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear look-up of (C, h, w) values at (M, 2) pixels of an image of another size.

    Args:
        values: map that covers the whole image.
        uv: pixel coordinates, integers at pixel centers.
        size: (width, height) of the image.

    Returns:
        (M, C) values; outside the outermost centers the border value holds.
    """
    height, width = values.shape[1:]
    u = np.clip((uv[:, 0] + 0.5) * (width / size[0]) - 0.5, 0, width - 1)
    v = np.clip((uv[:, 1] + 0.5) * (height / size[1]) - 0.5, 0, height - 1)
    u0, v0 = np.floor(u).astype(np.intp), np.floor(v).astype(np.intp)
    u1, v1 = np.minimum(u0 + 1, width - 1), np.minimum(v0 + 1, height - 1)
    a, b = (u - u0).astype(values.dtype), (v - v0).astype(values.dtype)
    top = values[:, v0, u0] * (1 - a) + values[:, v0, u1] * a
    bottom = values[:, v1, u0] * (1 - a) + values[:, v1, u1] * a
    result: np.ndarray = (top * (1 - b) + bottom * b).T
    return result


def apply_priors(evidence: Evidence, priors: np.ndarray) -> Evidence:
    """Multiply class probabilities by (C,) factors, keeping each point's total probability."""
    scaled = evidence.sums * priors
    before, after = evidence.sums.sum(1), scaled.sum(1)
    keep = np.divide(before, after, out=np.ones_like(before), where=after > 0)
    return Evidence(evidence.index, evidence.weights, scaled * keep[:, None])


def own_shares(evidence: Evidence, count: int) -> np.ndarray:
    """Share (count, C) of each class of all the pixels of a point, from a sweep's own evidence.

    Rows of points that no camera sees are 0.
    """
    shares = np.zeros((count, evidence.sums.shape[1]), np.float32)
    shares[evidence.index] = evidence.sums / evidence.weights[:, None]
    return shares


def label_points(evidence: Evidence, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Label and confidence of every point of a sweep from its own evidence alone.

    Returns:
        (count,) int16 labels, IGNORE where unseen; (count,) float32 confidence in 0..1, the
        winning class's share of all the pixels' probability.
    """
    return likeliest(own_shares(evidence, count))


def propagated_shares(
    clouds: Sequence[np.ndarray],
    poses: Sequence[np.ndarray],
    evidence: Sequence[Evidence],
    config: PseudoLabelConfig,
    moving: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Class shares of all sweeps of a scene. World voxels propagate evidence between the sweeps.

    A point takes the sum of its own evidence and of the mean of its voxel. Points that no camera
    sees at the time are labeled, and errors of single images are outvoted.

    Args:
        clouds: (N_i, 3) points of each sweep in its LiDAR frame, deskewed; non-finite points get
            no label.
        poses: (4, 4) T_world_lidar of each sweep.
        evidence: class evidence of each sweep.
        config: voxel size and weights.
        moving: (N_i,) bool of each sweep, points that neither give nor take; None for none.

    Returns:
        Per sweep (N_i, C) share of each class of all the evidence of a point, 0 without any.
    """
    start = np.eye(4)  # world coordinates, such as UTM, may be too large for the keys of voxels
    start[:3, 3] = -np.floor(poses[0][:3, 3] / config.propagate_voxel_m) * config.propagate_voxel_m
    moved = [start @ pose for pose in poses]
    keys = [world_keys(xyz, pose, config.propagate_voxel_m) for xyz, pose in zip(clouds, moved)]
    if moving is not None:
        keys = [np.where(alone, -1, k) for k, alone in zip(keys, moving)]
    seen = np.concatenate([k[e.index] for k, e in zip(keys, evidence)])
    if len(seen) == 0:
        return [own_shares(own, len(xyz)) for xyz, own in zip(clouds, evidence)]
    voxels, inverse = np.unique(seen, return_inverse=True)
    sums, weights = _accumulate(evidence, inverse, len(voxels))
    labeled = []
    for own_keys, own in zip(keys, evidence):
        labeled.append(_with_voxels(own_keys, own, voxels, sums, weights, config))
    return labeled


def _accumulate(
    evidence: Sequence[Evidence], inverse: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    sums = np.concatenate([e.sums for e in evidence])
    weights = np.bincount(inverse, np.concatenate([e.weights for e in evidence]), count)
    per_class = [np.bincount(inverse, column, count) for column in sums.T]
    return np.stack(per_class, 1).astype(np.float32), weights.astype(np.float32)


def _with_voxels(
    keys: np.ndarray,
    own: Evidence,
    voxels: np.ndarray,
    sums: np.ndarray,
    weights: np.ndarray,
    config: PseudoLabelConfig,
) -> np.ndarray:
    position, known = places_of(keys, voxels)
    known &= keys >= 0
    known &= weights[position] >= config.propagate_min_weight
    total = np.zeros((len(keys), sums.shape[1]), np.float32)
    weight = np.zeros(len(keys), np.float32)
    known_voxel = position[known]
    total[known] = sums[known_voxel] / weights[known_voxel][:, None] * config.propagate_weight
    weight[known] = config.propagate_weight
    total[own.index] += own.sums
    weight[own.index] += own.weights
    shares: np.ndarray = total / np.maximum(weight, np.float32(1e-9))[:, None]
    return shares
