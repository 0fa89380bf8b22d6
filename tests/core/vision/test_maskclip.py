# SPDX-License-Identifier: Apache-2.0
"""Dense CLIP on tiny random open_clip models, against attention that sees one token alone."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.dense_towers import (
    encode_pooled,
    encode_resnet,
    encode_timm,
    encode_vit,
    pretrained_colors,
)
from pcseg_core.vision.maskclip import (
    DenseClipConfig,
    MaskClip,
    MaskClipClasses,
    MaskClipConfig,
    absent_classes,
    load_maskclip,
    smooth_by_keys,
)
from pcseg_core.vision.pixel_classes import load_teacher
from pcseg_core.vision.text_space import GeneratedText, OpenClipText
from pcseg_core.vision.windows import starts

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 3, "width": 24, "head_width": 8, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}


def model(vision: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    network = open_clip.model.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=TEXT).eval()
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2 or "bn3" in name:  # biases, and norms that start at 0
            torch.nn.init.normal_(parameter, 0.3, 0.5)
    return network


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@torch.inference_mode()
def test_vit_equals_a_last_block_in_which_each_token_attends_to_itself() -> None:
    visual = model(VIT).visual
    x = torch.randn(2, 3, 32, 32)
    features, keys = encode_vit(visual, x)
    tokens = visual._embeds(x)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        tokens = block(tokens)
    count = tokens.shape[1]
    alone = torch.full((count, count), -torch.inf).fill_diagonal_(0.0)
    direct = visual.ln_post(last(tokens, attn_mask=alone)) @ visual.proj
    assert features.shape == (2, 12, 4, 4) and keys.shape == (2, 24, 4, 4)
    assert torch.allclose(features.flatten(2).transpose(1, 2), direct[:, 1:], atol=1e-5)
    # One patch that only the class token sees: CLIP's own output is not what this gives.
    assert not torch.allclose(visual(x), direct[:, 0], atol=1e-3)


@torch.inference_mode()
def test_resnet_equals_pooling_in_which_each_pixel_attends_to_itself() -> None:
    visual = model(RESNET).visual
    x = torch.randn(2, 3, 96, 64)
    features, keys = encode_resnet(visual, x)
    for layer in (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    pool, tokens = visual.attnpool, x.flatten(2).permute(2, 0, 1)
    count = len(tokens)
    direct, _ = F.multi_head_attention_forward(
        tokens,
        tokens,
        tokens,
        tokens.shape[-1],
        pool.num_heads,
        None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        None,
        None,
        False,
        0.0,
        pool.c_proj.weight,
        pool.c_proj.bias,
        training=False,
        need_weights=False,
        attn_mask=torch.full((count, count), -torch.inf).fill_diagonal_(0.0),
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    assert features.shape == (2, 12, 3, 2) and keys.shape == (2, 256, 3, 2)
    assert torch.allclose(features.flatten(2).permute(2, 0, 1), direct, atol=1e-5)


def timm_tower(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    tower = open_clip.timm_model.TimmModel(name, 12, image_size=160, **options).eval()
    for parameter_name, parameter in tower.named_parameters():
        if parameter.dim() < 2 and "norm" not in parameter_name:
            torch.nn.init.normal_(parameter, 0.1, 0.5)
    return tower


@torch.inference_mode()
def test_attention_pools_of_timm_give_the_value_of_each_patch() -> None:
    tower = timm_tower("test_vit", pool="map", proj="none")  # as in SigLIP
    trunk, x = tower.trunk, torch.randn(2, 3, 160, 160)
    features, keys = encode_timm(tower, x)
    tokens = trunk.forward_features(x)
    pool = trunk.attn_pool
    value = pool.proj(pool.kv(tokens).chunk(2, -1)[1])
    direct = trunk.fc_norm(value + pool.mlp(pool.norm(value)))  # SigLIP has no other projection
    direct = direct[:, trunk.num_prefix_tokens :]
    assert features.shape == (2, 64, 10, 10) and keys.shape[-2:] == (10, 10)
    assert torch.allclose(features.flatten(2).transpose(1, 2), direct, atol=1e-5)


@torch.inference_mode()
def test_the_mean_of_a_convolutional_tower_is_its_embedding() -> None:
    tower = timm_tower("test_resnet", pool="avg", proj="linear")  # no norm after the pooling
    x = torch.randn(2, 3, 160, 160)
    features, _ = encode_timm(tower, x)
    assert features.shape[:2] == (2, 12)
    assert torch.allclose(features.mean((-2, -1)), tower(x), atol=1e-4)


@torch.inference_mode()
def test_a_vit_that_averages_gives_its_embedding_on_equal_patches() -> None:
    visual = model({**VIT, "pool_type": "avg", "final_ln_after_pool": True}).visual  # as CLIPA
    x = torch.randn(1, 3, 32, 32)
    features, _ = encode_pooled(visual, x)
    tokens = visual.transformer(visual._embeds(x))[:, 1:]
    assert torch.allclose(
        features.flatten(2).transpose(1, 2), visual.ln_post(tokens) @ visual.proj, atol=1e-5
    )


@pytest.mark.parametrize(
    ("tower", "side", "patch"),
    [
        (lambda: timm_tower("test_vit", pool="map", proj="none"), 160, 16),
        (lambda: timm_tower("test_vit", pool="token", proj="linear"), 160, 16),
        (lambda: timm_tower("test_convnext", pool="", proj="linear"), 160, 32),
        (lambda: timm_tower("test_resnet", pool="avg", proj="mlp"), 160, 32),
        (lambda: model({**VIT, "attentional_pool": True, "attn_pooler_heads": 2}).visual, 32, 8),
        (lambda: model({**VIT, "pool_type": "avg", "final_ln_after_pool": True}).visual, 32, 8),
    ],
)
def test_every_tower_covers_the_image(tower: Any, side: int, patch: int) -> None:
    pixels = MaskClip(tower(), DenseClipConfig(short_side_px=40, window_px=512))
    assert (pixels.side, pixels.patch) == (side, patch) and pixels.channels in (12, 64)
    found = pixels.features(image(50, 120))
    width = round(120 * max(side, 40) / 50 / patch)
    assert found.shape == (pixels.channels, max(side, 40) // patch, width)
    assert np.allclose(np.linalg.norm(found, axis=0), 1, atol=1e-4)


def test_colors_are_those_of_the_published_weights() -> None:
    assert pretrained_colors("ViT-B-16-SigLIP2")[0] == (0.5, 0.5, 0.5)
    assert pretrained_colors("ViT-B-16-quickgelu")[0] == open_clip.OPENAI_DATASET_MEAN
    assert pretrained_colors("tiny-test") is None


def test_positions_fit_other_grids() -> None:
    visual = model(VIT).visual
    features, _ = encode_vit(visual, torch.randn(1, 3, 40, 64))
    assert features.shape == (1, 12, 5, 8) and torch.isfinite(features).all()


@pytest.mark.parametrize(("vision", "patch"), [(VIT, 8), (RESNET, 32)])
def test_features_cover_the_image_in_windows(vision: dict[str, Any], patch: int) -> None:
    config = DenseClipConfig(short_side_px=64, window_px=64, overlap=0.4)
    pixels = MaskClip(model(vision).visual, config)
    found = pixels.features(image(50, 171))
    assert found.shape == (12, 64 // patch, round(171 * 64 / 50 / patch))
    assert np.allclose(np.linalg.norm(found, axis=0), 1, atol=1e-5)
    whole = MaskClip(model(vision).visual, config.model_copy(update={"window_px": 512}))
    same = whole.features(image(50, 171))
    assert same.shape == found.shape
    # A ResNet's pixels see little beyond a window's middle; windows only change the borders.
    if vision is RESNET:
        assert (same * found).sum(0).mean() > 0.9


def test_one_window_is_the_plain_encoding() -> None:
    visual = model(VIT).visual
    pixels = MaskClip(visual, DenseClipConfig(short_side_px=32, window_px=64))
    picture = image(32, 32)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    x = (torch.tensor(picture) / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.inference_mode():
        direct = F.normalize(encode_vit(visual, x.permute(2, 0, 1)[None].float())[0][0], dim=0)
    assert np.allclose(pixels.features(picture), direct.numpy(), atol=1e-4)


@pytest.mark.parametrize("overlap", [0.0, 0.33, 0.8])
@pytest.mark.parametrize("length", [1, 6, 7, 20, 33])
def test_windows_leave_nothing_out(length: int, overlap: float) -> None:
    found = starts(length, 6, overlap)
    covered = np.zeros(length, int)
    for start in found:
        assert 0 <= start <= max(0, length - 6)
        covered[start : start + 6] += 1
    assert covered.min() >= 1
    assert all(b - a <= max(1, 6 * (1 - overlap)) for a, b in itertools.pairwise(found))


def test_prompt_denoising_drops_what_is_nowhere() -> None:
    logits = torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]], [[5.0, 5.0]]])
    assert absent_classes(logits, 0.5).tolist() == [False, False, True]
    assert not absent_classes(torch.zeros(5, 2, 2), 0.5).any()
    assert not absent_classes(logits, 0.0).any()


def test_key_smoothing_averages_unsure_pixels_over_like_keys() -> None:
    likely = torch.tensor([[0.9, 0.2, 0.5, 0.5], [0.1, 0.8, 0.5, 0.5]])[:, None]
    keys = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 3.0, 0.0, 1.0]])[:, None]
    smoothed = smooth_by_keys(likely, keys, 0.7)[:, 0]
    assert torch.equal(smoothed[:, :2], likely[:, 0, :2])
    root = 0.5**0.5
    third = (0.9 + 0.5 + root * 0.5) / (2 + root)  # like the first, itself and half the fourth
    assert smoothed[0, 2] == pytest.approx(third, abs=1e-6)
    fourth = (root * (0.9 + 0.2 + 0.5) + 0.5) / (3 * root + 1)
    assert smoothed[0, 3] == pytest.approx(fourth, abs=1e-6)
    assert torch.allclose(smoothed.sum(0), torch.ones(4))
    assert torch.equal(smooth_by_keys(likely, keys, 0.0), likely)


def test_classes_are_the_words_most_alike() -> None:
    space = LabelSpace.load("street")
    pixels = MaskClip(
        model(VIT).visual,
        DenseClipConfig(short_side_px=64, window_px=32, prompt_denoising=0.0, key_smoothing=0.0),
    )
    text = GeneratedText(12)
    found = MaskClipClasses(pixels, text, space).probabilities(image(64, 80))
    assert found.shape == (8, 8, 10)
    assert np.allclose(found.sum(0), 1, atol=1e-5)
    one = MaskClip(pixels.visual, pixels.config.model_copy(update={"window_px": 512}))
    features = one.features(image(64, 80))
    best = np.stack(
        [
            (text.embed([c.name, *c.synonyms]) @ features.reshape(12, -1)).max(0)
            for c in space.classes
        ]
    )
    whole = MaskClipClasses(one, text, space).probabilities(image(64, 80))
    assert (whole.reshape(8, -1).argmax(0) == best.argmax(0)).all()
    cleaned = DenseClipConfig(short_side_px=64, window_px=32)
    refined = MaskClipClasses(MaskClip(pixels.visual, cleaned), text, space)
    assert np.allclose(refined.probabilities(image(64, 80)).sum(0), 1, atol=1e-5)


@pytest.fixture()
def weights(tmp_path: Path) -> Path:
    """A model that open_clip knows by name, and a file of its weights."""
    config = {"embed_dim": 12, "vision_cfg": VIT, "text_cfg": {**TEXT, "context_length": 77}}
    (tmp_path / "tiny-test-vit.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-test-vit.json")
    torch.manual_seed(0)
    network = open_clip.create_model("tiny-test-vit", pretrained=None)
    path = tmp_path / "clip.safetensors"
    save_file({k: v.contiguous().clone() for k, v in network.state_dict().items()}, str(path))
    return path


def test_from_weights_on_disk(weights: Path) -> None:
    config = DenseClipConfig(model="tiny-test-vit", short_side_px=32, window_px=32)
    pixels = load_maskclip(config, weights)
    assert pixels.features(image(40, 60)).shape[0] == pixels.channels == 12
    text = OpenClipText("tiny-test-vit", weights)
    assert text.channels == 12 and len(text.templates) == 85
    vectors = text.embed(["Car", "car", "traffic_light"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[1]) and not np.allclose(vectors[0], vectors[2])
    tokens = text.tokenizer(["a traffic light"])
    plain = OpenClipText("tiny-test-vit", weights, ("a {}",)).embed(["traffic-light"])[0]
    with torch.inference_mode():
        direct = F.normalize(text.network.encode_text(tokens), dim=1)[0]
    assert np.allclose(plain, direct.numpy(), atol=1e-5)


def test_as_a_teacher_of_recipes(weights: Path) -> None:
    clip = DenseClipConfig(model="tiny-test-vit", short_side_px=32, window_px=32)
    teacher = load_teacher(
        MaskClipConfig(name="maskclip", weights=weights, label_space="street", clip=clip)
    )
    assert teacher.label_space.name == "street"
    assert teacher.probabilities(image(32, 48)).shape == (8, 4, 6)


def test_mirrored_images_are_averaged(weights: Path) -> None:
    clip = DenseClipConfig(model="tiny-test-vit", short_side_px=32, window_px=32)
    values = {"weights": weights, "label_space": "street", "clip": clip}
    teacher = load_teacher(MaskClipConfig(**values, flip=True, scales=(1.0, 2.0)))
    picture = image(32, 48)
    mirrored = teacher.probabilities(np.ascontiguousarray(picture[:, ::-1]))
    assert np.allclose(mirrored[:, :, ::-1], teacher.probabilities(picture), atol=1e-4)
    plain = load_teacher(MaskClipConfig(**values)).probabilities(picture)
    assert plain.shape == mirrored.shape and not np.allclose(plain, mirrored[:, :, ::-1], atol=1e-3)


def test_what_cannot_be_used_is_named(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no model 'ViT-B-17'; similar: .*ViT-B-16"):
        load_maskclip(DenseClipConfig(model="ViT-B-17"), weights)
    with pytest.raises(InputError, match="no weights given; get them from"):
        load_maskclip(DenseClipConfig(model="tiny-test-vit"), None)
    with pytest.raises(InputError, match="do not fit"):
        load_maskclip(DenseClipConfig(model="ViT-S-32"), weights)
    with pytest.raises(InputError, match="not supported"):
        MaskClip(torch.nn.Conv2d(3, 3, 1), DenseClipConfig())
