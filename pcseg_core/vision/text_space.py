# SPDX-License-Identifier: Apache-2.0
"""Text spaces: vectors of words from tables, open_clip or a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field, JsonValue, model_validator

from pcseg_core.bundled import find_file
from pcseg_core.config import Section
from pcseg_core.errors import InputError, require
from pcseg_core.text_table import TextTable, unit_rows, word_key
from pcseg_core.vision.registry import KindConfig, Registry
from pcseg_core.vision.weights import load_strictly, read_weights

__all__ = [
    "GeneratedText",
    "OpenClipText",
    "TableFile",
    "TextSpace",
    "TextSpaceConfig",
    "TextTable",
    "load_open_clip",
    "load_text_space",
    "read_table",
    "table_of",
]

OPEN_CLIP_SOURCE = (
    "https://huggingface.co/timm (open_clip_model.safetensors of vit_base_patch32_clip_224.openai "
    "for ViT-B-32-quickgelu, and likewise for other models)"
)
# Buffers in files of older versions.
_DERIVED = ("position_ids", "attn_mask", "input_resolution", "context_length", "vocab_size")
SCENE_TEMPLATES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
_COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)


class TextSpace(Protocol):
    """A space with vectors of words."""

    @property
    def name(self) -> str:
        """Vectors of spaces with the same name are comparable."""

    @property
    def channels(self) -> int:
        """Size D of the vectors."""

    def embed(self, words: Sequence[str]) -> np.ndarray:
        """(n, D) float32 unit vectors; InputError for words without a vector."""

    def known(self, word: str) -> bool:
        """Whether the word has a vector."""


class TableFile(Section):
    """A table of text embeddings on disk."""

    vectors: Path = Field(
        description="npy of (W, D) vectors, or an npz with names from `pcseg words`"
    )
    names: Path | Literal["coco"] | None = Field(
        None,
        description="JSON list of names, or of categories with name, id and synonyms as in LVIS; "
        "coco for the 80 COCO names; none for an npz",
    )


class TextSpaceConfig(Section):
    """Source of the vectors of words."""

    source: str = Field(
        "generated",
        description="table: precomputed vectors; open_clip: a text encoder; generated: a random "
        "direction per word from a seed, for studies without weights; or the name that another "
        "package adds",
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="Options of a source that another package adds"
    )
    tables: tuple[TableFile, ...] = Field(
        (), description="Tables of one space; the first one wins for repeated names (source: table)"
    )
    model: str = Field("ViT-B-16-quickgelu", description="Model of open_clip (source: open_clip)")
    weights: Path | None = Field(
        None, description="Weights of the model, safetensors or torch (source: open_clip)"
    )
    templates: tuple[str, ...] | Literal["imagenet+scene"] = Field(
        "imagenet+scene",
        description="Sentences with '{}' for the word, whose vectors are averaged; imagenet+scene "
        "is the 80 of open_clip and 5 'in the scene'",
    )
    center: bool = Field(
        False,
        description="Subtract the mean of all words (of the table or the recipe) from their "
        "vectors, which brings cosines of unrelated words near 0",
    )
    generate: tuple[str, ...] = Field(
        (),
        description="Words missing in the table that get a random direction in place of a text "
        "encoder's vector, to separate classes without a name in it (source: table)",
    )
    channels: int = Field(64, ge=2, le=4096, description="Size of vectors (source: generated)")
    seed: int = Field(0, ge=0, description="Seed of the random directions")

    def relative_to(self, folder: Path) -> TextSpaceConfig:
        """The same with absolute paths, see `find_file`.

        Args:
            folder: of the file that names the paths.

        Raises:
            InputError: a file does not exist.
        """

        def resolved(path: Path) -> Path:
            return find_file(path, folder)

        tables = tuple(
            TableFile(
                vectors=resolved(table.vectors),
                names=resolved(table.names) if isinstance(table.names, Path) else table.names,
            )
            for table in self.tables
        )
        weights = None if self.weights is None else resolved(self.weights)
        return self.model_copy(update={"tables": tables, "weights": weights})

    @model_validator(mode="after")
    def _complete(self) -> TextSpaceConfig:
        if self.source not in OWN_SOURCES:
            TEXTS.parse({"name": self.source, **self.options}, "options")
        if self.source == "table" and not self.tables:
            raise ValueError("source 'table' needs 'tables'")
        if not isinstance(self.templates, str) and not all("{}" in t for t in self.templates):
            raise ValueError("every one of 'templates' needs '{}' where the word goes")
        return self


class TextOptions(KindConfig):
    """Options of a text space that another package adds."""


OWN_SOURCES = ("table", "open_clip", "generated")
TEXTS: Registry[TextOptions, TextSpace] = Registry("text space", "pcseg.texts", TextOptions, {})


class GeneratedText:
    """A fixed random direction per word, the same on every machine.

    Args:
        channels: size of the vectors.
        seed: of the directions.
    """

    def __init__(self, channels: int, seed: int = 0) -> None:
        self.channels = channels
        self.seed = seed
        self.name = f"generated-{channels}-{seed}"

    def known(self, word: str) -> bool:
        """Whether the word is not empty."""
        return bool(word_key(word))

    def embed(self, words: Sequence[str]) -> np.ndarray:
        """See TextSpace."""
        if empty := [word for word in words if not self.known(word)]:
            raise InputError(f"no vector for {empty}: empty words")
        return np.stack([self._direction(word_key(w)) for w in words]).astype(np.float32)

    def _direction(self, key: str) -> np.ndarray:
        digest = hashlib.sha256(f"{self.seed}\n{key}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
        drawn = rng.standard_normal(self.channels)
        result: np.ndarray = drawn / np.linalg.norm(drawn)
        return result


class OpenClipText:
    """The text encoder of an open_clip model: normalized mean over templates, as in CLIP.

    Args:
        model: name in open_clip, such as "ViT-B-16-quickgelu".
        weights: state dict of the model, safetensors or torch.
        templates: see TextSpaceConfig.

    Raises:
        MissingDependency: open_clip is not installed.
        InputError: no such model in open_clip, or missing weights or those of another model.
    """

    def __init__(
        self,
        model: str,
        weights: Path | None,
        templates: tuple[str, ...] | str = "imagenet+scene",
        device: str = "cpu",
    ) -> None:
        open_clip = require("open_clip", "vision")
        self.network = load_open_clip(model, weights, device)
        self.tokenizer = open_clip.get_tokenizer(model)
        self.name = model
        self.device = device
        self.templates = _templates(templates)
        self._kept: dict[str, np.ndarray] = {}

    @property
    def channels(self) -> int:
        """Size D of the vectors."""
        return int(self.embed(["thing"]).shape[1])

    def known(self, word: str) -> bool:
        """Whether the word is not empty."""
        return bool(word_key(word))

    def embed(self, words: Sequence[str]) -> np.ndarray:
        """See `TextSpace`; vectors are cached."""
        if empty := [word for word in words if not self.known(word)]:
            raise InputError(f"no vector for {empty}: empty words")
        return np.stack([self._vector(word_key(word)) for word in words])

    def _vector(self, key: str) -> np.ndarray:
        import torch

        if key not in self._kept:
            tokens = self.tokenizer([fill(key) for fill in self.templates]).to(self.device)
            with torch.inference_mode():
                encoded = self.network.encode_text(tokens).float().cpu().numpy()
            self._kept[key] = unit_rows(unit_rows(encoded).mean(0, keepdims=True))[0]
        return self._kept[key]


def load_open_clip(model: str, weights: Path | None, device: str = "cpu") -> Any:
    """An open_clip model with its weights, frozen, in evaluation mode.

    Raises:
        MissingDependency, InputError: see OpenClipText.
    """
    open_clip = require("open_clip", "vision")
    if model not in open_clip.list_models():
        known = ", ".join(m for m in open_clip.list_models() if m.startswith(model[:4]))
        raise InputError(f"open_clip has no model '{model}'; similar: {known or 'none'}")
    state = read_weights(weights, f"{OPEN_CLIP_SOURCE}; this is for {model}")
    network = open_clip.create_model(model, pretrained=None)
    tensors = {k: v.float() for k, v in state.items() if k.rpartition(".")[2] not in _DERIVED}
    load_strictly(network, tensors, weights, OPEN_CLIP_SOURCE)
    return network.to(device).eval().requires_grad_(False)


def _templates(templates: tuple[str, ...] | str) -> list[Callable[[str], str]]:
    if isinstance(templates, str):
        metadata = require("open_clip.zero_shot_metadata", "vision")
        scene: list[Callable[[str], str]] = [t.format for t in SCENE_TEMPLATES]
        return [*metadata.OPENAI_IMAGENET_TEMPLATES, *scene]
    return [template.format for template in templates]


def read_table(file: TableFile) -> TextTable:
    """Read one table of text embeddings; the space of an npy has the name of the file.

    Raises:
        InputError: a file is missing or invalid, or the numbers of words and vectors differ.
    """
    if file.vectors.suffix == ".npz":
        return TextTable.load(file.vectors)
    try:
        vectors = np.load(file.vectors, allow_pickle=False)
    except Exception as error:  # the kind depends on the wrong bytes
        raise InputError(f"text table {file.vectors}: not readable ({error})") from None
    words, synonyms = _names(file)
    if vectors.ndim != 2 or len(vectors) != len(words):
        raise InputError(
            f"text table {file.vectors}: shape {vectors.shape}, but {file.names} names "
            f"{len(words)} words; expected one row per word"
        )
    return TextTable(file.vectors.stem, words, vectors, synonyms)


def _names(file: TableFile) -> tuple[tuple[str, ...], dict[str, str]]:
    if file.names is None:
        raise InputError(f"text table {file.vectors}: give 'names', since an npy has none")
    if file.names == "coco":
        return tuple(_COCO_NAMES.split(",")), {}
    try:
        content = json.loads(Path(file.names).read_text(encoding="utf-8"))
        if all(isinstance(entry, str) for entry in content):
            return tuple(content), {}
        ordered = sorted(content, key=lambda entry: int(entry["id"]))
        words = tuple(str(entry["name"]) for entry in ordered)
        pairs = [(alias, e["name"]) for e in ordered for alias in e.get("synonyms", ())]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"names {file.names}: expected a JSON list of words, or of categories with name and "
            f"id ({error})"
        ) from None
    return words, {alias: word for alias, word in reversed(pairs) if alias != word}


def load_text_space(config: TextSpaceConfig, device: str = "cpu") -> TextSpace:
    """The text space of a recipe.

    Raises:
        InputError, MissingDependency: see the sources.
    """
    if config.source == "generated":
        return GeneratedText(config.channels, config.seed)
    if config.source == "open_clip":
        return OpenClipText(config.model, config.weights, config.templates, device)
    if config.source != "table":
        return TEXTS.load(TEXTS.parse({"name": config.source, **config.options}, "text"), device)
    table = read_table(config.tables[0])
    for further in config.tables[1:]:
        table = table.join(read_table(further))
    if config.center:
        table = table.centered()
    new = [word for word in config.generate if not table.known(word)]
    if not new:
        return table
    drawn = GeneratedText(table.channels, config.seed).embed(new)
    return table.join(TextTable(table.name, tuple(new), drawn, generated=frozenset(new)))


def table_of(space: TextSpace, words: Sequence[str]) -> TextTable:
    """Vectors of words as a table, for checkpoints without a text encoder."""
    if isinstance(space, TextTable):
        return space.select(words)
    unique = tuple(dict.fromkeys(words))
    generated = frozenset(unique) if isinstance(space, GeneratedText) else frozenset()
    return TextTable(space.name, unique, space.embed(unique), generated=generated)
