# SPDX-License-Identifier: Apache-2.0
"""Public weights by name: their source, license and checksums, and where they are looked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pcseg_core.errors import InputError
from pcseg_core.files import file_checksum, user_cache

WEIGHTS_VARIABLE = "PCSEG_WEIGHTS"
"""Environment variable: folders with model weights, separated by `os.pathsep`."""

_EDGENETS = (
    "https://github.com/sacmehta/EdgeNets/raw/2b232d3f7fb60658755dad1ebca0ffc895cc795e/"
    "model/segmentation/model_zoo/espnetv2/"
)
_CORAL = "https://github.com/google-coral/test_data/raw/104342d2d3480b3e66203073dac24f4e2dbb4c41/"


@dataclass(frozen=True)
class KnownWeights:
    """One public file of weights.

    Attributes:
        file: name of the file on disk.
        url: of the published file.
        license: of the weights.
        sums: SHA-256 of the file as published, and converted to safetensors; empty if unknown.
        convert: whether the published file is to be converted.
        network: what the weights are of, for `pcseg weights list`.
    """

    file: str
    url: str
    license: str
    network: str
    sums: tuple[str, ...] = ()
    convert: bool = False

    @property
    def published(self) -> str:
        """Name of the published file."""
        return self.url.rpartition("/")[2]


KNOWN: dict[str, KnownWeights] = {
    "espnetv2-cityscapes": KnownWeights(
        "espnetv2_s2.0_cityscapes_1024x512.safetensors",
        f"{_EDGENETS}espnetv2_s_2.0_city_1024x512.pth",
        "MIT",
        "ESPNetv2 s2.0 of Cityscapes, 19 classes",
        (
            "a72d59699801c7ce8e8b89a53af9097eaaa60dc12180ecde86fd700ba1222fe8",  # published
            "863143b6ab802fa61966962fec999e5244f8806c887a97f9da94edb56a03b0c9",
            "c7e45e2e897c4169c04c328db7146925321b3235ec284f4e8c279c7bba743453",  # with its source
        ),
        convert=True,
    ),
    "espnetv2-cityscapes-small": KnownWeights(
        "espnetv2_s0.5_cityscapes_1024x512.safetensors",
        f"{_EDGENETS}espnetv2_s_0.5_city_1024x512.pth",
        "MIT",
        "ESPNetv2 s0.5 of Cityscapes, 19 classes",
        (
            "9412a86a30f137540ef945d08da3cb7191448956c56c41a64210dab443a9f65f",  # published
            "6e42b6b94b88c15d1adae9459f6e26aa5397654265f31be16efa4df1d4675c0f",
            "4af16ea4defe4634823d69e8f0798bd8c31cb1e8d7917e37ca2d0ab409427405",  # with its source
        ),
        convert=True,
    ),
    "deeplab-cityscapes": KnownWeights(
        "deeplab_mobilenet_edgetpu_slim_cityscapes_quant.tflite",
        f"{_CORAL}deeplab_mobilenet_edgetpu_slim_cityscapes_quant.tflite",
        "Apache-2.0",
        "DeepLab with MobileNet-EdgeTPU-slim of Cityscapes, 19 classes, 8 bit (teacher litert)",
        ("322fe29945cb1693f426952f2a330ab67ea5678545ddee6f2548e0cfd0ca03e5",),
    ),
    "clip-vit-b-16": KnownWeights(
        "vit_b_16_openai.safetensors",
        "https://huggingface.co/timm/vit_base_patch16_clip_224.openai/resolve/main/"
        "open_clip_model.safetensors",
        "MIT",
        "CLIP ViT-B-16-quickgelu of OpenAI (open_clip)",
    ),
}


def cache_folder() -> Path:
    """Folder of the weights that `pcseg weights` stores; see `user_cache`."""
    return user_cache("weights")


def weights_folders() -> list[Path]:
    """The folders of PCSEG_WEIGHTS, in order."""
    value = os.environ.get(WEIGHTS_VARIABLE, "")
    return [Path(folder).expanduser() for folder in value.split(os.pathsep) if folder]


def _places() -> tuple[Path, ...]:
    return (cache_folder(), *weights_folders())


def stored_file(name: str) -> Path | None:
    """The file of known weights: in the cache folder, else in a folder of PCSEG_WEIGHTS.

    Raises:
        InputError: the file has another checksum.
    """
    entry = KNOWN[name]
    for folder in _places():
        for file in (entry.file, entry.published) if entry.convert else (entry.file,):
            path = Path(os.path.abspath(folder / file))  # noqa: PTH100 (links stay)
            if path.is_file():
                check_sum(name, path)
                return path
    return None


def known_file(name: str) -> Path:
    """`stored_file`, which must exist.

    Raises:
        InputError: not on this machine, or the file has another checksum.
    """
    if found := stored_file(name):
        return found
    entry, folders = KNOWN[name], ", ".join(map(str, _places()))
    raise InputError(
        f"weights '{name}' are not on this machine: no {entry.file} in {folders} (the cache and "
        f"the folders of {WEIGHTS_VARIABLE}); run `pcseg weights get {name}`, or without a network "
        f"download {entry.url} elsewhere and run `pcseg weights add {entry.published}` here"
    )


def check_named(content: object, recipe: str) -> None:
    """Check that all known weights that a recipe names are on this machine, before long work.

    Args:
        content: of a YAML file: any value of it may be the name of known weights.
        recipe: name of the recipe, for the message.

    Raises:
        InputError: some are not; the message names all of them.
    """
    named = {text for text in _texts(content) if text in KNOWN}
    missing = [name for name in KNOWN if name in named and stored_file(name) is None]
    if missing:
        commands = " and ".join(f"`pcseg weights get {name}`" for name in missing)
        files = ", ".join(KNOWN[name].url for name in missing)
        raise InputError(
            f"recipe {recipe} needs weights that are not on this machine, in {cache_folder()} or "
            f"the folders of {WEIGHTS_VARIABLE}: run {commands}; or without a network download "
            f"{files} elsewhere and run `pcseg weights add FILE` here"
        )


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        yield from _texts(list(content.values()))
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value)


def check_sum(name: str, path: Path) -> None:
    """Compare a file with the checksums of known weights.

    Raises:
        InputError: it is another file.
    """
    sums = KNOWN[name].sums
    if sums and (found := file_checksum(path)) not in sums:
        expected = " or ".join((f"{sums[0]} (published)", *sums[1:]))
        raise InputError(
            f"{path} is not '{name}': its SHA-256 is {found}, expected {expected}; remove the "
            f"file and run `pcseg weights get {name}`, or name its path in place of the name to "
            "use it as it is"
        )
