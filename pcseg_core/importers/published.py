# SPDX-License-Identifier: Apache-2.0
"""Files of published weights: read without running code, keys taken one by one.

Frameworks wrap the tensors of a network: {"state_dict": ...}, {"model": ...}, and prefixes such as
"module.", "net3d." or "backbone.". All nesting becomes one dotted key per tensor, and the network
is where the first key of its family is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.vision.weights import read_content

_SHOWN = 3  # keys of each kind in a message
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, eq=False)
class Published:
    """Tensors and plain values of a file, by their dotted keys.

    Attributes:
        path: the file.
        tensors: all tensors; keys of nested mappings are joined with dots.
        values: all else that is a number, text or list.
    """

    path: Path
    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)

    def prefixes(self, probes: Sequence[str]) -> list[str]:
        """What is before keys of which one is in every network of a family."""
        ends = [(key, probe) for key in self.tensors for probe in probes]
        found = [k.removesuffix(p) for k, p in ends if k == p or k.endswith("." + p)]
        return list(dict.fromkeys(found))

    def network(
        self, probes: Sequence[str], family: str, prefix: str | None = None, hint: str = ""
    ) -> Keys:
        """The tensors of one network.

        Args:
            probes: keys of which one is in every network of the family.
            family: name of the family, for messages.
            prefix: what is before the keys; None finds it.
            hint: other families whose keys the file has, for messages.

        Raises:
            InputError: no such network, or several.
        """
        found = [f for f in self.prefixes(probes) if prefix in (None, f, f.removesuffix("."))]
        if not found:
            where = f" under '{prefix}'" if prefix is not None else ""
            raise InputError(
                f"{self.path}: no network of the family '{family}'{where}: it has no key "
                f"{' or '.join(probes)}; its keys are such as {_listed(list(self.tensors))}; "
                f"choose another family with --as{hint and f' ({hint})'}"
            )
        if len(found) > 1:
            raise InputError(
                f"{self.path}: {len(found)} networks of the family '{family}', under "
                f"{', '.join(repr(f.removesuffix('.')) for f in found)}; choose one with --prefix"
            )
        start = found[0]
        inside = {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}
        outside = {k: v for k, v in self.tensors.items() if not k.startswith(start)}
        return Keys(self.path, family, start, inside, outside, self.values)


class Keys:
    """Takes the tensors of a network by key and remembers what is missing, wrong or left over.

    Attributes:
        path: the file.
        family: name of the family.
        prefix: of all keys of the network in the file, "" or with a dot at its end.
        inside: tensors of the network, keys without the prefix.
        outside: all other tensors of the file, with their whole keys.
        values: plain values of the file, such as its configuration.
    """

    def __init__(
        self,
        path: Path,
        family: str,
        prefix: str,
        inside: dict[str, Tensor],
        outside: dict[str, Tensor],
        values: dict[str, Any],
    ) -> None:
        self.path, self.family, self.prefix = path, family, prefix
        self.inside, self.outside, self.values = inside, outside, values
        self._taken: set[str] = set()
        self._dropped: dict[str, str] = {}
        self._missing: list[str] = []
        self._wrong: list[str] = []

    def has(self, start: str) -> bool:
        """Whether a key of the network is this one or begins with it and a dot."""
        return any(key == start or key.startswith(start + ".") for key in self.inside)

    def count(self, start: str) -> int:
        """Number of consecutive modules `start`0, `start`1, ..., such as the blocks of a stage."""
        number = 0
        while self.has(f"{start}{number}"):
            number += 1
        return number

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            InputError: no such key, or a single number.
        """
        if key not in self.inside:
            raise InputError(
                f"{self.path} is no network of the family '{self.family}': the key "
                f"'{self.prefix}{key}' is missing; choose another family with --as"
            )
        if not self.inside[key].ndim:
            self.refuse(f"'{self.prefix}{key}' is a single number")
        return tuple(self.inside[key].shape)

    def take(self, key: str, *shape: int) -> Tensor:
        """A tensor as float32; zeros if it is missing or of another shape, see `check`.

        Args:
            key: without the prefix.
            shape: expected.
        """
        self._taken.add(key)
        if key not in self.inside:
            self._missing.append(key)
        elif tuple(self.inside[key].shape) != shape:
            given = tuple(self.inside[key].shape)
            self._wrong.append(f"'{self.prefix}{key}' is {given}, expected {shape}")
        else:
            return self.inside[key].detach().to(torch.float32, copy=True)
        return torch.zeros(shape)

    def drop(self, start: str, reason: str) -> None:
        """Leave out the keys that begin with a text; the reason is told."""
        dropped = [key for key in self.inside if key.startswith(start) and key not in self._taken]
        self._taken.update(dropped)
        if dropped:
            self._dropped[f"{self.prefix}{start}"] = reason

    def beside(self, name: str) -> Keys | None:
        """The tensors of a module beside the network, such as a head; None without it."""
        parent = self.prefix.removesuffix(".").rpartition(".")[0]
        start = f"{parent}.{name}." if parent else f"{name}."
        found = {k[len(start) :]: v for k, v in self.outside.items() if k.startswith(start)}
        self.outside = {k: v for k, v in self.outside.items() if not k.startswith(start)}
        return Keys(self.path, self.family, start, found, {}, {}) if found else None

    def refuse(self, reason: str) -> NoReturn:
        """Raise an error that names the file and the family."""
        raise InputError(
            f"{self.path} does not fit the family '{self.family}': {reason}; choose another family "
            "with --as, or get the file as published"
        )

    def check(self) -> None:
        """Check that every tensor of the network was taken or dropped.

        Raises:
            InputError: keys that are missing, of another shape or left over, by their names.
        """
        given = [k for k in self.inside if k not in self._taken and not k.endswith(_COUNTER)]
        problems = [
            f"{len(found)} {what}: {_listed(found)}"
            for what, found in (
                ("missing", [f"{self.prefix}{key}" for key in self._missing]),
                ("of another shape", self._wrong),
                ("left over", [f"{self.prefix}{key}" for key in given]),
            )
            if found
        ]
        if problems:
            self.refuse(f"keys {'; '.join(problems)}")

    @property
    def left_out(self) -> list[str]:
        """What of the file is not part of the network, a sentence each."""
        told = [f"{start}*: {reason}" for start, reason in self._dropped.items()]
        if self.outside:
            parts = sorted({key.partition(".")[0] for key in self.outside})
            told.append(f"{len(self.outside)} tensors of other parts ({', '.join(parts[:4])})")
        return told


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def read_published(path: Path, source: str) -> Published:
    """Read a safetensors or torch file; no code in it runs.

    Args:
        path: the file.
        source: of such files, for messages.

    Raises:
        InputError: no such file, a damaged one, one with code in it, or one without tensors.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the downloaded file of weights")
    content = read_content(path, source)
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in _flat(content, ""):
        if isinstance(value, Tensor):
            tensors[key] = value
        else:
            values[key] = value
    if not tensors:
        raise InputError(f"{path}: no tensors in it; give a file of weights")
    return Published(path, tensors, values)


def _flat(content: Any, start: str) -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value of nested mappings; lists are values."""
    if not isinstance(content, Mapping):
        yield start, content
        return
    for key, value in content.items():
        yield from _flat(value, f"{start}.{key}" if start else str(key))
