# SPDX-License-Identifier: Apache-2.0
"""Superpixels from networks: Segment Anything, and teachers of pixel classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.regions import connected_regions
from pcseg_core.vision.sam import SamSuperpixels, load_sam
from pcseg_core.vision.semantic import SemanticSuperpixels, split
from pcseg_core.vision.slic import Slic
from pcseg_core.vision.superpixels import SegmentMap

# --- Segment Anything ------------------------------------------------------------------------


def _tiny_sam() -> nn.Module:
    """A random SAM, built as the published ones are but small: input 128 px, two blocks."""
    modeling = pytest.importorskip("segment_anything.modeling")
    torch.manual_seed(9)
    encoder = modeling.ImageEncoderViT(
        depth=2,
        embed_dim=24,
        img_size=128,
        mlp_ratio=4,
        num_heads=3,
        patch_size=16,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=(1,),
        window_size=3,
        out_chans=32,
    )
    prompt = modeling.PromptEncoder(32, (8, 8), (128, 128), 16)
    transformer = modeling.TwoWayTransformer(2, 32, 8, 64)
    decoder = modeling.MaskDecoder(transformer_dim=32, transformer=transformer)
    return modeling.Sam(encoder, prompt, decoder).eval()


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam") / "tiny.pth"
    torch.save(_tiny_sam().state_dict(), path)
    return path


def test_sam_of_any_size_is_rebuilt_from_its_checkpoint(sam: Path) -> None:
    original, loaded = _tiny_sam(), load_sam(sam)
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(original.image_encoder(image), loaded.eval().image_encoder(image))


def test_sam_cuts_an_image_into_segments(sam: Path) -> None:
    generator = SamSuperpixels(
        sam,
        min_area=20,
        points_per_side=6,
        pred_iou_thresh=-100.0,
        stability_score_thresh=0.0,
        box_nms_thresh=0.95,
    )
    image = np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8)
    segments = generator.segment(image)
    segments.check("sam")
    assert segments.ids.shape == (60, 100)
    assert segments.count >= 2
    assert np.bincount(segments.ids[segments.ids >= 0]).min() >= 20
    assert np.array_equal(generator.segment(image).ids, segments.ids)
    assert len(generator.parameters["weights"]) == 64


def test_sam_that_finds_nothing_leaves_all_pixels_uncovered(sam: Path) -> None:
    generator = SamSuperpixels(sam, points_per_side=2, pred_iou_thresh=100.0)
    assert (generator.segment(np.zeros((32, 48, 3), np.uint8)).ids == -1).all()


@pytest.mark.parametrize("damage", ["missing", "other", "cut", "code"])
def test_unfit_sam_checkpoints_are_named(sam: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.pth"
    state = torch.load(sam, weights_only=True)
    if damage == "other":
        torch.save({"conv1.weight": torch.zeros(3)}, path)
    elif damage == "cut":
        state.pop("mask_decoder.iou_token.weight")
        torch.save(state, path)
    elif damage == "code":
        torch.save({"state_dict": state, "hook": Path.cwd}, path)
    with pytest.raises(InputError, match=r"bad\.pth"):
        SamSuperpixels(path)


# --- teachers of pixel classes ---------------------------------------------------------------


class Painter:
    """A teacher that gives each pixel of a half-size map the class it was told."""

    def __init__(self, winner: np.ndarray, sure: float = 1.0) -> None:
        self.label_space = LabelSpace.load("street")
        self.winner, self.sure = winner, sure

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        one_hot = np.arange(len(self.label_space))[:, None, None] == self.winner
        return (one_hot * self.sure).astype(np.float32)

    def features(self, image: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@pytest.fixture
def scene() -> np.ndarray:
    """(30, 60) half-size classes: road (0) below, two vehicles (5) on it, vegetation (3) above."""
    winner = np.full((30, 60), 3)
    winner[15:] = 0
    winner[12:20, 5:20] = 5
    winner[12:20, 40:55] = 5
    winner[25, 30] = 6  # a speck of one pixel, four in the image
    return winner


IMAGE = np.random.default_rng(0).integers(0, 255, (60, 120, 3), np.uint8)


def test_two_objects_of_one_class_are_two_segments(scene: np.ndarray) -> None:
    segments = SemanticSuperpixels(Painter(scene), {}, min_area=20).segment(IMAGE)
    segments.check("semantic")
    assert segments.ids.shape == (60, 120)
    assert segments.classes is not None and sorted(segments.classes) == [0, 3, 5, 5]
    assert segments.ids[30, 20] != segments.ids[30, 100]
    assert segments.ids[50, 60] == segments.ids[50, 10]  # the speck is road


def test_splits_keep_the_class_and_the_borders(scene: np.ndarray) -> None:
    whole = SemanticSuperpixels(Painter(scene), {}, min_area=20).segment(IMAGE)
    segments = SemanticSuperpixels(Painter(scene), {}, Slic(40), 20).segment(IMAGE)
    segments.check("split")
    assert segments.count > 2 * whole.count
    assert segments.classes is not None and whole.classes is not None
    assert np.array_equal(segments.classes[segments.ids], whole.classes[whole.ids])
    assert np.bincount(segments.ids.ravel()).min() >= 20
    assert int(connected_regions(segments.ids).max()) + 1 == segments.count


def test_split_gives_fragments_back_to_their_own_segment() -> None:
    ids = np.repeat([[0] * 6 + [1] * 6], 2, axis=0).astype(np.int32)
    pieces = np.repeat([[0] * 5 + [1] * 7], 2, axis=0).astype(np.int32)
    cut = split(SegmentMap(ids, np.array([4, 9], np.int16)), pieces, 4)
    assert np.array_equal(cut.ids, ids)  # the column cut off segment 0 is too small for its own
    assert cut.classes is not None and cut.classes.tolist() == [4, 9]


def test_what_the_teacher_does_not_know_is_no_segment(scene: np.ndarray) -> None:
    # 0.4 for the class leaves 0.6 to what the label space lacks.
    assert (SemanticSuperpixels(Painter(scene, 0.4), {}).segment(IMAGE).ids == -1).all()
    strict = SemanticSuperpixels(Painter(scene, 0.7), {}, Slic(40), min_confidence=0.8)
    assert strict.segment(IMAGE).count == 0


def test_semantic_superpixels_of_a_street(shared_data: Path) -> None:
    from PIL import Image

    from pcseg_core.vision.semantic import load_semantic
    from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

    weights = shared_data / "weights/espnetv2_s0.5_cityscapes_1024x512.safetensors"
    config = ESPNetv2Config(name="espnetv2", weights=weights, scales=(1.0,), flip=False)
    image = np.asarray(Image.open(shared_data / "kitti_object/training/image_2/000008.png"))
    generator = load_semantic(config, Slic(150), 100)
    segments = generator.segment(image)
    segments.check("street")
    road = generator.label_space.index("road")
    assert segments.classes is not None
    assert (segments.classes[segments.ids[300:360, 600:660]] == road).mean() > 0.9
    assert 100 < segments.count < 500


def test_safetensors_serve_as_well_as_torch_files(sam: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file(torch.load(sam, weights_only=True), str(path))
    assert torch.equal(
        load_sam(path).state_dict()["prompt_encoder.no_mask_embed.weight"],
        load_sam(sam).state_dict()["prompt_encoder.no_mask_embed.weight"],
    )
