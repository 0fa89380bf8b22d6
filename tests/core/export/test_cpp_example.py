# SPDX-License-Identifier: Apache-2.0
"""The C++ example is built with ONNX Runtime's own headers and labels a sweep as Python does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud
from pcseg_core.export.description import describe, metadata
from pcseg_core.export.writer import build
from pcseg_core.online.segmenter import Segmenter

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "cpp"
HEADER = "onnxruntime_cxx_api.h"


def headers() -> Path:
    """Folder of the C++ headers of ONNX Runtime; pip's package has only the library."""
    root = os.environ.get("ONNXRUNTIME_ROOT")
    places = [Path(root) / "include"] if root else []
    for prefix in ("/usr/local/include", "/usr/include"):
        places += [Path(prefix), Path(prefix, "onnxruntime")]
    for place in places:
        if (place / HEADER).is_file():
            return place
    pytest.skip(f"no {HEADER}: unpack a release of ONNX Runtime and set ONNXRUNTIME_ROOT to it")


def prefix(folder: Path) -> Path:
    """A folder with the headers and pip's library under the names of a release."""
    onnxruntime = pytest.importorskip("onnxruntime")
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)
    if library is None:
        pytest.skip("onnxruntime of pip has no libonnxruntime.so")
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(headers())
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    folder = tmp_path_factory.mktemp("cpp")
    found = f"-DCMAKE_PREFIX_PATH={prefix(folder / 'onnxruntime')}"
    warn = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror=return-type"
    for command in (
        ["cmake", "-S", str(EXAMPLE), "-B", str(folder / "build"), found, warn],
        ["cmake", "--build", str(folder / "build")],
    ):
        result = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "warning: " not in result.stderr.replace(str(headers()), ""), result.stderr
    return folder / "build" / "label_sweep"


def label(program: Path, model: Path, points: np.ndarray) -> np.ndarray:
    points.tofile(model.parent / "sweep.bin")
    names = [str(model), str(model.parent / "sweep.bin"), str(model.parent / "sweep.label"), "2"]
    result = subprocess.run([str(program), *names], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{len(points)} points, ")
    return np.fromfile(model.parent / "sweep.label", "<u4")


@pytest.mark.parametrize(
    "settings",
    [{"width": 0.5}, {"depth": 18, "inputs": ("range", "intensity", "offset"), "max_range_m": 30}],
)
def test_labels_equal_those_of_the_segmenter(
    settings: dict[str, object],
    program: Path,
    make_segmenter: Callable[..., Segmenter],
    tmp_path: Path,
) -> None:
    segmenter = make_segmenter(voxel_size_m=0.4, **settings)
    rng = np.random.default_rng(0)
    points = rng.normal(0, (15, 15, 1, 0.5), (5000, 4)).astype(np.float32)
    points[::40, 0], points[1::40, :3], points[2::40, 3] = np.nan, 0, np.nan
    model = build(segmenter)
    for key, value in metadata(describe(segmenter, "fp32", None)).items():
        model.metadata_props.add(key=key, value=value)
    (tmp_path / "student.onnx").write_bytes(model.SerializeToString())
    for count in (5000, 2, 0):
        given = label(program, tmp_path / "student.onnx", points[:count])
        result = segmenter.segment(PointCloud(points[:count, :3], points[:count, 3]))
        assert np.array_equal(given, result.labels + 1)  # 0 is unlabeled


def test_bad_input_ends_with_one_line(program: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    names = [str(tmp_path / "bad.onnx"), "none.bin", str(tmp_path / "out.label")]
    result = subprocess.run([str(program), *names], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr.startswith("error: ")
    assert subprocess.run([str(program)], capture_output=True, timeout=60).returncode == 2
