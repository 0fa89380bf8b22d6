# SPDX-License-Identifier: Apache-2.0
"""Atomic writing under failures, and errors for packages that are not installed."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from pcseg_core.errors import InputError, MissingDependency, PcsegError, require
from pcseg_core.files import atomic_path, write_atomic


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_with_its_content_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.json"
    write_atomic(target, "grün")
    assert target.read_bytes() == "grün".encode()
    write_atomic(target, b"\x00\x01")
    assert target.read_bytes() == b"\x00\x01"
    assert names(target.parent) == ["report.json"]


def test_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "weights.bin"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as temporary:
        assert temporary.suffix == ".bin"
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["weights.bin"]


def test_folders_work_too_but_never_replace_a_full_one(tmp_path: Path) -> None:
    target = tmp_path / "bag"
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "metadata.yaml").write_text("x")
    assert (target / "metadata.yaml").read_text() == "x"
    with pytest.raises(InputError, match=r"bag.*choose another path"), atomic_path(target) as again:
        again.mkdir()
        (again / "other").write_text("y")
    assert names(target) == ["metadata.yaml"]
    assert names(tmp_path) == ["bag"]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(tmp_path / "a"):
        pass


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(tmp_path / "file" / "below", b"")


def test_missing_package_names_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependency, match=r"pip install 'pcseg_ros\[viewer\]'") as error:
        require("no_such_package_anywhere.submodule", "viewer")
    assert isinstance(error.value, (PcsegError, ImportError))
    (tmp_path / "needs_another_one.py").write_text("import no_such_package_anywhere")
    with pytest.raises(MissingDependency, match="'needs_another_one' needs 'no_such_package"):
        require("needs_another_one", "viewer")
    (tmp_path / "broken_library.py").write_text("raise ImportError('libfoo.so: not found')")
    with pytest.raises(MissingDependency, match=r"cannot be imported \(libfoo"):
        require("broken_library", "viewer")
    assert require("json", "viewer") is sys.modules["json"]
