# SPDX-License-Identifier: Apache-2.0
"""Superpixel maps: order, small segments, regions, points, and the traps of published code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from pcseg_core.errors import InputError
from pcseg_core.vision.regions import connected_regions
from pcseg_core.vision.sam import paint_masks
from pcseg_core.vision.slic import Slic
from pcseg_core.vision.superpixels import SegmentMap, resize, segments_at, tidy

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
LABELS = arrays(np.int32, SHAPES, elements=st.integers(-1, 3))


def test_tidy_numbers_in_order_and_keeps_classes() -> None:
    raw = np.array([[7, 7, -5], [3, 9, 9]])
    classes = np.zeros(10, np.int16)
    classes[[3, 7, 9]] = 30, 70, 90
    tidied = tidy(raw, classes)
    assert np.array_equal(tidied.ids, [[1, 1, -1], [0, 2, 2]])
    assert tidied.classes is not None and tidied.classes.tolist() == [30, 70, 90]
    tidied.check("map")


def test_ids_of_24_bits_need_no_table() -> None:
    assert np.array_equal(tidy(np.array([[16_777_215, -1, 5]])).ids, [[1, -1, 0]])


def test_small_segment_joins_the_longest_border() -> None:
    raw = np.zeros((6, 8), np.int32)
    raw[:, 4:] = 1
    raw[2:4, 3:5] = 2  # 4 pixels: 2 + 1 + 1 edges to each side, then one more to the right
    raw[2, 5] = 2
    tidied = tidy(raw, min_area=6)
    assert tidied.count == 2
    assert (tidied.ids[2:4, 3:5] == 1).all()


def test_small_segments_merge_until_they_are_large() -> None:
    row = np.repeat(np.arange(6), 2)[None]  # six segments of two pixels in a row
    tidied = tidy(row, min_area=4)
    assert np.bincount(tidied.ids.ravel()).min() >= 4
    assert tidied.count in (2, 3)


def test_island_without_neighbor_goes() -> None:
    raw = np.full((5, 5), -1)
    raw[2, 2] = 0
    assert (tidy(raw, min_area=2).ids == -1).all()


def test_small_segments_can_stay_within_their_class() -> None:
    row = np.array([[0, 0, 0, 1, 2, 2, 2]])
    classes = np.array([5, 6, 6])
    assert np.array_equal(tidy(row, classes, 2, within_class=True).ids, [[0, 0, 0, 1, 1, 1, 1]])
    alone = tidy(row, np.array([5, 6, 5]), 2, within_class=True)
    assert alone.count == 3  # nobody of its class beside it: it stays


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(1, 8), st.sampled_from(["merge", "ignore"]))
def test_tidy_keeps_its_promises(labels: np.ndarray, min_area: int, small: str) -> None:
    tidied = tidy(connected_regions(labels), min_area=min_area, small=small)  # type: ignore[arg-type]
    tidied.check("map")
    assert (tidied.ids[labels < 0] == -1).all()
    if tidied.count:
        assert np.bincount(tidied.ids[tidied.ids >= 0]).min() >= min_area


@settings(max_examples=60, deadline=None)
@given(LABELS)
def test_regions_agree_with_flood_fill_per_label(labels: np.ndarray) -> None:
    regions = connected_regions(labels)
    assert ((regions == -1) == (labels < 0)).all()
    pairs = set()
    for value in range(4):
        filled, count = ndimage.label(labels == value)
        pairs |= {(value, f, r) for f, r in zip(filled[filled > 0], regions[filled > 0])}
        assert len({r for v, _, r in pairs if v == value}) == count
    assert len(pairs) == int(regions.max()) + 1


def test_resize_takes_pixel_centers_and_drops_what_vanishes() -> None:
    ids = np.zeros((4, 8), np.int32)
    ids[:, 4:] = 1
    ids[0, 0] = 2
    small = resize(SegmentMap(ids, np.array([5, 6, 7], np.int16)), 2, 4)
    assert np.array_equal(small.ids, [[0, 0, 1, 1], [0, 0, 1, 1]])
    assert small.classes is not None and small.classes.tolist() == [5, 6]
    assert np.array_equal(resize(SegmentMap(ids[1:]), 6, 16).ids[:, 8], np.ones(6))


def test_pixels_are_read_at_their_centers() -> None:
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)
    uv = [[0, 0], [2.49, 1.49], [-0.5, 0], [-0.51, 0], [2.51, 0], [np.nan, 0], [np.inf, 1]]
    assert segments_at(ids, np.array(uv)).tolist() == [0, 5, 0, -1, -1, -1, -1]
    # The same map for an image of twice the size: its pixel 1 lies in the map's pixel 0.
    assert segments_at(ids, np.array([[1, 1], [2, 1], [5, 3]]), (6, 4)).tolist() == [0, 1, 5]


@pytest.mark.parametrize(
    "ids", [np.zeros((2, 2), np.uint8), np.zeros(4, np.int32), np.array([[0, 2]], np.int32)]
)
def test_maps_out_of_order_are_refused(ids: np.ndarray) -> None:
    with pytest.raises(InputError, match="front"):
        SegmentMap(ids).check("front.png")


# --- traps of published code -----------------------------------------------------------------


def test_more_than_256_masks_do_not_wrap_and_uncovered_is_no_segment() -> None:
    masks = []
    for i in range(400):
        mask = np.zeros((40, 80), bool)
        mask[i // 20 * 2 : i // 20 * 2 + 2, i % 20 * 4 : i % 20 * 4 + 3] = True
        masks.append(mask)
    painted = paint_masks(masks, (40, 80))
    assert painted.count == 400 and painted.ids.dtype == np.int32
    assert (painted.ids[:, 3::4] == -1).all()  # the gaps, and not segment 0
    assert (painted.ids == 0).sum() == 6


def test_minimum_area_counts_what_remains_visible() -> None:
    large, cover, speck = (np.zeros((10, 10), bool) for _ in range(3))
    large[:, :4] = True
    cover[:, 1:4] = True
    speck[0, 9] = True
    painted = paint_masks([speck, large, cover], (10, 10), min_area=12)
    assert painted.count == 1  # the speck is small, and of `large` only 10 pixels are left
    assert (painted.ids[:, 1:4] == 0).all() and (painted.ids[:, 4:] == -1).all()


def test_smaller_masks_lie_on_top_whatever_their_order() -> None:
    large, small = np.ones((6, 6), bool), np.zeros((6, 6), bool)
    small[2:4, 2:4] = True
    for masks in ([large, small], [small, large]):
        assert np.array_equal(paint_masks(masks, (6, 6)).ids, small.astype(int))
    assert paint_masks([], (3, 4)).count == 0


# --- SLIC ------------------------------------------------------------------------------------


def _picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 60, (height, width, 3))
    image[height // 3 :, width // 3 :] += np.array([150, 20, 90])
    return image.astype(np.uint8)


def test_slic_covers_the_image_with_connected_segments() -> None:
    image = _picture(90, 160)
    first = Slic(40).segment(image)
    first.check("slic")
    assert first.ids.shape == (90, 160) and first.ids.min() == 0
    assert 25 <= first.count <= 60
    assert int(connected_regions(first.ids).max()) + 1 == first.count
    assert np.bincount(first.ids.ravel()).min() >= 0.25 * 90 * 160 / 40 - 1
    assert np.array_equal(Slic(40).segment(image).ids, first.ids)


def test_slic_ends_segments_where_colors_end() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[:, :33] = 255  # not at a border of the grid
    ids = Slic(16, compactness=5, blur_px=0).segment(image).ids
    white, black = set(ids[:, :33].ravel()), set(ids[:, 33:].ravel())
    assert not white & black


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (5, 3), (64, 7)])
def test_slic_takes_images_of_any_size(shape: tuple[int, int]) -> None:
    segments = Slic(150).segment(_picture(*shape))
    segments.check("slic")
    assert segments.ids.shape == shape and segments.ids.min() == 0


def test_slic_explains_as_much_color_as_the_reference() -> None:
    reference = pytest.importorskip("skimage.segmentation").slic
    from benchmarks.superpixels import explained_variance

    yy, xx = np.mgrid[:120, :200]
    waves = np.sin(yy / 13.0 + np.cos(xx / 21.0)) + np.cos(xx / 17.0 - yy / 29.0)
    noise = np.random.default_rng(1).normal(0, 0.1, (120, 200))
    image = (40 * np.stack([waves, noise, -waves], 2) + 120).clip(0, 255).astype(np.uint8)
    theirs = reference(image, 100, 6, sigma=3.0, start_label=0)
    count = len(np.unique(theirs))
    ours = Slic(count).segment(image)
    assert ours.count <= 1.25 * count
    assert explained_variance(image, ours.ids) >= explained_variance(image, theirs) - 0.02


def test_slic_refuses_what_is_no_picture() -> None:
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8 RGB"):
            Slic().segment(image)
    with pytest.raises(InputError, match="segments 0"):
        Slic(0)
