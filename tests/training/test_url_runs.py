# SPDX-License-Identifier: Apache-2.0
"""Runs at URLs: mirrored at each stored state, resumed on another machine, claimed by one job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from object_storage import Storage, storage
from processes import in_processes
from small_runs import STREET, semantic_kitti, write_run
from typer.testing import CliRunner, Result

from pcseg_core import copies
from pcseg_core.bundled import checkpoint_file
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cli import app
from pcseg_core.copies import RUN, local_copy
from pcseg_core.distill.observation import ClassEvidence
from pcseg_core.errors import InputError, Unavailable
from pcseg_core.learning import run_mirror, trainer
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.run_folder import RUN as KIND
from pcseg_core.learning.run_folder import named
from pcseg_core.learning.run_mirror import CLAIM, STATE, Claim, held, mirror, sync

__all__ = ["storage"]

URL = "storage://bucket/runs/first"
AT = "/bucket/runs/first"
SOURCE = "simulated:seed=5,sweeps=2,beams=16,columns=256,cameras=1,width=96,height=64"
RECIPE = """
teacher: {weights: "bundled:simulation_teacher", label_space: simulation, scales: [1.0], flip: no}
student: {depth: 14, width: 0.25, voxel_size_m: 0.5}
optimizer: {steps: 6, batch_size: 1}
loss: {min_confidence: 0.0}
"""


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """States every two steps, claims within tenths of a second."""
    monkeypatch.setattr("pcseg_core.learning.module.STEPS_PER_EPOCH", 2)
    for name, seconds in (("_BEAT_S", 0.05), ("_SILENT_S", 0.5), ("_POLL_S", 0.05)):
        monkeypatch.setattr(run_mirror, name, seconds)
    monkeypatch.setattr(run_mirror, "_SETTLE_S", 0.0)
    another(tmp_path / "one", monkeypatch)
    monkeypatch.setenv("PCSEG_FETCHED", str(tmp_path / "fetched"))
    yield


def another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on as a machine with other local copies."""
    monkeypatch.setenv(copies.FOLDER, str(folder))


def distilled(folder: Path, out: object, *options: str) -> Result:
    (folder / "recipe.yaml").write_text(RECIPE)
    command = ["distill", SOURCE, "--recipe", str(folder / "recipe.yaml"), "--out", str(out)]
    return CliRunner().invoke(app, [*command, "--device", "cpu", *options])


def at_url() -> set[str]:
    return {path.removeprefix(f"{AT}/") for path in Storage().find(AT)}


def no_teacher(*_: object, **__: object) -> None:
    raise AssertionError("the teacher has labeled these sweeps")


def test_a_run_goes_on_elsewhere_without_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ("--cache", "storage://bucket/cache")
    assert distilled(tmp_path, tmp_path / "plain", *cache).exit_code == 0
    assert not (tmp_path / "plain" / "cache").exists()
    monkeypatch.setattr(ClassEvidence, "evidence", no_teacher)
    real, stored = trainer._States.on_train_epoch_end, []

    def end(self: Any, trainer: Any, *args: Any) -> None:
        real(self, trainer, *args)
        stored.append(trainer.global_step)
        if stored == [2, 4]:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer._States, "on_train_epoch_end", end)
    another(tmp_path / "two", monkeypatch)
    assert distilled(tmp_path, URL, *cache).exit_code != 0
    assert {"recipe.yaml", "last.ckpt", STATE} <= at_url() and CLAIM not in at_url()
    another(tmp_path / "three", monkeypatch)
    result = distilled(tmp_path, URL, *cache)
    assert result.exit_code == 0, result.output
    assert stored[:2] == [2, 4] and stored[2] > 4 and stored[-1] == 6
    assert f"{URL}: 2 sweeps, 6 steps" in result.output
    plain, mirrored = (load_checkpoint(run)[0] for run in (tmp_path / "plain", Path(URL)))
    assert all(torch.equal(value, mirrored[name]) for name, value in plain.items())
    another(tmp_path / "four", monkeypatch)
    monkeypatch.setattr(trainer, "train", no_teacher)
    assert f"{URL}: this run has finished" in distilled(tmp_path, URL, *cache).stderr
    picture = tmp_path / "a.png"
    shown = CliRunner().invoke(app, ["view", URL, "--picture", str(picture), "--device", "cpu"])
    assert shown.exit_code == 0 and picture.is_file(), shown.output


