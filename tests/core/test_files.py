# SPDX-License-Identifier: Apache-2.0
"""Atomic writing under failures, and errors for packages that are not installed."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from pcseg_core.config import read_yaml
from pcseg_core.errors import InputError, MissingDependency, PcsegError, require
from pcseg_core.files import (
    FolderKind,
    atomic_path,
    check_new_folder,
    claim_folder,
    is_special,
    write_atomic,
)


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


def test_private_temporary_files_become_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "run") as folder:
            folder.mkdir(mode=0o700)
            (folder / "weights").touch(mode=0o600)
        with atomic_path(tmp_path / "file") as file:
            file.touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {p: stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("run", "run/weights", "file")}
    assert modes == {"run": 0o750, "run/weights": 0o640, "file": 0o640}


def check_run(marker: Path) -> None:
    if set(read_yaml(marker)) != {"recipe"}:
        raise InputError("its recipe.yaml is of another program")


RUN = FolderKind("run directory", "recipe.yaml", check_run, ("logs/*.csv", "weights"))


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def make_run(folder: Path) -> Path:
    (folder / "logs").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("recipe: {}")
    (folder / "logs" / "a.csv").write_text("")
    (folder / "weights").write_text("")
    return folder


def test_new_and_empty_folders_are_free_and_ours_are_continued(tmp_path: Path) -> None:
    assert not claim_folder(tmp_path / "new", RUN)
    assert not claim_folder(tmp_path, RUN)
    assert claim_folder(make_run(tmp_path / "run"), RUN)


def test_fresh_deletes_all_that_we_wrote(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert not claim_folder(run, RUN, fresh=True)
    assert run.is_dir() and not any(run.iterdir())


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("marker", [None, "other: program", "- a list", "{unbalanced"])
def test_folders_of_others_stay(tmp_path: Path, fresh: bool, marker: str | None) -> None:
    (tmp_path / "weights").write_text("theirs")
    if marker is not None:
        (tmp_path / "recipe.yaml").write_text(marker)
    before = files_in(tmp_path)
    with pytest.raises(InputError, match="is not a run directory"):
        claim_folder(tmp_path, RUN, fresh=fresh)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "logs/thesis.tex", "weights.bak"])
def test_files_of_others_in_our_folder_keep_it_whole(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text("theirs")
    before = files_in(run)
    with pytest.raises(InputError, match=f"did not write .{name}"):
        claim_folder(run, RUN, fresh=True)
    assert files_in(run) == before


def test_links_are_removed_and_what_they_point_to_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.csv").write_text("")
    run = make_run(tmp_path / "run")
    (run / "weights").unlink()
    (run / "weights").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    claim_folder(run, RUN, fresh=True)
    assert not any(run.iterdir()) and (tmp_path / "elsewhere" / "b.csv").is_file()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out exists and is not a run directory"):
        claim_folder(tmp_path / "out", RUN, fresh=True)


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_atomic(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"
    assert names(tmp_path) == ["link.json", "real.json"]


def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    write_atomic("/dev/null", "gone")
    assert is_special(Path("/dev/null"))
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomic(tmp_path / "pipe", "through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert names(tmp_path) == ["pipe"] and is_special(tmp_path / "pipe")


def test_dash_is_the_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_atomic("-", "grün")
    assert capfdbinary.readouterr().out == "grün".encode()
    assert not Path("-").exists()


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


def test_what_a_killed_process_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    out, kind = tmp_path / "out", FolderKind("result", "mark", lambda marker: None, ())
    for name in (".out.pcseg-abcdefgh", ".other.pcseg-abcdefgh", ".out.original", ".out.pcseg-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    with atomic_path(out) as temporary:
        temporary.write_text("still being written")
        check_new_folder(tmp_path / "out", kind, force=False)
        assert temporary.is_file()
        assert not (tmp_path / ".out.pcseg-abcdefgh").exists()
    assert out.read_text() == "still being written"
    kept = {".other.pcseg-abcdefgh", ".out.original", ".out.pcseg-x", "out"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    ours = tmp_path / "ours"
    for name in ("mark", "deep/.labels.pcseg-12345678/half"):
        (ours / name).parent.mkdir(parents=True, exist_ok=True)
        (ours / name).touch()
    assert claim_folder(ours, kind)
    assert [path.name for path in sorted(ours.rglob("*"))] == ["deep", "mark"]
