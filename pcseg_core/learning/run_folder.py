# SPDX-License-Identifier: Apache-2.0
"""Run directories: claimed for one recipe and its sources, resumed, recognized when finished.

Nothing here imports torch, so that commands check paths and finished runs at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml

from pcseg_core.bundled import FILE_NAME, bundled_file, checkpoint_file
from pcseg_core.config import Section, read_yaml
from pcseg_core.copies import shown
from pcseg_core.data import find_source, fingerprint, split_query
from pcseg_core.errors import InputError
from pcseg_core.fetched import fetched
from pcseg_core.files import FolderKind, check_new_folder, claim_folder, write_atomic
from pcseg_core.learning.run_mirror import clear, mirror, sync
from pcseg_core.progress import note
from pcseg_core.storage import as_url, is_url

RECIPE, LAST, METRICS, COMMAND = "recipe.yaml", "last.ckpt", "metrics.json", "command.yaml"
_SHOWN = 4  # differences in a message


def is_first_process() -> bool:
    """Whether this is the first process of torchrun, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _check_recipe(file: Path) -> None:
    content = read_yaml(file)
    if set(content) != {"recipe", "sources"} or not isinstance(content["recipe"], dict):
        raise InputError(f"{file.name} is not the recipe of a run")


_FILES = (RECIPE, FILE_NAME, METRICS, LAST, COMMAND)

RUN = FolderKind(
    "run directory",
    RECIPE,
    _check_recipe,
    (
        *_FILES,
        *(f".{name}.*/*" for name in _FILES),  # of writes that were killed
        "logs/*",
        "shards/*",
        "pseudo_labels/*.npz",
        "round-*/logs/*",
        "round-*/pseudo_labels/*.npz",
        f"round-*/{LAST}",
        f"round-*/.{LAST}.*/*",
        "cache/*.npz",
        "cache/superpixels-*/*",
    ),
)
"""Run directories: everything that training writes into them."""


def check_claim(out: Path, recipe: Section, sources: Sequence[str], fresh: bool = False) -> None:
    """Check that `claim` would succeed, without writing anything.

    The copy of a run at a URL becomes the run there, see `run_mirror`.

    Raises:
        InputError: see `claim`.
    """
    if fresh:
        check_new_folder(out, RUN, force=True)
        clear(out, RUN, only_check=True)
        return
    sync(out, RUN, push=is_first_process())
    if not claim_folder(out, RUN) or not _has_results(out):
        return
    if different := _differences(read_yaml(out / RECIPE), _content(recipe, sources)):
        listed = "; ".join(different[:_SHOWN])
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        raise InputError(
            f"{shown(out)} holds a run with another recipe, seed or sources ({listed}{more}); "
            "choose another --out, or start over with --fresh"
        )


def resumed(
    out: Path, recipe: Section, sources: Sequence[str], fresh: bool, **wanted: object
) -> dict[str, Any] | None:
    """`check_claim`, then the figures of a finished run that is not deleted; see `finished`."""
    check_claim(out, recipe, sources, fresh)
    return None if fresh else finished(out, **wanted)


def claim(out: Path, recipe: Section, sources: Sequence[str], fresh: bool = False) -> None:
    """Claim a run directory: make it, or resume the run in it.

    Claim after everything that can be wrong has been checked. A directory without results of a
    training is claimed again.

    Args:
        out: the directory.
        recipe: of the run.
        sources: all else that identifies the run; see `identity` and `named`.
        fresh: delete an earlier run in it, whatever its recipe.

    Raises:
        InputError: it holds another run (the message names the differences) or something else.
    """
    check_claim(out, recipe, sources, fresh)
    wanted = _content(recipe, sources)
    if fresh:
        clear(out, RUN)
    if not claim_folder(out, RUN, fresh=fresh) or read_yaml(out / RECIPE) != wanted:
        write_atomic(out / RECIPE, yaml.safe_dump(wanted, sort_keys=False))
    if is_first_process():
        mirror(out)


def finished(out: Path, **wanted: object) -> dict[str, Any] | None:
    """Figures of the finished run in a directory, which is told; None if it has not finished.

    Args:
        out: the directory.
        wanted: figures that it must have, such as the recordings that it was measured on.
    """
    if not (out / FILE_NAME).is_file():
        return None
    try:
        figures = json.loads((out / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(figures, dict) or any(figures.get(k) != v for k, v in wanted.items()):
        return None
    note(f"{shown(out)}: this run has finished; --fresh starts it over")
    return figures


def identity(source: str, exclude: Collection[Path] = ()) -> str:
    """A source with the absolute path of its recording, and a fingerprint of its files.

    Args:
        source: bag, or reader:path?options; a missing path is not an error here.
        exclude: folders inside the recording that do not belong to it, such as the run directory.
    """
    try:
        reader, place = find_source(source)
    except InputError:
        return source
    if reader == "simulated":
        given = [item.partition("=")[2] for item in place.split(",")]
        prints = [fingerprint(value)[:12] for value in given if value and Path(value).is_file()]
        return f"{source} (files {'-'.join(prints)})" if prints else source
    path, query = split_query(place)
    options = [value for _, value in parse_qsl(query) if Path(value).is_file()]
    files = "-".join(fingerprint(place, exclude)[:12] for place in (path, *options))
    whole = path if is_url(path) else Path(path).resolve()
    return f"{reader}:{whole}{'?' if query else ''}{query} (files {files})"


def named(name: str, path: Path | None) -> list[str]:
    """["NAME PATH (files FINGERPRINT)"] of a file, folder or checkpoint of a run; [] for None."""
    if path is None:
        return []
    if url := as_url(path):
        return [f"{name} {url} (files {fingerprint(checkpoint_file(path))[:12]})"]
    place = bundled_file(path) or (path / FILE_NAME if (path / FILE_NAME).is_file() else path)
    return [f"{name} {place.resolve()} (files {fingerprint(place)[:12]})"]


def local_run(run: Path) -> Path:
    """A run directory on this machine; from a URL, all but caches and states is fetched.

    Raises:
        InputError: no run at the URL; or the storage refuses, see `storage.listing`.
    """
    url = as_url(run)
    if url is None:
        return run
    return fetched(url, (RECIPE, FILE_NAME, METRICS, "pseudo_labels/*.npz"))


def _has_results(out: Path) -> bool:
    """Whether a training has started in a run directory; prepared sweeps alone do not count."""
    results = (LAST, FILE_NAME, METRICS, "logs", "pseudo_labels", "shards")
    return any((out / name).exists() for name in results)


def _content(recipe: Section, sources: Sequence[str]) -> dict[str, Any]:
    return {"recipe": recipe.model_dump(mode="json"), "sources": list(sources)}


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """ "optimizer.steps: 60 there, 150 here" for every value that differs."""
    old, new = dict(_values(there)), dict(_values(here))
    return [
        f"{key.removeprefix('recipe.')}: {old.get(key, 'nothing')} there, "
        f"{new.get(key, 'nothing')} here"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def _values(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Values inside of mappings and lists, by their dotted path."""
    pairs: Any = ()
    if isinstance(content, Mapping):
        pairs = content.items()
    elif isinstance(content, list):
        pairs = enumerate(content, start=1)
    else:
        yield key, content
    for name, value in pairs:
        yield from _values(value, f"{key}.{name}" if key else str(name))
