# SPDX-License-Identifier: Apache-2.0
"""The folder of a bag as an output of pcseg."""

from __future__ import annotations

import glob
from pathlib import Path

from pcseg_core.config import read_yaml
from pcseg_core.errors import InputError
from pcseg_core.files import FolderKind


def bag_folder(path: Path) -> FolderKind:
    """The kind of folder that a bag at `path` is, with the files that its metadata names."""
    metadata = path / "metadata.yaml"
    try:
        files = _data_files(metadata)
    except InputError:
        files = []
    data = [glob.escape(file) for file in files]
    logs = [f"{file}-{kind}" for file in data for kind in ("wal", "shm")]  # of a killed recorder
    contents = (*data, *logs, f"{metadata.name}.tmp", "labels.yaml")
    return FolderKind("bag", metadata.name, _data_files, contents)


def _data_files(metadata: Path) -> list[str]:
    """Names of the data files of a bag.

    Raises:
        InputError: the metadata is not that of a rosbag2.
    """
    about = read_yaml(metadata).get("rosbag2_bagfile_information")
    paths = about.get("relative_file_paths") if isinstance(about, dict) else None
    if not isinstance(paths, list):
        raise InputError(f"its {metadata.name} is not of rosbag2")
    return [str(path).rsplit("/", 1)[-1] for path in paths]
