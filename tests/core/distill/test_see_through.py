# SPDX-License-Identifier: Apache-2.0
"""Points that a camera sees through a fence take no label from its pixels."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.camera import CameraModel
from pcseg_core.distill.evidence import PixelEvidence
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig, gather_evidence
from pcseg_core.distill.see_through import SeeThroughConfig, behind_layers
from pcseg_core.labels import LabelSpace

CONFIG = SeeThroughConfig(patch_px=16, share=0.25, margin_m=1.5, margin_ratio=0.1)
OPTICAL = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)


def patch(depths: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of one image patch, standing, one pixel apart."""
    depth = np.array(depths, np.float32)
    uv = np.stack([np.full(len(depth), 20), 18 + np.arange(len(depth))], 1).astype(np.float32)
    return uv, depth, np.ones(len(depth), bool)


@pytest.mark.parametrize(
    ("depths", "behind"),
    [
        ([8.0, 8.1, 20.0, 21.0], [False, False, True, True]),  # a mesh before a wall
        ([8.0, 8.1, 9.8, 10.0], [False, False, False, False]),  # within the margin of 2.31 m
        ([8.0, 20.0, 20.0, 20.0, 20.0], [False] * 5),  # one return of five is no layer
        ([20.0, 20.0, 20.0], [False] * 3),
    ],
)
def test_points_far_behind_a_layer_are_found(depths: list[float], behind: list[bool]) -> None:
    assert behind_layers(*patch(depths), CONFIG).tolist() == behind


def test_the_ground_makes_no_layer() -> None:
    uv, depth, standing = patch([8.0, 8.1, 20.0, 21.0])
    standing[:2] = False
    assert not behind_layers(uv, depth, standing, CONFIG).any()


def test_patches_overlap_so_that_a_layer_beside_a_border_counts() -> None:
    uv = np.array([[15.0, 8.0], [15.0, 9.0], [17.0, 8.0]], np.float32)
    depth = np.array([8.0, 8.0, 20.0], np.float32)
    assert behind_layers(uv, depth, np.ones(3, bool), CONFIG).tolist() == [False, False, True]


def fence_and_ground() -> tuple[np.ndarray, np.ndarray]:
    """Points of a sweep 1.7 m above level ground, and which are of a mesh fence 8 m ahead.

    Every second ray passes the mesh.
    """
    azimuth, elevation = np.radians(np.meshgrid(np.arange(-30, 30, 0.3), np.arange(-25, 6, 0.5)))
    azimuth, elevation = azimuth.ravel(), elevation.ravel()
    rays = np.stack([np.cos(azimuth), np.sin(azimuth), np.tan(elevation)], 1)
    to_fence, to_ground = 8 / rays[:, 0], 1.7 / np.maximum(-rays[:, 2], 1e-3)
    mesh = (np.arange(len(rays)) % 2 == 0) & (to_fence * rays[:, 2] > -1.7)
    reach = np.where(mesh, to_fence, to_ground)
    near = reach < 40
    return (rays * reach[:, None])[near].astype(np.float32), mesh[near]


@pytest.mark.parametrize(("name", "kept"), [("structure", False), ("road", True)])
def test_ground_behind_a_fence_is_no_structure_but_may_be_road(name: str, kept: bool) -> None:
    space = LabelSpace.load("street")
    xyz, mesh = fence_and_ground()
    camera = CameraModel.pinhole(300, 300, 199.5, 149.5, 400, 300)
    chances = np.zeros((len(space), 300, 400), np.float32)
    chances[space.index(name)] = 1
    images = [PixelEvidence(chances, camera, OPTICAL)]
    usual = PseudoLabelConfig(splat_radius_px=0, border_px=0)
    layers = usual.model_copy(update={"see_through": CONFIG})
    before = gather_evidence(xyz, images, len(space), usual).index
    after = gather_evidence(xyz, images, len(space), layers).index
    behind = before[~mesh[before] & (xyz[before, 0] > 12)]
    assert len(behind) > 100
    share = np.isin(behind, after).mean()
    assert share > 0.8 if kept else share == 0
    assert np.isin(before[mesh[before]], after).all()
