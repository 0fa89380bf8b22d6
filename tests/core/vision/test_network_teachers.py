# SPDX-License-Identifier: Apache-2.0
"""Teachers in ONNX format and of transformers: real classes with small random networks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcseg_core.bundled import bundled_file
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.vision.pixel_classes import TEACHERS, PixelClasses, load_teacher
from pcseg_core.vision.teachers.espnetv2 import load_espnetv2
from pcseg_core.vision.windows import mean_of_windows

SIMULATION = LabelSpace.load("simulation")
IMAGE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
CITY = ("road", "sidewalk", "building", "car")


def load(**values: Any) -> PixelClasses:
    return load_teacher(TEACHERS.parse(values, "teacher"))


# --- ONNX ----------------------------------------------------------------------------------------


class Shuffle(nn.Module):
    """ChannelShuffle of operations that ONNX has."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.reshape(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def _means(length: int, out: int) -> Tensor:
    """(out, length) matrix of adaptive average pooling."""
    rows = np.zeros((out, length), np.float32)
    for i in range(out):
        first, last = i * length // out, -(-(i + 1) * length // out)
        rows[i, first:last] = 1 / (last - first)
    return torch.from_numpy(rows)


def _pool(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    height, width = (int(side) for side in x.shape[-2:])
    rows, columns = (size, size) if isinstance(size, int) else size
    return _means(height, rows) @ x @ _means(width, columns).t()


@contextlib.contextmanager
def exportable(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> Iterator[None]:
    """ESPNetv2 of operations that ONNX has, with the same results."""
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ChannelShuffle):
                setattr(module, name, Shuffle(child.groups))
    with monkeypatch.context() as patch:
        patch.setattr(F, "adaptive_avg_pool2d", _pool)
        yield


def export(network: nn.Module, shape: tuple[int, ...], path: Path, **options: Any) -> Path:
    torch.onnx.export(
        network,
        (torch.zeros(shape),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        **options,
    )
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_espnetv2_in_onnx_gives_the_same_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    weights = bundled_file("bundled:simulation_teacher")
    assert weights is not None
    network = load_espnetv2(weights).eval()
    with exportable(monkeypatch, network):
        export(network, (1, 3, 64, 96), tmp_path / "net.onnx")
    (tmp_path / "names.txt").write_text("\n".join(SIMULATION.names))
    common = {"label_space": "simulation"}
    own = load(weights="bundled:simulation_teacher", scales=[1.0], flip=False, **common)
    names = str(tmp_path / "names.txt")
    other = load(name="onnx", file=str(tmp_path / "net.onnx"), names_file=names, **common)
    expected, found = own.probabilities(IMAGE), other.probabilities(IMAGE)
    assert np.abs(expected - found).max() < 1e-4
    assert np.array_equal(expected.argmax(0), found.argmax(0))


class Colors(nn.Module):
    """Logits of two classes: red, and the rest."""

    def __init__(self, last: bool = False, ids: bool = False) -> None:
        super().__init__()
        self.last, self.ids = last, ids

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2) if self.last else x
        logits = torch.stack([x[:, 0], x[:, 1]], 1)
        if self.ids:
            return logits.argmax(1)
        return logits.permute(0, 2, 3, 1) if self.last else logits


@pytest.fixture
def colors(tmp_path: Path) -> Callable[..., Path]:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")

    def make(
        last: bool = False, ids: bool = False, shape: tuple[int, ...] = (1, 3, 32, 64)
    ) -> Path:
        free = {"image": {2: "height", 3: "width"}}
        options = {} if last or ids else {"dynamic_axes": free}
        return export(Colors(last, ids), shape, tmp_path / f"{last}{ids}.onnx", **options)

    return make


RED = np.zeros((64, 96, 3), np.uint8)
RED[:, :48, 0], RED[:, 48:, 1] = 255, 255


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["free", "last", "ids"])
def test_layouts_of_onnx_networks(colors: Callable[..., Path], form: str) -> None:
    shape = (1, 32, 64, 3) if form == "last" else (1, 3, 32, 64)
    file = colors(form == "last", form == "ids", shape)
    values = {"output": "ids"} if form == "ids" else {}
    teacher = load(name="onnx", file=str(file), names=["road", "car"], **values)
    found = teacher.probabilities(RED)
    assert found.shape == ((19, 64, 96) if form == "free" else (19, 32, 64))
    winner, half = found.argmax(0), found.shape[2] // 2
    assert (winner[:, : half - 1] == 0).all() and (winner[:, half + 1 :] == 13).all()


@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_with_an_onnx_file_is_named(
    colors: Callable[..., Path], tmp_path: Path
) -> None:
    file = str(colors())
    bad = tmp_path / "bad.onnx"
    bad.write_text("no network")
    for values, message in (
        ({"file": str(bad), "names": ["road"]}, "bad.onnx: not usable as an ONNX file"),
        ({"file": file}, "no class names in its metadata; give 'names'"),
        ({"file": file, "names": ["road"], "output_name": "out"}, "no output 'out'; it has logits"),
    ):
        with pytest.raises(InputError, match=message):
            load(name="onnx", **values)
    three = load(name="onnx", file=file, names=["road", "car", "sky"])
    with pytest.raises(InputError, match=r"\(1, 2, 64, 96\); expected \(1, 3, h, w\)"):
        three.probabilities(IMAGE)
    with pytest.raises(InputError, match="no such file"):
        load(name="onnx", file=str(tmp_path / "none.onnx"), names=["road"])


@pytest.mark.filterwarnings("ignore")
def test_names_in_the_metadata_of_an_onnx_file(colors: Callable[..., Path]) -> None:
    onnx = pytest.importorskip("onnx")
    file = colors()
    model = onnx.load(str(file))
    entry = model.metadata_props.add()
    entry.key, entry.value = "names", "{0: 'road', 1: 'car'}"
    onnx.save(model, str(file))
    assert load(name="onnx", file=str(file)).probabilities(RED)[13, :, 60:].min() > 0.5


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
