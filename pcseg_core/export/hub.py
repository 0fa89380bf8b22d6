# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with their model card, to and from a model hub or a folder."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pcseg_core.bundled import FILE_NAME, checkpoint_file
from pcseg_core.checkpoint import CheckpointMeta, load_checkpoint
from pcseg_core.errors import InputError, require
from pcseg_core.export.model_card import model_card
from pcseg_core.files import FolderKind, check_new_folder, new_folder, write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.models.student import load_student, stored_config

CARD = "README.md"
SHARED = FolderKind("shared checkpoint", FILE_NAME, load_checkpoint, (CARD,))
"""Folders of a checkpoint and its card, which `push` and `pull` write."""
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_LOGIN = "check the name and the network; to log in run: hf auth login"


def is_folder(place: str) -> bool:
    """Whether a target or source is a folder: it begins with ., / or ~.

    Raises:
        InputError: neither a folder nor OWNER/NAME.
    """
    if place.startswith((".", "/", "~")):
        return True
    if not _NAME.fullmatch(place):
        raise InputError(
            f"'{place}': expected OWNER/NAME on a hub, or a folder that begins with ./, / or ~"
        )
    return False


def push(
    run: Path,
    target: str,
    data_license: str | None = None,
    *,
    private: bool = True,
    force: bool = False,
) -> str:
    """Put the checkpoint of a run, with its model card, on a hub or into a folder.

    Args:
        run: run directory or checkpoint.
        target: OWNER/NAME, or a folder that begins with ./, / or ~.
        data_license: of the recordings of the training; a hub needs it.
        private: whether a new page of the hub is visible to its owner alone.
        force: replace an earlier result in a folder.

    Returns:
        Where it is.

    Raises:
        InputError: no usable checkpoint, no license for a hub, a folder of something else, or the
            hub refuses.
        MissingDependency: huggingface_hub is not installed, for a hub.
    """
    local = is_folder(target)
    if not local and not data_license:
        raise InputError(
            "a push to a hub publishes what was learned from recordings, whose license binds; "
            "name it with --data-license (for example 'own recordings')"
        )
    if not local:
        require("huggingface_hub", "hub")
    meta = _checked(run)
    name = (Path(target) if local else Path(target.partition("/")[2])).expanduser().resolve().name
    card = model_card(name, meta, data_license)
    if local:
        place = Path(target).expanduser()
        with new_folder(place, SHARED, force=force) as folder:
            _fill(folder, checkpoint_file(run), card)
        return str(place)
    with tempfile.TemporaryDirectory() as temporary:
        _fill(folder := Path(temporary) / name, checkpoint_file(run), card)
        return _upload(folder, target, private)


def pull(source: str, out: Path, revision: str | None = None, *, force: bool = False) -> Path:
    """Take a checkpoint and its card from a hub or a folder, once it is known to load.

    Args:
        source: OWNER/NAME, or a folder that begins with ./, / or ~.
        out: the new folder.
        revision: branch, tag or commit of the hub.
        force: replace an earlier result at `out`.

    Raises:
        InputError: no usable checkpoint, `out` is taken, or the hub refuses.
        MissingDependency: huggingface_hub is not installed, for a hub.
    """
    local = is_folder(source)
    if not local:
        require("huggingface_hub", "hub")
    elif revision is not None:
        raise InputError("--revision belongs to a hub; a folder has none")
    check_new_folder(out, SHARED, force=force)
    with _found(source, local, revision) as place:
        meta = _checked(place)
        given = place / CARD
        card = given.read_text(encoding="utf-8") if given.is_file() else model_card(out.name, meta)
        with new_folder(out, SHARED, force=force) as folder:
            _fill(folder, checkpoint_file(place), card)
    return out


@contextmanager
def _found(source: str, local: bool, revision: str | None) -> Iterator[Path]:
    """A folder with the checkpoint of a source."""
    if local:
        yield Path(source).expanduser()
        return
    hub = require("huggingface_hub", "hub")
    with tempfile.TemporaryDirectory() as folder:
        wanted = {"allow_patterns": [FILE_NAME, CARD], "revision": revision}
        try:
            hub.snapshot_download(source, local_dir=folder, **wanted)
        except Exception as error:  # of the hub, of HTTP or of the network
            raise InputError(f"cannot pull {source} ({error}); {_LOGIN}") from error
        yield Path(folder)


def _upload(folder: Path, target: str, private: bool) -> str:
    hub = require("huggingface_hub", "hub")
    try:
        api = hub.HfApi()
        page = api.create_repo(target, private=private, exist_ok=True)
        api.upload_folder(repo_id=target, folder_path=folder, commit_message="Add a pcseg run")
    except Exception as error:  # of the hub, of HTTP or of the network
        raise InputError(f"cannot push to {target} ({error}); {_LOGIN}") from error
    return str(page)


def _checked(run: Path) -> CheckpointMeta:
    """Metadata of a checkpoint whose weights fit its network."""
    state, meta = load_checkpoint(run)
    classes = len(LabelSpace.from_dict(meta.label_space))
    load_student(stored_config(meta.student, run), classes, state, run)
    return meta


def _fill(folder: Path, checkpoint: Path, card: str) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copyfile(checkpoint, folder / FILE_NAME)
    write_atomic(folder / CARD, card)
