# SPDX-License-Identifier: Apache-2.0
"""A teacher from torch.hub: code of a repository at a pinned commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, JsonValue, model_validator
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.vision.class_names import read_names
from pcseg_core.vision.network_input import ImageNetworkConfig, network_input, network_output
from pcseg_core.vision.pixel_classes import PixelClasses
from pcseg_core.vision.registry import Kind, checksum
from pcseg_core.vision.teachers.python import as_teacher


class TorchHubConfig(ImageNetworkConfig):
    """A network of a repository. Its code runs with the rights of the user."""

    name: Literal["torchhub"] = "torchhub"
    repo: str = Field(
        description="GitHub repository owner/name, or the path of a folder with hubconf.py"
    )
    commit: str = Field("", description="Commit of the repository, 40 hex digits")
    entry: str = Field(description="Entry point of hubconf.py")
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="Arguments of the entry point"
    )
    run_foreign_code: bool = Field(
        False, description="Must be true: the repository's code is downloaded and run"
    )

    @property
    def identity(self) -> dict[str, Any]:
        """See `KindConfig`; the files of a local repository count too."""
        content = checksum(Path(self.repo).expanduser()) if self.is_local else None
        return {**super().identity, "content": content}

    @property
    def is_local(self) -> bool:
        """Whether the repository is a folder on this machine."""
        return (Path(self.repo).expanduser() / "hubconf.py").is_file()

    @model_validator(mode="after")
    def _is_meant(self) -> TorchHubConfig:
        if not self.run_foreign_code:
            raise ValueError(
                f"torch.hub runs code of {self.repo} with your rights; set run_foreign_code: true "
                "after you have read that code"
            )
        pinned = len(self.commit) == 40 and set(self.commit) <= set("0123456789abcdef")
        if not self.is_local and not pinned:
            raise ValueError(
                f"commit '{self.commit}': expected the 40 hex digits of the commit that you have "
                "read; a branch or tag may change"
            )
        return self


class HubNetwork:
    """A network that maps an image to logits or probabilities; a `NamedSource`.

    Args:
        network: (1, 3, h, w) -> (1, C, h, w), or a mapping with that as "out" or "logits".
        config: names, input and output.
        device: of the network.
    """

    def __init__(self, network: torch.nn.Module, config: ImageNetworkConfig, device: str) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.config, self.device = config, device
        if not config.names:
            raise InputError("the network brings no class names; give 'names'")
        self.names = read_names(config.names)

    @torch.inference_mode()
    def probabilities(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `NamedSource`."""
        found: Any = self.network(network_input(image, self.config).to(self.device))
        if isinstance(found, Mapping):
            found = next((found[key] for key in ("out", "logits") if key in found), None)
        if not isinstance(found, Tensor):
            raise InputError("the network gives no tensor, and none under 'out' or 'logits'")
        maps = network_output(found, self.config, len(self.names), type(self.network).__name__)
        result: npt.NDArray[np.float32] = maps.cpu().numpy()
        return result


def _load(config: TorchHubConfig, device: str) -> PixelClasses:
    title = f"{config.repo}:{config.entry}"
    local = config.is_local
    repo = str(Path(config.repo).expanduser()) if local else f"{config.repo}:{config.commit}"
    source = {"source": "local"} if local else {"trust_repo": True, "skip_validation": True}
    try:
        made = torch.hub.load(repo, config.entry, **source, **config.options)
    except Exception as error:  # code of the repository, or no network
        raise InputError(
            f"torch.hub {title} failed: {type(error).__name__}: {error}; without a network, clone "
            "the repository and give its folder as 'repo'"
        ) from error
    if isinstance(made, torch.nn.Module) and not hasattr(made, "probabilities"):
        made = HubNetwork(made, config, device)
    return as_teacher(made, config, title)


KIND = Kind(TorchHubConfig, _load, "torch.hub, at a pinned commit; runs foreign code")
