# SPDX-License-Identifier: Apache-2.0
"""Caches at URLs: entries lie at the URL and, within a bound, in a local copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from object_storage import NoCredentialsError, Storage, storage
from typer.testing import CliRunner

from pcseg_core import copies
from pcseg_core.cli import app
from pcseg_core.copies import CACHE, RUN, local_copy, shown, url_of
from pcseg_core.distill.cache import is_whole, read_arrays, write_arrays
from pcseg_core.errors import InputError, Unavailable
from pcseg_core.vision.image_cache import SuperpixelCache
from pcseg_core.vision.superpixels import SegmentMap

__all__ = ["storage"]

URL = "storage://bucket/cache"
ENTRY = {"pose": np.eye(4), "image": np.arange(2000, dtype=np.float32)}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the copies of this machine."""
    return another(tmp_path / "one", monkeypatch)


def another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go on as a machine with a folder of its own."""
    monkeypatch.setenv(copies.FOLDER, str(folder))
    monkeypatch.setattr(copies, "_grown", [float("inf")])
    return folder


def test_a_path_tells_the_url_of_its_copy(machine: Path) -> None:
    for place in (URL, Path(URL), f"{URL}/"):
        folder = local_copy(place, CACHE)
        assert folder.parent == machine and url_of(folder) == URL
    assert url_of(folder / "segments" / "a.npz") == f"{URL}/segments/a.npz"
    assert url_of(local_copy("file:///mnt/a b", RUN) / "logs") == "file:///mnt/a b/logs"
    assert shown(f"{folder / 'a.npz'}: damaged") == f"{URL}/a.npz: damaged"
    for path in ("runs/first", "cache=3/x.npz", "/a/run=b"):
        assert local_copy(path, CACHE) == Path(path)
        assert url_of(Path(path)) is None and shown(path) == path
    with pytest.raises(InputError, match="too long"):
        local_copy("s3://bucket/" + "a" * 300, CACHE)


@pytest.mark.usefixtures("machine")
def test_a_new_folder_may_be_named_by_a_file_url(tmp_path: Path) -> None:
    folder = local_copy(f"file://{tmp_path}/mount/new", CACHE)
    copies.check(folder)
    write_arrays(folder / "sub" / "a.npz", ENTRY)
    assert (tmp_path / "mount/new/sub/a.npz").read_bytes() == (folder / "sub/a.npz").read_bytes()


def test_an_entry_is_made_on_one_machine_and_read_on_another(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_arrays(local_copy(URL, CACHE) / "sub" / "a.npz", ENTRY)
    plain = tmp_path / "plain.npz"
    write_arrays(plain, ENTRY)
    assert Storage().cat("/bucket/cache/sub/a.npz") == plain.read_bytes()
    another(tmp_path / "two", monkeypatch)
    there = local_copy(URL, CACHE) / "sub" / "a.npz"
    assert is_whole(there) and not there.is_file() and not Storage.reads
    found = read_arrays(there, ("image",))
    assert there.read_bytes() == plain.read_bytes() and len(Storage.reads) == 1
    read_arrays(there)
    assert len(Storage.reads) == 1
    there.unlink()  # as for the bound
    assert (found["image"][5:7] == [5, 6]).all() and there.is_file()
    assert not is_whole(there.with_name("b.npz"))
    with pytest.raises(InputError, match="damaged"):
        read_arrays(there.with_name("b.npz"))


def test_the_copy_keeps_what_was_used_last(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, size = local_copy(URL, CACHE), 8_400
    monkeypatch.setenv(copies.GIGABYTES, str(3.5 * size / 1e9))
    for name in "abcd":
        write_arrays(folder / f"{name}.npz", ENTRY)
        (folder / "notes.txt").write_text("mine" * size)
        read_arrays(folder / "a.npz")
    here = sorted(path.stem for path in folder.glob("*.npz"))
    assert here == ["a", "c", "d"] and (folder / "notes.txt").is_file()
    assert len(read_arrays(folder / "b.npz")["image"]) == 2000
    monkeypatch.setenv(copies.GIGABYTES, "none")
    with pytest.raises(InputError, match=f"{copies.GIGABYTES}=none: expected a number"):
        copies.check(folder)


def test_an_entry_is_at_both_places_or_at_none(machine: Path) -> None:
    path = local_copy(URL, CACHE) / "a.npz"
    Storage.failures += [OSError(16, "503 Slow Down")] * 5
    with pytest.raises(Unavailable, match="storage://bucket/cache/a.npz: OSError.*503"):
        write_arrays(path, ENTRY)
    assert not path.exists() and not is_whole(path)
    Storage.failures += [OSError(16, "503 Slow Down")] * 4
    write_arrays(path, ENTRY)
    assert path.is_file() and Storage().exists("/bucket/cache/a.npz")
    path.unlink()
    Storage.failures += [TimeoutError("no answer")] * 4
    assert len(read_arrays(path)) == 2


def test_superpixels_go_to_the_url(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Halves:
        name, parameters = "halves", {"parts": 2}

        def segment(self, image: np.ndarray) -> SegmentMap:
            made.append(image.shape)
            return SegmentMap((np.arange(16).reshape(4, 4) // 8).astype(np.int32))

    made: list[tuple[int, ...]] = []
    for name in ("one", "two"):
        another(tmp_path / name, monkeypatch)
        cache = SuperpixelCache(local_copy(URL, CACHE) / "superpixels-0", Halves())
        assert cache.get("drive", "image", lambda: np.zeros((4, 4, 3), np.uint8)).ids.max() == 1
    assert len(made) == 1


def test_a_url_that_cannot_be_used_is_an_error_before_the_work(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(url: str) -> str:
        command = ["distill", "simulated:seed=5,sweeps=2", "--out", str(tmp_path / "run")]
        result = CliRunner().invoke(app, [*command, "--cache", url])
        assert result.exit_code == 2, result.output
        return result.output

    def refuse(*_: object, **__: object) -> None:
        raise error

    assert "nothing://a" in told("nothing://a")
    monkeypatch.setattr(Storage, "pipe_file", refuse)
    error: Exception = NoCredentialsError("Unable to locate credentials")
    assert "no credentials" in told(URL) and "AWS_ACCESS_KEY_ID" in told(URL)
    error = PermissionError("Forbidden")
    assert "not permitted: Forbidden" in told(URL)
    error = ConnectionError("Connection refused")
    assert "ConnectionError: Connection refused" in told(URL)
    assert not (tmp_path / "run").exists()