def write(out: Path, **files: str) -> None:
    for name, text in files.items():
        path = out / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def texts(out: Path) -> dict[str, str]:
    found = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_text() for path in found}


RUN_FILE = "recipe: {}\nsources: []\n"


def test_the_newer_version_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = local_copy(URL, RUN)
    with held(one, KIND):
        write(one, recipe_yaml=RUN_FILE, logs__metrics_csv="1", last_ckpt="1")
    another(tmp_path / "two", monkeypatch)
    two = local_copy(URL, RUN)
    sync(two, KIND)
    assert texts(two) == texts(one)
    write(two, last_ckpt="2")
    (two / "logs" / "metrics.csv").unlink()
    mirror(two / "logs")
    assert "logs/metrics.csv" not in at_url()
    write(one, last_ckpt="an older state", logs__notes_txt="of it")
    another(tmp_path / "one", monkeypatch)
    sync(one, KIND)
    assert texts(one) == texts(two)
    write(one, last_ckpt="3")  # and killed before it was mirrored
    sync(one, KIND)
    assert Storage().cat(f"{AT}/last.ckpt") == b"3"
    Storage().rm(AT, recursive=True)
    sync(one, KIND)
    assert not texts(one)


def test_silent_storage_does_not_end_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = local_copy(URL, RUN)
    write(out, recipe_yaml=RUN_FILE)
    Storage.failures += [OSError(16, "503 Slow Down")] * 5
    mirror(out, patient=True)
    assert not Storage().find("/bucket")
    Storage.failures += [OSError(16, "503 Slow Down")] * 5
    with pytest.raises(Unavailable, match="503"):
        mirror(out)
    mirror(out, patient=True)
    assert at_url() == {"recipe.yaml", STATE}


def test_two_jobs_do_not_share_a_url(tmp_path: Path) -> None:
    out = local_copy(URL, RUN)
    with held(out, KIND):
        with pytest.raises(InputError, match=f"another job writes there .process {os.getpid()}"):
            Claim(URL).take()
        result = distilled(tmp_path, URL)
        assert result.exit_code == 2 and "another job writes there" in result.output
    assert not at_url() and not out.exists()
    script = (
        "import os, sys; from pcseg_core.learning.run_mirror import _process\n"
        "import json; print(json.dumps({'job': 'x', **_process(os.getpid())}))"
    )
    dead = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    Storage().pipe_file(f"{AT}/{CLAIM}", dead)
    with held(out, KIND):  # at once
        assert json.loads(Storage().cat(f"{AT}/{CLAIM}"))["pid"] == os.getpid()


def test_a_job_elsewhere_is_given_time_for_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Claim(URL)
    there._own["host"] = "elsewhere"
    there.take()
    with pytest.raises(InputError, match="another job writes there .* on elsewhere"):
        Claim(URL).take()
    there._ended.set()  # as if it was killed
    there._thread.join()
    here = Claim(URL)
    here.take()
    assert not here.lost
    there._ended.clear()
    there._renew()  # it was only silent
    assert there.lost
    there.release()
    assert json.loads(Storage().cat(f"{AT}/{CLAIM}"))["job"] == here._own["job"]
    here.release()


def test_a_job_that_lost_its_url_writes_nothing_more() -> None:
    out = local_copy(URL, RUN)
    with pytest.raises(InputError, match="another job has taken it over"), held(out, KIND):
        Storage().pipe_file(f"{AT}/{CLAIM}", b'{"job": "other"}')
        write(out, recipe_yaml=RUN_FILE)
        renewing = (thread for thread in threading.enumerate() if "_renew" in thread.name)
        next(renewing).join(60)
    assert at_url() == {CLAIM}


