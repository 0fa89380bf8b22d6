# SPDX-License-Identifier: Apache-2.0
"""Recordings on object storage: fetched once, kept within a bound, never at the cost of others."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from object_storage import NoCredentialsError, Storage, storage
from recordings import bag

from pcseg_core import fetched
from pcseg_core.data import find_source, fingerprint, open_recording
from pcseg_core.data.source_list import expand_sources
from pcseg_core.errors import InputError, MissingDependency, Unavailable
from pcseg_core.fetched import FetchedFolder
from pcseg_core.learning.run_folder import identity
from pcseg_core.storage import listing, matching

__all__ = ["storage"]


def put(storage: Storage, path: str, size: int) -> None:
    storage.pipe_file(path, bytes(size))


@pytest.fixture
def folder(tmp_path: Path) -> FetchedFolder:
    return FetchedFolder(tmp_path / "fetched", 1000)


def test_a_bag_on_storage_is_the_same_bag(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = bag(tmp_path / "drive", 2)
    storage.put(str(here), "/bucket/drive", recursive=True)
    monkeypatch.setenv(fetched.FOLDER, str(tmp_path / "fetched"))
    source = "storage://bucket/drive"
    assert find_source(source) == ("bag", source)
    assert identity(source) == f"bag:{source} (files {fingerprint(source)[:12]})"
    near, far = open_recording(here), open_recording(f"{source}?poses=none")
    assert (near.name, len(near)) == (far.name, len(far)) and far.pose_source == "none"
    assert (near[0].cloud.xyz == far[0].cloud.xyz).all()


def test_entries_are_fetched_once_and_the_oldest_make_room(
    storage: Storage, folder: FetchedFolder
) -> None:
    for name in "abc":
        put(storage, f"/bucket/{name}/metadata.yaml", 100)
        put(storage, f"/bucket/{name}/data/{name}.mcap", 300)
    for name in "abab":
        entry = folder.fetch(f"storage://bucket/{name}")
        assert (entry.path / "data" / f"{name}.mcap").stat().st_size == 300
        assert entry.path.name == name
        entry.close()
    assert len(Storage.reads) == 4
    mine = folder.folder / "notes.json"
    mine.write_text("{}")
    folder.fetch("storage://bucket/a").close()  # now b is the oldest
    folder.fetch("storage://bucket/c").close()
    Storage.reads.clear()
    folder.fetch("storage://bucket/a").close()
    assert not Storage.reads
    folder.fetch("storage://bucket/b").close()
    assert len(Storage.reads) == 2
    total = sum(
        p.stat().st_size for p in folder.folder.rglob("*") if p.suffix in (".mcap", ".yaml")
    )
    assert total <= folder.limit and mine.is_file()


def test_only_files_that_were_fetched_are_deleted(storage: Storage, folder: FetchedFolder) -> None:
    put(storage, "/bucket/a", 600)
    put(storage, "/bucket/b", 600)
    entry = folder.fetch("storage://bucket/a")
    with pytest.raises(Unavailable, match="recordings in use fill"):
        folder.fetch("storage://bucket/b")
    foreign = entry.path.with_name("foreign")
    foreign.write_text("mine")
    entry.close()
    folder.fetch("storage://bucket/b").close()
    assert foreign.is_file() and not entry.path.exists()


def test_a_recording_holds_its_files(
    storage: Storage, folder: FetchedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader:
        skipped: dict[str, int] = {}

        def __init__(self, path: str) -> None:
            self.path = Path(path)

    from pcseg_core import data

    monkeypatch.setattr(data, "FetchedFolder", lambda: folder)
    monkeypatch.setattr(data, "_reader", lambda name: Reader)
    put(storage, "/bucket/a.mcap", 600)
    put(storage, "/bucket/b.mcap", 600)
    recording = open_recording("storage://bucket/a.mcap")
    assert recording.path.name == "a.mcap" and recording.path.stat().st_size == 600
    with pytest.raises(Unavailable):
        open_recording("bag:storage://bucket/b.mcap")
    del recording
    gc.collect()
    assert open_recording("bag:storage://bucket/b.mcap").path.is_file()


def test_another_version_is_another_entry(storage: Storage, folder: FetchedFolder) -> None:
    put(storage, "/bucket/a.mcap", 10)
    before = fingerprint("storage://bucket/a.mcap")
    first = folder.fetch("storage://bucket/a.mcap")
    put(storage, "/bucket/a.mcap", 20)
    assert fingerprint("storage://bucket/a.mcap") != before
    second = folder.fetch("storage://bucket/a.mcap")
    assert (first.path.stat().st_size, second.path.stat().st_size) == (10, 20)


def test_silent_storage_is_asked_again_with_a_bound(
    storage: Storage, folder: FetchedFolder
) -> None:
    put(storage, "/bucket/a/metadata.yaml", 10)
    Storage.failures += [OSError(16, "503 Slow Down")] * 4
    folder.fetch("storage://bucket/a").close()
    Storage.failures += [TimeoutError("no answer")] * 5
    with pytest.raises(Unavailable, match="storage://bucket/a: TimeoutError: no answer"):
        folder.fetch("storage://bucket/a")
    assert not Storage.failures
    Storage.failures += [NoCredentialsError("Unable to locate credentials")] * 9
    with pytest.raises(InputError, match="no credentials.*AWS_ACCESS_KEY_ID"):
        listing("storage://bucket/a")
    assert len(Storage.failures) == 8  # not asked again
    Storage.failures[:] = [PermissionError("Forbidden")]
    with pytest.raises(InputError, match="not permitted: Forbidden"):
        listing("storage://bucket/a")


@pytest.mark.parametrize("moment", [0, 1])
def test_a_broken_fetch_leaves_nothing_half(
    storage: Storage, folder: FetchedFolder, moment: int
) -> None:
    put(storage, "/bucket/a/metadata.yaml", 10)
    put(storage, "/bucket/a/a.mcap", 10)
    failing: Callable[..., None] = Storage.get_file

    def get(self: Storage, path: str, *args: Any, **kwargs: Any) -> None:
        if len(Storage.reads) == moment:
            raise KeyboardInterrupt
        failing(self, path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "get_file", get)
        with pytest.raises(KeyboardInterrupt):
            folder.fetch("storage://bucket/a")
    assert not [path for path in folder.folder.iterdir() if path.is_dir()]
    assert len(list(folder.fetch("storage://bucket/a").path.iterdir())) == 2


def test_patterns_stand_for_urls(storage: Storage, tmp_path: Path) -> None:
    for day in ("2026-11-01", "2026-11-02", "2026-12-01"):
        put(storage, f"/bucket/{day}/metadata.yaml", 1)
    found = [f"storage://bucket/2026-11-0{k}" for k in (1, 2)]
    assert matching("storage://bucket/2026-11-*") == found
    with_options = [f"bag:{url}?poses=none" for url in found]
    assert expand_sources(["bag:storage://bucket/2026-11-*?poses=none"]) == with_options
    (tmp_path / "list").write_text("storage://bucket/2026-12-*\n")
    assert expand_sources([f"@{tmp_path}/list"]) == ["storage://bucket/2026-12-01"]
    with pytest.raises(InputError, match="matches this pattern"):
        expand_sources(["storage://bucket/2027-*"])


def test_wrong_urls_are_errors(
    storage: Storage, folder: FetchedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="storage://bucket/none: no such file or folder"):
        find_source("storage://bucket/none")
    put(storage, "/bucket/photos/a.jpg", 1)
    with pytest.raises(InputError, match="cannot tell what kind of recording"):
        find_source("storage://bucket/photos")
    assert find_source("kitti-raw:storage://bucket/photos")[0] == "kitti-raw"
    with pytest.raises((InputError, MissingDependency), match="nothing://a"):
        listing("nothing://a")
    put(storage, "/bucket/large", 2000)
    with pytest.raises(InputError, match=f"set {fetched.GIGABYTES} higher"):
        folder.fetch("storage://bucket/large")
    monkeypatch.setenv(fetched.GIGABYTES, "many")
    with pytest.raises(InputError, match="expected a number of gigabytes"):
        FetchedFolder()
