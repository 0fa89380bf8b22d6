# SPDX-License-Identifier: Apache-2.0
"""Weights by name: found, checked, downloaded and converted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pcseg_core.bundled import WEIGHTS_VARIABLE, find_file
from pcseg_core.cli import app
from pcseg_core.errors import InputError
from pcseg_core.files import file_checksum
from pcseg_core.known_weights import KNOWN, cache_folder
from pcseg_core.vision.espnetv2 import ESPNetv2
from pcseg_core.vision.weight_store import add_file, convert_espnetv2, download

NAME = "espnetv2-cityscapes"
ENTRY = KNOWN[NAME]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published file as EdgeNets has it, known by checksum, and empty folders to look in."""
    torch.manual_seed(0)
    file = tmp_path / "edgenets" / ENTRY.published
    file.parent.mkdir()
    state = ESPNetv2(20, 0.5).state_dict()
    torch.save(state, file)
    save_file(dict(state), str(tmp_path / "converted"))
    sums = (file_checksum(file), file_checksum(tmp_path / "converted"), "0" * 64)
    monkeypatch.setitem(KNOWN, NAME, replace(ENTRY, url=file.as_uri(), sums=sums))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "own"))
    return file


def test_a_missing_file_says_which_one_goes_where(published: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        find_file(NAME, tmp_path)
    for part in (ENTRY.file, str(cache_folder()), str(tmp_path / "own"), f"weights get {NAME}"):
        assert part in str(told.value)
    assert "weights add espnetv2_s_2.0_city_1024x512.pth" in str(told.value)


def test_the_cache_comes_before_the_folders_of_the_variable(
    published: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own" / ENTRY.published  # as published, not converted
    own.parent.mkdir()
    own.write_bytes(published.read_bytes())
    assert find_file(NAME, tmp_path) == own
    stored = download(NAME)
    assert stored == cache_folder() / ENTRY.file == find_file(NAME, tmp_path)
    tensors, before = load_file(str(stored)), torch.load(published, weights_only=True)
    assert set(tensors) == set(before)
    assert all(torch.equal(tensors[key], before[key]) for key in tensors)


def test_another_file_of_that_name_is_refused(published: Path, tmp_path: Path) -> None:
    place = tmp_path / "own" / ENTRY.file
    place.parent.mkdir()
    place.write_bytes(b"other")
    with pytest.raises(InputError, match=f"{place} is not '{NAME}': its SHA-256 is"):
        find_file(NAME, tmp_path)
    with pytest.raises(InputError, match="is not"):
        add_file(place, NAME)
    with pytest.raises(InputError, match="none of the known weights"):
        unknown = tmp_path / "what.pth"
        unknown.write_bytes(b"1")
        add_file(unknown)
    assert not cache_folder().exists()


def test_without_a_network_the_message_says_how_to_carry_the_file(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.unlink()
    with pytest.raises(InputError, match=r"cannot download .* run `pcseg weights add espnetv2_s_2"):
        download(NAME)


def test_files_with_code_or_other_tensors_are_not_converted(tmp_path: Path) -> None:
    code, other = tmp_path / "code.pth", tmp_path / "other.pth"
    torch.save({"state_dict": {}, "hook": Path.cwd}, code)
    torch.save({"weight": torch.zeros(2)}, other)
    with pytest.raises(InputError, match="can run code when read"):
        convert_espnetv2(code, tmp_path / "out.safetensors")
    with pytest.raises(InputError, match="not ESPNetv2 segmentation weights"):
        convert_espnetv2(other, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_command_lists_finds_and_adds(published: Path, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["weights", *words])
        assert result.exit_code == 0, result.output
        return result.output

    assert "not on this machine" in run("list") and ENTRY.network in run("list")
    assert str(cache_folder() / ENTRY.file) in run("add", str(published)).replace("\n", "")
    assert run("where", NAME).replace("\n", "").endswith(ENTRY.file)
    wrong = CliRunner().invoke(app, ["weights", "where", "espnetv2-city"])
    assert wrong.exit_code == 2 and f"did you mean '{NAME}'" in wrong.output
    out = tmp_path / "mine.safetensors"
    run("convert", str(published), "--out", str(out))
    assert file_checksum(out) == KNOWN[NAME].sums[1]


def test_the_checksums_are_those_of_the_published_weights(shared_data: Path) -> None:
    for name in (NAME, f"{NAME}-small", "deeplab-cityscapes"):
        file = shared_data / "weights" / KNOWN[name].file
        assert file_checksum(file) in KNOWN[name].sums
