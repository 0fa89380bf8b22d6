# SPDX-License-Identifier: Apache-2.0
"""Downloads, converts and stores the weights of `pcseg_core.known_weights`."""

from __future__ import annotations

import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from safetensors.torch import save_file

from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path, file_checksum
from pcseg_core.known_weights import KNOWN, cache_folder, check_sum
from pcseg_core.vision.teachers.espnetv2 import ESPNETV2_SOURCE, build_espnetv2
from pcseg_core.vision.weights import read_weights

_TIMEOUT_S = 60


def download(name: str) -> Path:
    """Download weights into the cache folder.

    Returns:
        The file in the cache.

    Raises:
        InputError: no network, or another file than expected.
    """
    entry = KNOWN[name]
    with tempfile.TemporaryDirectory(prefix="pcseg-weights-") as folder:
        file = Path(folder) / entry.published
        try:
            request = urllib.request.urlopen(entry.url, timeout=_TIMEOUT_S)
            with request as answer, file.open("wb") as out:
                shutil.copyfileobj(answer, out)
        except (urllib.error.URLError, OSError) as error:
            raise InputError(
                f"weights '{name}': cannot download {entry.url} ({error}); download it on another "
                f"machine and run `pcseg weights add {entry.published}` here"
            ) from None
        return add_file(file, name)


def add_file(file: Path, name: str | None = None) -> Path:
    """Copy weights into the cache folder; published files are converted.

    Args:
        file: as published, or converted.
        name: of the weights; None finds it by the checksum, else by the name of the file.

    Returns:
        The file in the cache.

    Raises:
        InputError: no such file, unknown weights, or a file with another checksum.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; give the downloaded file")
    name = name or name_of(file)
    check_sum(name, file)
    out = cache_folder() / KNOWN[name].file
    if KNOWN[name].convert and file.suffix != ".safetensors":
        return convert_espnetv2(file, out)
    with atomic_path(out) as temporary:
        shutil.copyfile(file, temporary)
    return out


def name_of(file: Path) -> str:
    """The name of weights, by the checksum of their file, else by its name.

    Raises:
        InputError: unknown weights.
    """
    found = file_checksum(file)
    for name, entry in KNOWN.items():
        if found in entry.sums:
            return name
    for name, entry in KNOWN.items():
        if file.name in (entry.file, entry.published):
            return name
    raise InputError(
        f"{file}: none of the known weights ({', '.join(KNOWN)}) by checksum or file name; give "
        "--name, or name the path of the file in the recipe"
    )


def convert_espnetv2(file: Path, out: Path) -> Path:
    """Convert ESPNetv2 segmentation weights to safetensors.

    Raises:
        InputError: no such file, one with code in it, or tensors that are missing or left over.
    """
    state = read_weights(file, ESPNETV2_SOURCE)
    build_espnetv2(state, file)
    with atomic_path(out) as temporary:
        save_file({key: value.contiguous() for key, value in state.items()}, str(temporary))
    return out
