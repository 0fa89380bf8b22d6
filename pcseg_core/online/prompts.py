# SPDX-License-Identifier: Apache-2.0
"""Prompts: classes named by words, folded into one matrix on the features of the student."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pcseg_core.checkpoint import CheckpointText
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelClass, LabelSpace
from pcseg_core.text_table import unit_rows, word_key

EVERYTHING_ELSE = "everything else"
"""Name of the class of everything that no prompt names; "*" is short for it."""

MAX_WORDS = 1000
"""Largest number of words of all prompts."""

_CELLS_AT_ONCE = 1 << 22  # logits per block, to bound the memory of many words
_MOST = 3.0  # largest stretch: a word unlike all classes should not win everywhere
_GRAY = (110, 110, 110)


@dataclass(frozen=True)
class Prompt:
    """One class.

    Attributes:
        name: of the class.
        words: synonyms of the class.
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class PromptSet:
    """Classes named by words.

    Attributes:
        prompts: in the order of the class ids.
        background: id of the class "everything else", or None.
    """

    prompts: tuple[Prompt, ...]
    background: int | None = None

    @classmethod
    def parse(cls, texts: Sequence[str]) -> PromptSet:
        """Parse prompts of a user.

        Args:
            texts: each a word ("tree"), a group ("vehicle: car, truck, bus"), or "*" (the same
                as "everything else") for what no other prompt names. Ids follow the order.

        Raises:
            InputError: no prompts, too many words, an empty word, or a repeated name.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"prompts: expected a list of texts, got {texts!r:.80}")
        prompts = tuple(_parse_one(text) for text in texts)
        background = [i for i, prompt in enumerate(prompts) if not prompt.words]
        if len(prompts) == len(background):
            raise InputError(
                "prompts: nothing named; give at least one word, for example 'vehicle: car, truck'"
            )
        _check_names(prompts)
        words = sum(len(prompt.words) for prompt in prompts)
        if words > MAX_WORDS:
            raise InputError(f"prompts: {words} words, at most {MAX_WORDS} are possible")
        return cls(prompts, background[0] if background else None)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of all prompts, in order."""
        return tuple(word for prompt in self.prompts for word in prompt.words)

    def encode(self, text: CheckpointText) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the words, and the class of each.

        "Everything else" is represented by the training classes that no prompt covers. A word
        covers the class with the nearest vector, and all classes that are nearer to that class than
        the word is: as competitors they would suppress the word.

        A student trained on class names outputs vectors of these names, which rarely equal the
        vector of another word. Each row is therefore scaled until it responds to its nearest class
        as strongly as the name of that class does (see `_stretched`).

        Returns:
            (R, D) float32 rows, (R,) int64 classes.

        Raises:
            InputError: a word has no vector.
        """
        vectors = text.table.embed(self.words)
        owner = np.repeat(np.arange(len(self.prompts)), [len(p.words) for p in self.prompts])
        classes = class_vectors(text) if text.classes else vectors[:0]
        if self.background is not None and len(classes):
            rest = classes[~_meant(vectors, classes)]
            vectors = np.concatenate([vectors, rest])
            owner = np.concatenate([owner, np.full(len(rest), self.background)])
        if text.from_classes and len(classes):
            table = text.table
            centered = table.center is not None and table.center.any()
            vectors = _stretched(vectors, classes, table.vectors.mean(0) * (not centered))
        return vectors, owner.astype(np.int64)

    def label_space(self, text: CheckpointText, trained: LabelSpace) -> LabelSpace:
        """The classes, colored as the trained class of the same name or by spread hues."""
        known = {word_key(c.name): c.color for c in trained.classes}
        classes = []
        for i, prompt in enumerate(self.prompts):
            color = _GRAY if i == self.background else spread_color(i)
            color = known.get(word_key(prompt.name), color)
            classes.append(LabelClass(i, prompt.name, color, prompt.words))
        return LabelSpace("prompts", tuple(classes))


def class_vectors(text: CheckpointText) -> np.ndarray:
    """(C, D) float32 unit vectors of the training classes: means over their words."""
    means = [text.table.embed(words).mean(0) for words in text.classes.values()]
    return unit_rows(np.stack(means))


def _meant(vectors: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(C,) bool: classes covered by words (R, D), see `PromptSet.encode`."""
    cosines = vectors @ classes.T
    nearest = cosines.argmax(1)
    own = cosines[np.arange(len(nearest)), nearest]
    result: np.ndarray = ((classes @ classes.T)[nearest] >= own[:, None] - 1e-4).any(0)
    return result