def test_what_others_put_at_a_url_is_safe(tmp_path: Path) -> None:
    Storage().pipe_file(f"{AT}/thesis.txt", b"years of work")
    result = distilled(tmp_path, URL)
    assert result.exit_code == 2 and f"{URL} exists and is not a run directory" in result.output
    Storage().pipe_file(f"{AT}/recipe.yaml", RUN_FILE.encode())
    Storage().pipe_file(f"{AT}/cache/a.npz", b"prepared")
    result = distilled(tmp_path, URL, "--fresh")
    assert result.exit_code == 2 and "did not write (thesis.txt)" in result.output
    assert at_url() == {"thesis.txt", "recipe.yaml", "cache/a.npz"}
    Storage().rm_file(f"{AT}/thesis.txt")
    assert distilled(tmp_path, URL, "--fresh").exit_code == 0
    assert "cache/a.npz" not in at_url() and "checkpoint.safetensors" in at_url()
    assert sum(name.startswith("cache/") for name in at_url()) == 2


def test_two_machines_train_a_run_at_a_url(tmp_path: Path) -> None:
    """Processes with copies of their own; killed, they resume with the machines exchanged."""
    start, labeled = write_run(tmp_path / "start"), semantic_kitti(tmp_path / "labeled", 2)
    (tmp_path / "recipe.yaml").write_text("optimizer: {steps: 8, batch_size: 2}\n")
    there = tmp_path / "there"
    command = ["finetune", str(start), f"semantic-kitti:{labeled}", "--out", f"file://{there}"]

    def train(first: int, last: int) -> None:
        rank = int(os.environ["RANK"])
        os.environ[copies.FOLDER] = str(tmp_path / f"machine{rank ^ first}")
        real = TrainingModule.training_step

        def fragile(self: TrainingModule, batch: Any, index: int) -> Any:
            if self.global_step == last and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, batch, index)

        TrainingModule.training_step = fragile  # type: ignore[method-assign]
        options = ["--recipe", str(tmp_path / "recipe.yaml"), "--device", "cpu"]
        if code := app([*command, *options], standalone_mode=False):
            raise SystemExit(code)

    codes = in_processes(2, partial(train, 0, 5), tmp_path / "logs")
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    assert torch.load(there / "last.ckpt", weights_only=True)["global_step"] == 4
    codes = in_processes(2, partial(train, 1, -1), tmp_path / "logs")
    assert codes == [0, 0], [(tmp_path / f"logs/{rank}.txt").read_text() for rank in (0, 1)]
    assert json.loads((there / "metrics.json").read_text())["steps"] == 8
    assert len((there / "logs" / "pcseg.log").read_text().splitlines()) == 2
    assert (there / "shards" / "index-1.npz").is_file() and not (there / CLAIM).exists()


def test_a_run_that_was_copied_to_a_url_goes_on_there(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "logs/metrics.csv", "pseudo_labels/0.npz", "cache/a.npz"):
        Storage().pipe_file(f"{AT}/{name}", RUN_FILE.encode())
    out = local_copy(URL, RUN)
    sync(out, KIND)
    assert set(texts(out)) == {"recipe.yaml", "logs/metrics.csv"} and STATE in at_url()


def test_runs_at_urls_are_arguments(tmp_path: Path) -> None:
    def put(run: Path) -> None:
        Storage().put_file(str(run / "checkpoint.safetensors"), f"{AT}/checkpoint.safetensors")

    put(write_run(tmp_path / "first", 0, classes=STREET))
    for url in (URL, f"{URL}/checkpoint.safetensors", Path(URL)):
        file = checkpoint_file(url)
        assert file.read_bytes() == (tmp_path / "first/checkpoint.safetensors").read_bytes()
    assert len(Storage.reads) == 1
    before = named("start", Path(URL))
    assert before == named("start", Path(URL)) and before[0].startswith(f"start {URL} (files ")
    put(write_run(tmp_path / "second", 1, classes=STREET))
    assert checkpoint_file(URL) != file and named("start", Path(URL)) != before
    with pytest.raises(InputError, match="no checkpoint at storage://bucket/none: expected a run"):
        checkpoint_file("storage://bucket/none")
    picture = tmp_path / "a.png"
    shown = ["view", SOURCE, "--checkpoint", URL, "--picture", str(picture), "--device", "cpu"]
    result = CliRunner().invoke(app, shown)
    assert result.exit_code == 0 and picture.is_file(), result.output
    same = distilled(tmp_path, URL, "--start", URL)
    assert same.exit_code == 2 and f"--out {URL} is the run of --start" in same.output
