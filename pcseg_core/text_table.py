# SPDX-License-Identifier: Apache-2.0
"""Words with their vectors from a text encoder."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path

MAX_BYTES = 1 << 30
"""Largest file of words, unpacked."""

_SEPARATORS = re.compile(r"[\s_\-]+")
_QUALIFIER = re.compile(r"\([^)]*\)")


def word_key(word: str) -> str:
    """Normalized spelling for look-ups: NFKC, case folded, '_' and '-' as spaces."""
    folded = unicodedata.normalize("NFKC", word).casefold()
    return _SEPARATORS.sub(" ", folded).strip()


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """(W, D) float32 rows of length 1; zero rows stay zero."""
    values = np.asarray(vectors, np.float32)
    result: np.ndarray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return result


@dataclass(frozen=True, eq=False)
class TextTable:
    """Words with a unit vector each; the `TextSpace` of a checkpoint, without a text encoder.

    Attributes:
        name: of the space, for example "lvis"; vectors of the same space are comparable.
        words: in the order of the rows.
        vectors: (W, D) float32 unit rows.
        synonyms: further spellings -> word.
        generated: words with a fixed random direction in place of a text encoder's vector.
        center: (D,) float32 that was subtracted from the encoder's unit vectors before they were
            normalized again; zeros if none was.

    Raises:
        InputError: no words, numbers of words and vectors that differ, vectors that are not
            finite or have length 0, or a center of another size or that is not finite.
    """

    name: str
    words: tuple[str, ...]
    vectors: np.ndarray
    synonyms: Mapping[str, str] = field(default_factory=dict)
    generated: frozenset[str] = frozenset()
    center: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.vectors)
        if len(shape) != 2 or shape[0] != len(self.words) or not self.words:
            raise InputError(
                f"text table '{self.name}': {len(self.words)} words but vectors of shape {shape}; "
                "expected one row per word"
            )
        vectors = np.asarray(self.vectors, np.float32)
        lengths = np.linalg.norm(vectors, axis=1)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            worst = self.words[int(np.argmin(np.nan_to_num(lengths, nan=-1.0, posinf=-1.0)))]
            raise InputError(
                f"text table '{self.name}': the vector of '{worst}' is zero or not finite"
            )
        object.__setattr__(self, "vectors", unit_rows(vectors))
        center = np.zeros(shape[1]) if self.center is None else self.center
        if np.shape(center) != shape[1:] or not np.isfinite(center).all():
            raise InputError(
                f"text table '{self.name}': a center of shape {np.shape(center)}; expected "
                f"{shape[1]} finite numbers"
            )
        object.__setattr__(self, "center", np.asarray(center, np.float32))
        object.__setattr__(self, "_rows", self._index())

    @property
    def channels(self) -> int:
        """Size D of the space."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.words)

    def _index(self) -> dict[str, int]:
        """Row of every spelling; ambiguous spellings are left out."""
        rows: dict[str, int] = {}
        for row, word in enumerate(self.words):
            rows.setdefault(word_key(word), row)
        own = dict(rows)
        aliases = [(alias, rows[word_key(w)]) for alias, w in self.synonyms.items()]
        for spellings in (
            [(word_key(alias), row) for alias, row in aliases],
            [(_bare(word), row) for row, word in enumerate(self.words)],
            [(_bare(alias), row) for alias, row in aliases],
        ):
            for spelling, row in _unambiguous(spellings).items():
                rows.setdefault(spelling, row)
        return rows | own

    def find(self, word: str) -> int | None:
        """Row of a word, or None.

        Ignores case, '_' and '-', and Unicode compatibility forms. A qualifier in brackets
        ("bus (vehicle)") may be omitted if the word is unique without it.
        """
        rows: dict[str, int] = self._rows  # type: ignore[attr-defined]
        return rows.get(word_key(word))

    def known(self, word: str) -> bool:
        """Whether the word has a vector."""
        return self.find(word) is not None

    def embed(self, words: Sequence[str]) -> np.ndarray:
        """(n, D) float32 unit vectors of words.

        Raises:
            InputError: words without a vector; the message lists similar words.
        """
        rows = [self.find(word) for word in words]
        unknown = [word for word, row in zip(words, rows) if row is None]
        if unknown:
            raise InputError(self._no_vector(unknown))
        return self.vectors[np.array(rows, np.intp)]

    def near(self, word: str, count: int = 3) -> list[str]:
        """Words of similar spelling, or that contain it, most similar first."""
        rows: dict[str, int] = self._rows  # type: ignore[attr-defined]
        key = word_key(word)[:100]
        part = [row for spelling, row in rows.items() if key and key in spelling.split()]
        close = difflib.get_close_matches(key, list(rows), n=count)
        found = dict.fromkeys(part[:count] + [rows[spelling] for spelling in close])
        return [self.words[row] for row in found][:count]

    def _no_vector(self, unknown: Sequence[str]) -> str:
        hints = []
        for word in unknown[:8]:
            near = self.near(word)
            hints.append(f"'{word[:40]}'" + (f" (near: {', '.join(near)})" if near else ""))
        rest = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        return (
            f"no vector for {', '.join(hints)}{rest}; text space '{self.name}' has {len(self)} "
            "words. `pcseg words` lists them, and adds others from the weights of a text encoder"
        )

    def select(self, words: Sequence[str]) -> TextTable:
        """A table with only these words."""
        rows = [self.words[i] for i in dict.fromkeys(self._row(w) for w in words)]
        kept = set(rows)
        synonyms = {a: w for a, w in self.synonyms.items() if w in kept}
        generated = self.generated & kept
        vectors = self.embed(rows)
        return TextTable(self.name, tuple(rows), vectors, synonyms, generated, self.center)

    def _row(self, word: str) -> int:
        row = self.find(word)
        if row is None:
            raise InputError(self._no_vector([word]))
        return row

    def join(self, other: TextTable) -> TextTable:
        """This table with the words of `other` that it lacks.

        Raises:
            InputError: vectors of different sizes.
        """
        if other.channels != self.channels:
            raise InputError(
                f"text tables '{self.name}' and '{other.name}' have vectors of {self.channels} "
                f"and {other.channels} numbers; they are of different spaces"
            )
        own = {word_key(word) for word in self.words}
        new = [i for i, word in enumerate(other.words) if word_key(word) not in own]
        return TextTable(
            self.name,
            (*self.words, *(other.words[i] for i in new)),
            np.concatenate([self.vectors, other.vectors[new]]),
            {**other.synonyms, **self.synonyms},
            self.generated | (other.generated & {other.words[i] for i in new}),
            self.center,
        )

    def extended(self, words: Sequence[str], vectors: np.ndarray) -> TextTable:
        """The table with more words of the same text encoder; known words keep their vectors.

        Args:
            words: new words.
            vectors: (n, D) of the encoder; the table's center is subtracted here.

        Raises:
            InputError: another size of vectors.
        """
        if np.shape(vectors)[1:] != (self.channels,):
            raise InputError(
                f"words of {np.shape(vectors)[1:]} numbers each do not fit text space "
                f"'{self.name}' of {self.channels}; use the model that it is of"
            )
        moved = unit_rows(unit_rows(vectors) - self.center)
        return self.join(TextTable(self.name, tuple(words), moved))

    def centered(self) -> TextTable:
        """The table with the mean of its vectors subtracted.

        Unit vectors of a text encoder lie in a narrow cone: unrelated words have cosines of 0.7 and
        more. After subtraction of the mean, unrelated words are nearly orthogonal.
        """
        mean = self.vectors.mean(0)
        moved = unit_rows(self.vectors - mean)
        return TextTable(self.name, self.words, moved, self.synonyms, self.generated, mean)

    def header(self) -> dict[str, Any]:
        """Plain values of everything except the arrays."""
        return {
            "name": self.name,
            "words": list(self.words),
            "synonyms": dict(self.synonyms),
            "generated": sorted(self.generated),
        }

    @classmethod
    def from_parts(
        cls, header: Mapping[str, Any], vectors: np.ndarray, center: np.ndarray | None
    ) -> TextTable:
        """Build a table from `header` and the arrays."""
        try:
            return cls(
                str(header["name"]),
                tuple(map(str, header["words"])),
                vectors,
                {str(word): str(other) for word, other in dict(header["synonyms"]).items()},
                frozenset(map(str, header["generated"])),
                center,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"text table: header not understood ({error})") from None

    def save(self, path: Path) -> None:
        """Write an npz file without pickled objects, atomically."""
        assert self.center is not None
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            header = np.frombuffer(json.dumps(self.header()).encode(), np.uint8)
            np.savez(file, header=header, vectors=self.vectors, center=self.center)

    @classmethod
    def load(cls, path: Path) -> TextTable:
        """Read a file written by `save`.

        Raises:
            InputError: no such file, not a text table, or a larger one than `MAX_BYTES`.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                size = sum(entry.file_size for entry in stored.zip.infolist())
                if size > MAX_BYTES:
                    raise ValueError(f"it unpacks to {size} bytes, expected at most {MAX_BYTES}")
                header = json.loads(bytes(stored["header"]))
                vectors, center = stored["vectors"], stored["center"]
        except Exception as error:  # the kind depends on the wrong bytes
            raise InputError(f"text table {path}: not readable ({error})") from None
        return cls.from_parts(header, vectors, center)


def _bare(word: str) -> str:
    """The key of a word without its qualifier in brackets."""
    return word_key(_QUALIFIER.sub(" ", word))


def _unambiguous(spellings: Sequence[tuple[str, int]]) -> dict[str, int]:
    meanings: dict[str, set[int]] = {}
    for spelling, row in spellings:
        meanings.setdefault(spelling, set()).add(row)
    return {s: min(rows) for s, rows in meanings.items() if len(rows) == 1 and s}
