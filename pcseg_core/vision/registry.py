# SPDX-License-Identifier: Apache-2.0
"""Kinds of image networks by name: those of the package, and those that other packages add.

A kind is an options section and a function that loads what the options describe. Other packages
add kinds by entry points; the group is that of the registry, such as `pcseg.teachers`:

    [project.entry-points."pcseg.teachers"]
    mine = "my_package.teacher:KIND"   # a Kind
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from pcseg_core.bundled import find_file
from pcseg_core.config import Section, parse_section
from pcseg_core.errors import InputError
from pcseg_core.files import file_checksum

_LONGEST_NAME = 100

Made_co = TypeVar("Made_co", covariant=True)
Base = TypeVar("Base", bound="KindConfig")


OWN = "pcseg"
"""Package of the kinds that come with this one, in `Registry.names`."""


class LocatedPath:
    """Marks a field that holds the path of a file or folder: `Annotated[Path, LocatedPath()]`."""


class KindConfig(Section):
    """Options of a kind; `name` selects it."""

    name: str

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the results depend on, as JSON can write it; files by checksum."""
        settings = self.model_dump(mode="json", exclude_none=True)
        return settings | {key: checksum(find_file(path, Path())) for key, path in self.paths()}

    def relative_to(self, folder: Path) -> Self:
        """The same with absolute paths, see `find_file`.

        Args:
            folder: of the file that names the paths.

        Raises:
            InputError: a file does not exist.
        """
        found = {key: find_file(path, folder) for key, path in self.paths()}
        return self.model_copy(update=found)

    def paths(self) -> Iterator[tuple[str, Path]]:
        """Name and path of each field with `LocatedPath` that has one."""
        for key, entry in type(self).model_fields.items():
            value = getattr(self, key)
            if isinstance(value, Path) and any(isinstance(m, LocatedPath) for m in entry.metadata):
                yield key, value


Options = TypeVar("Options", bound=KindConfig)


@dataclass(frozen=True)
class Kind(Generic[Options, Made_co]):
    """One kind.

    Attributes:
        options: section of its options, with the kind's name as the default of `name`.
        load: makes it from its options, for a device ("cpu", "cuda").
        summary: one line for `pcseg doctor`.
    """

    options: type[Options]
    load: Callable[[Options, str], Made_co]
    summary: str = ""


class Registry(Generic[Base, Made_co]):
    """The kinds of one role.

    Args:
        role: for messages, such as "teacher".
        group: of the entry points.
        base: options that all kinds of the role have.
        own: name -> "module:attribute" of the kinds of this package.
        default: name where a configuration gives none; empty if a name is required.
        former: keys of earlier versions, which kinds without them accept at these values.
    """

    def __init__(
        self,
        role: str,
        group: str,
        base: type[Base],
        own: Mapping[str, str],
        default: str = "",
        former: Mapping[str, object] | None = None,
    ) -> None:
        self.role, self.group, self.base, self.default = role, group, base, default
        self._own, self._former = dict(own), dict(former or {})

    def names(self) -> dict[str, str]:
        """Name -> package of every kind, those of this package first."""
        found = dict.fromkeys(self._own, OWN)
        for entry in entry_points(group=self.group):
            found.setdefault(entry.name, entry.dist.name if entry.dist else entry.value)
        return found

    def kind(self, name: object) -> Kind[Any, Made_co]:
        """The kind of a name.

        Raises:
            InputError: no such kind, or its package cannot be imported.
        """
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            raise InputError(f"name of a {self.role}: {str(name)[:80]!r}; expected a word")
        if name in self._own:
            module, _, attribute = self._own[name].partition(":")
            found: Kind[Any, Made_co] = getattr(import_module(module), attribute)
            return found
        entry = next(iter(entry_points(group=self.group, name=name)), None)
        if entry is None:
            known = self.names()
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise InputError(
                f"no {self.role} '{name}': {hint}installed are {', '.join(known)}; packages add "
                f"others by entry points of the group {self.group}"
            )
        return self._loaded(entry)

    def _loaded(self, entry: EntryPoint) -> Kind[Any, Made_co]:
        try:
            found = entry.load()
        except Exception as error:  # code of another package
            raise InputError(
                f"{self.role} '{entry.name}' ({entry.value}) cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, Kind) or not issubclass(found.options, self.base):
            raise InputError(
                f"{self.role} '{entry.name}': {entry.value} is no Kind with options of "
                f"{self.base.__name__}; see docs/teachers.md"
            )
        return found

    def section(self, values: Mapping[str, Any]) -> type[Base]:
        """The options section that values select by their `name`.

        Raises:
            InputError: no such kind.
        """
        options: type[Base] = self.kind(values.get("name") or self.default).options
        return options

    def read(self, values: object) -> Base:
        """Options from plain values, or the options themselves.

        Raises:
            ValueError: no mapping, no such kind, unknown keys or invalid values.
        """
        if isinstance(values, self.base):
            return values
        if not isinstance(values, Mapping):
            raise ValueError(f"expected the name and the options of a {self.role}")
        return self.section(values).model_validate(self._current(values))

    def parse(self, values: Mapping[str, Any], source: str) -> Base:
        """Options from plain values; `source` names them in messages.

        Raises:
            InputError: no such kind, unknown keys or invalid values.
        """
        return parse_section(self._current(values), self.section(values), source)

    def _current(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values without keys of earlier versions."""
        fields = self.section(values).model_fields
        return {k: v for k, v in values.items() if k in fields or not self._is_former(k, v)}

    def _is_former(self, key: str, value: object) -> bool:
        return key in self._former and value == self._former[key]

    def load(self, config: Base, device: str = "cpu") -> Made_co:
        """Make what options describe; the kind gets them with absolute paths.

        Raises:
            InputError, MissingDependency: see the kind; a file does not exist.
        """
        made: Made_co = self.kind(config.name).load(config.relative_to(Path()), device)
        return made


def checksum(path: Path) -> str:
    """SHA-256 of a file; of a folder, of the names, sizes and times of its files."""
    if not path.is_dir():
        return file_checksum(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        state = file.stat()
        entry = f"{file.relative_to(path)} {state.st_size} {state.st_mtime_ns}\n"
        digest.update(entry.encode())
    return digest.hexdigest()
