# SPDX-License-Identifier: Apache-2.0
"""Many sources by few words: patterns such as drives/2026-11-*, and files that list sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from pcseg_core.data import READERS, split_query
from pcseg_core.errors import InputError
from pcseg_core.files import exists
from pcseg_core.storage import is_url, matching

LISTED = "@"
"""First character of a source that is a file which lists sources."""

_WILD = "*["  # "?" begins options


def expand_sources(sources: Sequence[str]) -> list[str]:
    """Sources with patterns and lists replaced by what they stand for, each once, in order.

    Args:
        sources: bags, reader:path or URLs, with * and [...] in the path for several, and options
            after a "?"; or @FILE, whose lines are such sources. Paths in a file are relative to its
            folder; empty lines and those that begin with # do not count.

    Raises:
        InputError: a pattern that nothing matches, or a list that cannot be read or names nothing.
    """
    return list(dict.fromkeys(found for source in sources for found in _expanded(source)))


def _expanded(source: str) -> Iterator[str]:
    if source.startswith(LISTED) and not exists(source):
        yield from _listed(Path(source.removeprefix(LISTED)))
    else:
        yield from _matches(source)


def _listed(file: Path) -> Iterator[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{LISTED}{file}: cannot read the list of sources: {error}") from error
    named = [line for line in lines if line and not line.startswith("#")]
    if not named:
        raise InputError(f"{LISTED}{file}: names no source; expected one on each line")
    for line in named:
        if line.startswith(LISTED):
            raise InputError(f"{LISTED}{file}: '{line}' is a list in a list; name its sources")
        reader, place = _parts(line)
        whole = reader == "simulated:" or is_url(place)
        yield from _matches(line if whole else f"{reader}{file.parent / place}")


def _matches(source: str) -> Iterator[str]:
    """The sources that a pattern stands for, sorted; a source without a pattern as it is."""
    reader, place = _parts(source)
    path, query = split_query(place)
    if reader == "simulated:" or exists(path) or not any(c in path for c in _WILD):
        yield source
        return
    found = matching(path) if is_url(path) else sorted(glob(path))  # noqa: PTH207 - that of Path takes no absolute pattern
    if not found:
        raise InputError(f"{source}: no file or folder matches this pattern")
    for name in found:
        yield f"{reader}{name}{'?' if query else ''}{query}"


def _parts(source: str) -> tuple[str, str]:
    """ "reader:" of a source, empty without one, and the rest."""
    reader, colon, place = source.partition(":")
    return (f"{reader}:", place) if colon and reader in READERS else ("", source)
