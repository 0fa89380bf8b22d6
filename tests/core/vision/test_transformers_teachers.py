# SPDX-License-Identifier: Apache-2.0
"""Teachers of transformers: real classes with small random networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from teacher_inputs import IMAGE, load

from pcseg_core.errors import InputError
from pcseg_core.vision.pixel_classes import TEACHERS
from pcseg_core.vision.windows import mean_of_windows

CITY = ("road", "sidewalk", "building", "car")

# --- transformers --------------------------------------------------------------------------------


def _labels(names: tuple[str, ...] = CITY) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}}


def segformer(library: Any, **labels: Any) -> Any:
    config = library.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **(labels or _labels()),
    )
    return library.SegformerForSemanticSegmentation(config)


def mask2former(library: Any) -> Any:
    backbone = library.SwinConfig(
        image_size=64,
        depths=[1, 1, 1, 1],
        embed_dim=8,
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = library.Mask2FormerConfig(
        backbone_config=backbone,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=10,
        **_labels(),
    )
    return library.Mask2FormerForUniversalSegmentation(config)


def eomt(library: Any) -> Any:
    config = library.EomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        num_blocks=1,
        num_queries=6,
        num_upscale_blocks=1,
        num_register_tokens=1,
        **_labels(),
    )
    return library.EomtForUniversalSegmentation(config)


def detr(library: Any) -> Any:
    backbone = library.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = library.DetrConfig(
        use_timm_backbone=False,
        backbone_config=backbone,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=6,
        **_labels(),
    )
    return library.DetrForSegmentation(config)


def dpt(library: Any) -> Any:
    config = library.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        is_hybrid=False,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        use_auxiliary_head=False,
        **_labels(),
    )
    return library.DPTForSemanticSegmentation(config)


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (segformer, (16, 24)),
        (mask2former, (16, 24)),
        (eomt, (16, 24)),
        (detr, (16, 24)),
        (dpt, (64, 96)),
    ],
)
def test_segmentation_models_of_transformers(
    library: Any, tmp_path: Path, make: Callable[[Any], Any], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    network = make(library)
    network.save_pretrained(tmp_path)
    teacher = load(name="transformers", model=str(tmp_path), short_side_px=64, flip=True)
    found = teacher.probabilities(IMAGE)
    assert found.shape == (19, *size) and np.isfinite(found).all()
    total = found.sum(0)
    assert total.max() <= 1 + 1e-4 and total.min() > 0.2
    named = [teacher.label_space.index(name) for name in CITY]
    assert found[[k for k in range(19) if k not in named]].max() == 0
    again = load(name="transformers", model=str(tmp_path), short_side_px=64, flip=True)
    assert np.array_equal(again.probabilities(IMAGE), found)


def test_logits_are_those_of_the_model(library: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = segformer(library).eval()
    network.save_pretrained(tmp_path)
    found = load(name="transformers", model=str(tmp_path), short_side_px=64).probabilities(IMAGE)
    mean, std = (
        torch.tensor(c).view(3, 1, 1) for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    x = (torch.from_numpy(IMAGE).permute(2, 0, 1) / 255 - mean) / std
    with torch.inference_mode():
        expected = network(pixel_values=x[None]).logits[0].softmax(0).numpy()
    assert np.allclose(found[[0, 1, 2, 13]], expected, atol=1e-5)


def test_scales_change_the_size_of_the_input(library: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    segformer(library).save_pretrained(tmp_path)
    config = {"name": "transformers", "model": str(tmp_path), "short_side_px": 64}
    one, two = (load(**config, scales=[scale]).probabilities(IMAGE) for scale in (1.0, 2.0))
    both = load(**config, scales=[1.0, 2.0]).probabilities(IMAGE)
    assert two.shape == (19, 32, 48) and both.shape == one.shape == (19, 16, 24)
    small = F.interpolate(torch.from_numpy(two)[None], one.shape[1:], mode="bilinear")[0].numpy()
    assert np.allclose(both, (one + small) / 2, atol=1e-6)


@pytest.mark.parametrize("damage", ["head", "pickle", "missing", "extra", "nameless", "folder"])
def test_unusable_models_of_transformers_are_named(
    library: Any, tmp_path: Path, damage: str
) -> None:
    from safetensors.torch import load_file, save_file

    message = {
        "head": "type 'dinov2' has no segmentation head; expected one of .*segformer.*mask2former",
        "pickle": "safetensors",
        "missing": r"1 missing keys \(first: decode_head.classifier.bias\)",
        "extra": r"1 unexpected keys \(first: more.weight\)",
        "nameless": "no class names .id2label.",
        "folder": "an id on huggingface.co",
    }[damage]
    labels = _labels(("LABEL_0", "LABEL_1")) if damage == "nameless" else _labels()
    network = segformer(library, **labels)
    if damage == "head":
        network = library.Dinov2Model(
            library.Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        )
    if damage != "folder":
        network.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "pickle":
        torch.save(load_file(str(weights)), tmp_path / "pytorch_model.bin")
        weights.unlink()
    elif damage in ("missing", "extra"):
        state = load_file(str(weights))
        if damage == "missing":
            del state["decode_head.classifier.bias"]
        else:
            state["more.weight"] = torch.zeros(1)
        save_file(state, str(weights), metadata={"format": "pt"})
    with pytest.raises(InputError, match=message):
        load(name="transformers", model=str(tmp_path))


def test_sam3_by_the_words_of_classes(library: Any) -> None:
    if not hasattr(library, "Sam3Model"):
        pytest.skip("this transformers has no Sam3Model")
    from pcseg_core.vision.teachers.transformers import PromptedSam

    class Processor:
        """Letters as tokens, in place of the published tokenizer."""

        def __call__(self, images: Any = None, text: str = "", return_tensors: str = "pt") -> Any:
            if images is not None:
                x = torch.from_numpy(images).permute(2, 0, 1)[None].float() / 127.5 - 1
                return library.BatchFeature({"pixel_values": F.interpolate(x, (112, 112))})
            ids = torch.tensor([[1 + sum(map(ord, text)) % 500, 2, *[0] * 30]])
            return library.BatchFeature({"input_ids": ids, "attention_mask": (ids > 0).long()})

    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_attention_heads": 2}
    thin = {**small, "num_layers": 1, "intermediate_size": 16}
    trunk = library.Sam3ViTConfig(
        **small,
        intermediate_size=32,
        num_hidden_layers=2,
        image_size=112,
        window_size=4,
        global_attn_indexes=[1],
        pretrain_image_size=56,
    )
    sizes = [[32, 32], [16, 16], [8, 8]]
    config = library.Sam3Config(
        vision_config=library.Sam3VisionConfig(
            backbone_config=trunk, fpn_hidden_size=32, backbone_feature_sizes=sizes
        ),
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": 600,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "projection_dim": 16,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        geometry_encoder_config=thin,
        detr_encoder_config=thin,
        detr_decoder_config={**thin, "num_queries": 5},
        mask_decoder_config=small,
    )
    network = library.Sam3Model(config)
    words = {"road": ("road", "street"), "car": ("car",)}
    found = PromptedSam(network, Processor(), words).probabilities(IMAGE)
    assert found.shape == (2, 32, 32) and found.min() >= 0 and found.sum(0).max() <= 1 + 1e-5
    alone = PromptedSam(network, Processor(), {"car": ("car",)}).probabilities(IMAGE)
    assert np.allclose(found[1], alone[0], atol=1e-6)


def test_windows_cover_the_image_and_keep_their_place() -> None:
    x = torch.arange(64 * 150, dtype=torch.float32).reshape(1, 1, 64, 150)
    same = mean_of_windows(lambda part: part[0], x, 64)
    assert torch.allclose(same, x[0])
    halved = mean_of_windows(lambda part: F.avg_pool2d(part, 8)[0], x, 64)
    assert halved.shape == (1, 8, 18) and torch.isfinite(halved).all()
    assert (halved[0, 0].diff() > 0).all()


def test_a_model_id_stays_an_id_and_a_folder_becomes_absolute(tmp_path: Path) -> None:
    config = TEACHERS.parse({"name": "transformers", "model": "owner/net", "revision": "abc"}, "t")
    assert config.relative_to(tmp_path) == config
    assert config.identity["revision"] == "abc"
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps({}))
    folder = TEACHERS.parse({"name": "transformers", "model": "net"}, "t").relative_to(tmp_path)
    assert folder.model == str(tmp_path / "net") and folder.identity["content"]
