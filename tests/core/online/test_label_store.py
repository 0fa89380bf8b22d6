# SPDX-License-Identifier: Apache-2.0
"""`pcseg segment` stopped at any moment: the same command does the rest."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from forks import end_self, run_in_child

from pcseg_core import cli
from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.online.label_store import LabelStore
from pcseg_core.online.pipeline import Pipeline, Sweep

SCANS = 5
STREET = LabelSpace.load("street")


class Network:
    """Stands in for the segmenter: labels by height.

    Args:
        called: is called with the number of the sweep.
    """

    label_space = STREET
    engine = "stand-in"

    def __init__(self, called: Callable[[int], None] = lambda number: None) -> None:
        self.called, self.calls = called, 0

    def segment(self, cloud: PointCloud, probabilities: bool = False) -> SimpleNamespace:
        self.called(self.calls)
        self.calls += 1
        labels = (cloud.xyz[:, 2] > 0).astype(np.int32)
        sure = np.full(len(labels), 0.5, np.float32)
        result = SimpleNamespace(labels=labels, confidence=sure, timings_ms={})
        result.label_space, result.out_of_range, result.not_finite = None, len(labels), 0
        result.uncalibrated = None
        return result


@pytest.fixture(autouse=True)
def _logs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCSEG_TEST_LOGS", str(tmp_path_factory.mktemp("logs")))


@pytest.fixture
def source(sequence: Callable[..., Path]) -> str:
    return f"semantic-kitti:{sequence('drive', scans=SCANS)}"


def segment(
    source: str, out: Path, *options: str, number: int = signal.SIGKILL, moment: str = ""
) -> tuple[int, str, int]:
    """Exit code, messages, and number of sweeps that the network labeled.

    The command sends a signal to itself at a moment: at a sweep, inside the record of a sweep, or
    before or after the result is put in its place.
    """
    logs = Path(tempfile.mkdtemp(dir=os.environ["PCSEG_TEST_LOGS"]))
    calls = logs / "calls"
    calls.write_text("")

    def called(index: int) -> None:
        with calls.open("a") as file:
            file.write(f"{index}\n")
        if moment == f"sweep {index}":
            end_self(number)

    append, replace = LabelStore._append, Path.replace

    def cut(self: LabelStore, index: int, labeled: Any) -> None:
        append(self, index, labeled)
        if moment == f"record {index}":
            self._file.truncate(self.path.stat().st_size - 100)
            end_self(number)

    def rename(self: Path, target: Path) -> Path:
        if moment == "before":
            end_self(number)
        moved = replace(self, target)
        if moment == "after":
            end_self(number)
        return moved

    def command() -> None:
        module = ModuleType("pcseg_core.online.segmenter")
        loader = SimpleNamespace(load=lambda *arguments, **options: Network(called))
        module.Segmenter = loader  # type: ignore[attr-defined]
        sys.modules["pcseg_core.online.segmenter"] = module
        LabelStore._append, Path.replace = cut, rename  # type: ignore[method-assign, assignment]
        sys.argv = ["pcseg", "segment", source, "--checkpoint", "bundled", "--out", str(out)]
        sys.argv += options
        cli.main()

    code, text = run_in_child(command, logs / "log")
    return code, text, len(calls.read_text().split())


def content(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def left_over(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("moment", "kept"),
    [("sweep 0", 0), ("sweep 3", 3), ("record 0", 0), ("record 2", 2), ("before", SCANS)],
)
def test_sigkill_at_any_moment_loses_at_most_one_sweep(
    source: str, tmp_path: Path, moment: str, kept: int
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    code, _, _ = segment(source, out, number=signal.SIGKILL, moment=moment)
    assert code == -signal.SIGKILL
    assert not out.exists()
    code, text, labeled = segment(source, out)
    assert code == 0, text
    assert labeled == SCANS - kept
    assert ("resuming" in text) == (kept > 0)
    assert f"{SCANS} sweeps labeled" in text
    assert segment(source, whole)[0] == 0
    assert content(out) == content(whole)
    assert left_over(tmp_path) == {"drive", "out", "whole"}


def test_sigkill_after_the_result_is_complete(source: str, tmp_path: Path) -> None:
    code, _, _ = segment(source, tmp_path / "out", number=signal.SIGKILL, moment="after")
    assert code == -signal.SIGKILL
    assert segment(source, tmp_path / "whole")[0] == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    code, text, labeled = segment(source, tmp_path / "out", "--force")
    assert (code, labeled) == (0, 0), text
    assert left_over(tmp_path) == {"drive", "out", "whole"}


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_signals_store_and_say_so(
    source: str, tmp_path: Path, number: int, code: int, word: str
) -> None:
    out = tmp_path / "out"
    ended, text, _ = segment(source, out, "--bag", number=number, moment="sweep 3")
    assert ended == code
    assert f"labels of 3 sweeps are stored in {out}.partial; run the same" in text
    assert word in text and "Traceback" not in text
    assert left_over(tmp_path) == {"drive", "out.partial"}
    code, text, labeled = segment(source, out, "--bag")
    assert (code, labeled) == (0, SCANS - 3), text
    assert segment(source, tmp_path / "whole", "--bag")[0] == 0
    names = {"metadata.yaml", "labels.yaml"}
    assert names <= set(content(out)) and len(content(out)) == 3


def test_a_result_inside_of_its_source_resumes_too(source: str, tmp_path: Path) -> None:
    out = tmp_path / "drive" / "out"
    assert segment(source, out, moment="sweep 3")[0] == -signal.SIGKILL
    code, text, labeled = segment(source, out)
    assert (code, labeled) == (0, SCANS - 3), text


def test_labels_of_other_files_are_not_taken(
    source: str, sequence: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert segment(source, out, number=signal.SIGKILL, moment="sweep 4")[0] == -signal.SIGKILL
    sweep = tmp_path / "drive" / "velodyne" / "000000.bin"
    points = np.fromfile(sweep, np.float32)
    (points * 2).tofile(sweep)
    code, text, labeled = segment(source, out)
    assert (code, labeled) == (0, SCANS), text


def test_a_file_of_the_user_is_left_alone(source: str, tmp_path: Path) -> None:
    mine = tmp_path / "out.partial"
    mine.write_text("years of work")
    code, text, labeled = segment(source, tmp_path / "out")
    assert (code, labeled) == (2, 0) and "out.partial is in the way" in text
    assert mine.read_text() == "years of work"
    with pytest.raises(InputError, match="in the way"), LabelStore(tmp_path / "out", {}):
        pass


def test_any_cut_and_any_damage_ends_the_store_there(tmp_path: Path) -> None:
    sweeps = [Sweep(PointCloud(np.full((count, 3), 1.0))) for count in (3, 0, 5)]

    def run() -> int:
        network = Network()
        pipeline = Pipeline(network)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError), LabelStore(tmp_path / "out", {"a": 1}) as store:
            for index, sweep in enumerate(sweeps):
                labeled = store.process(pipeline, index, sweep)
                assert (labeled.labels == 1).all() and (labeled.confidence == 0.5).all()
                assert len(labeled.labels) == len(sweep.cloud)
            raise RuntimeError
        return network.calls

    path = tmp_path / "out.partial"
    assert run() == 3
    whole = path.read_bytes()
    assert run() == 0 and path.read_bytes() == whole
    for place in range(len(whole)):
        path.write_bytes(whole[:place])
        missing = run()
        assert 1 <= missing <= 3
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        if place >= 16:  # the mark of the file is intact
            assert 1 <= run() <= 3


def test_a_trainer_with_its_own_handler_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: cli._terminate(signal.SIGTERM, None))
    try:
        os.kill(os.getpid(), signal.SIGTERM)  # raises nothing
    finally:
        signal.signal(signal.SIGTERM, before)