def _stretched(vectors: np.ndarray, classes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Rows m + (w - m) / r with r = <t, w - m> / <t, t - m>, between 1 and _MOST.

    t is the class vector nearest to the word w. m is the mean of all known words, which carries no
    information (0 where it was subtracted before). The response of the row to t then equals that of
    t itself.
    """
    nearest = classes[(vectors @ classes.T).argmax(1)]
    own = ((vectors - mean) * nearest).sum(1) / ((nearest - mean) * nearest).sum(1).clip(1e-6)
    own = np.where(own > 0, own.clip(1 / _MOST, 1.0), 1.0)
    stretched: np.ndarray = mean + (vectors - mean) / own[:, None]
    return stretched.astype(np.float32)


def _parse_one(text: str) -> Prompt:
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not colon and word_key(name) in ("*", word_key(EVERYTHING_ELSE)):
        return Prompt(EVERYTHING_ELSE, ())
    words = tuple(word.strip() for word in (rest if colon else name).split(","))
    if not name or not all(word_key(word) for word in words):
        raise InputError(
            f"prompt '{text[:60]}': an empty name or word; expected a word, or 'name: word, word'"
        )
    return Prompt(name if colon else words[0], words)


def _check_names(prompts: Sequence[Prompt]) -> None:
    keys = [word_key(prompt.name) for prompt in prompts]
    twice = sorted({p.name for p, key in zip(prompts, keys) if keys.count(key) > 1})
    if twice:
        raise InputError(
            f"prompts: named twice: {', '.join(twice)}; put the words of one class into one group, "
            "'name: word, word'"
        )


def spread_color(index: int) -> tuple[int, int, int]:
    """Distinct colors for neighboring ids: hues step by the golden ratio."""
    hue, value = (0.58 + index * 0.618034) % 1.0, 0.95 - 0.25 * (index // 8 % 3)
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
    return int(255 * red), int(255 * green), int(255 * blue)


class PromptHead:
    """Logits of words from the penultimate features of the student.

    Text head and word vectors fold into one matrix. Cosines need the length of the student's vector
    in the text space. It follows from the triangular factor of the text head, which has only the
    size of the features: |W h + b| = |R [h; 1]| with [W b] = Q R.

    Args:
        head: the student's text head, features (F) to text space (D).
        vectors: (R, D) vectors of words.
        owner: (R,) class of each word.
        classes: number C of classes.
        temperature: of the cosine classifier.

    Attributes:
        rows: number R of words.
        owner: (R,) int64 class of each word; None if word k is class k.
        matrix: (F, R + F + 1) float32, words and triangular factor.
        offset: (R + F + 1,) float32.
    """

    def __init__(
        self,
        head: nn.Linear,
        vectors: np.ndarray,
        owner: np.ndarray,
        classes: int,
        temperature: float,
    ) -> None:
        weight, bias = head.weight.detach().double().cpu(), head.bias.detach().double().cpu()
        words = torch.from_numpy(vectors).double()
        # The softmax ignores the common part of all words; without it, rounding errors are smaller.
        words = (words - words.mean(0)) / temperature
        whole = torch.cat([weight, bias[:, None]], 1)
        factor = torch.linalg.qr(whole, mode="r").R
        device = head.weight.device
        self.rows = len(words)
        matrix = torch.cat([words @ weight, factor[:, :-1]])
        offset = torch.cat([words @ bias, factor[:, -1]])
        self.matrix = matrix.float().t().contiguous().to(device)
        self.offset = offset.float().to(device)
        owners = torch.from_numpy(owner)
        plain = torch.equal(owners, torch.arange(classes))
        self.owner = None if plain else owners.to(device)

    def blocks(self, features: Tensor) -> Iterator[Tensor]:
        """Blocks of the (M, R) logits of features (M, F)."""
        step = max(1, _CELLS_AT_ONCE // len(self.offset))
        for part in features.float().split(step):
            yield self.logits(torch.addmm(self.offset, part, self.matrix))

    def logits(self, product: Tensor) -> Tensor:
        """features @ matrix + offset, (M, R + F + 1) -> (M, R) logits."""
        length = torch.linalg.vector_norm(product[:, self.rows :], dim=1, keepdim=True)
        result: Tensor = product[:, : self.rows] / length.clamp_min(1e-12)
        return result
