# SPDX-License-Identifier: Apache-2.0
"""YAML files, tables of words, trajectories, and cached estimates."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from pcseg_core.data.calibration import load_calibration
from pcseg_core.data.odometry import read_tum
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.recipe import load_recipe
from pcseg_core.text_table import TextTable

from .folders import texts
from .harness import Target
from .mutations import altered, mutated
from .valid import check_pose

ROOT = Path(__file__).parents[2]
BOMBS = (
    "a: &a [*a]",
    "a: &a {b: *a}",
    "a: 2026-13-45",
    "[" * 3000,
    "a: 0x" + "f" * 3000,
    "? {a: 1} : 2",
    "? [a] : 2",
    "<<: [1, 2]",
    "a: !!python/object/apply:os.system [ls]",
    "a: !!binary ///",
    "a: !!set {1, 2}",
    "a: !!timestamp x",
    "1: 2\n1: 3",
    "name: \x00",
    "--- a\n--- b",
    "%YAML 3.0\n---\na: 1",
    "a0: &a0 [x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
)


@functools.cache
def _yaml_seeds(kind: str) -> list[bytes]:
    folder = ROOT / "pcseg_core"
    if kind == "recipe":
        return [path.read_bytes() for path in sorted((folder / "recipes").glob("*.yaml"))]
    if kind == "labels":
        return [path.read_bytes() for path in sorted((folder / "label_spaces").glob("*.yaml"))]
    if kind == "parameters":
        return [(ROOT / "config" / "segment.yaml").read_bytes()]
    rows = [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.2], [1.0, 0.0, 0.0, 0.0]]
    camera = {"T_cam_lidar": rows, "width": 40, "height": 20, "D": [0.1, 0.0, 0.0, 0.0, 0.0]}
    camera |= {"K": [30.0, 0, 19.5, 0, 30.0, 9.5, 0, 0, 1], "distortion_model": "plumb_bob"}
    content = {"cameras": {"front": camera, "rear": {"T_cam_lidar": rows}}, "T_body_lidar": rows}
    return [dumped(content)]


@st.composite
def documents(draw: st.DrawFn, kind: str) -> bytes:
    """A YAML file with changed bytes or values."""
    seeds = _yaml_seeds(kind)
    choice = draw(st.sampled_from(["bytes", "values", "values", "values", "bomb"]))
    if choice == "bytes":
        return draw(mutated(seeds))
    if choice == "bomb":
        bomb = draw(st.sampled_from(BOMBS)).encode()
        return bomb if draw(st.booleans()) else draw(st.sampled_from(seeds)) + b"\n" + bomb
    return dumped(draw(altered(_yaml_values(kind))))


@functools.cache
def _yaml_values(kind: str) -> list[Any]:
    return [yaml.safe_load(seed) for seed in _yaml_seeds(kind)]


def dumped(value: Any) -> bytes:
    """Plain values as YAML."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(value, Dumper=dumper, allow_unicode=True)).encode("utf-8", "replace")


def _written(case: bytes, folder: Path) -> Path:
    path = folder / "given.yaml"
    path.write_bytes(case)
    return path


def check_recipe(case: bytes, folder: Path) -> None:
    """A recipe that is read is written and read again."""
    recipe = load_recipe(_written(case, folder))
    content = json.loads(recipe.model_dump_json())
    _check_finite(content)
    again = load_recipe(_written(dumped(content), folder))
    assert again == recipe


def _check_finite(value: Any) -> None:
    """No number that is not finite, which JSON shows as null where a number must be."""
    if isinstance(value, dict):
        for inner in value.values():
            _check_finite(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_finite(inner)
    elif isinstance(value, float):
        assert np.isfinite(value), "a recipe holds a number that is not finite"


def check_labels(case: bytes, folder: Path) -> None:
    """Raw ids map into the classes, and the space survives its dictionary."""
    space = LabelSpace.load(_written(case, folder))
    ids = space.from_raw(np.append(np.arange(0, 70000, 97), list(space.raw_to_id)).astype(np.int64))
    assert ids.min() >= -1 and ids.max() < len(space)
    assert space.colorize(ids).shape == (len(ids), 3)
    assert len(set(space.names)) == len(space)
    assert LabelSpace.from_dict(space.to_dict()) == space


def check_calibration(case: bytes, folder: Path) -> None:
    """Extrinsics are rigid, and models project."""
    calibration = load_calibration(_written(case, folder))
    body = calibration.body()
    if body is not None:
        check_pose(body)
    for camera in calibration.cameras.values():
        check_pose(camera.extrinsic())
        model = camera.model()
        if model is not None:
            uv, valid = model.project(np.eye(3))
            assert np.isfinite(uv[valid]).all()


def check_parameters(case: bytes, folder: Path) -> None:
    """Values of the node that are read are finite."""
    from pcseg_ros.parameter_file import read

    _check_finite(read(_written(case, folder)).model_dump(mode="python"))


@functools.cache
def _tables() -> list[bytes]:
    """Files of words in several layouts."""
    words = ("car", "road", "traffic_light", "tree (plant)", "truck", "bicycle")
    vectors = np.random.default_rng(0).normal(size=(len(words), 4)).astype(np.float32)
    table = TextTable("fuzz", words, vectors, {"auto": "car"}, frozenset({"tree (plant)"}))
    buffers = []
    for header in (table.header(), {**table.header(), "words": "car"}, [], None):
        for dtype in (np.float32, np.float16):
            buffer = io.BytesIO()
            text = np.frombuffer(json.dumps(header).encode(), np.uint8)
            np.savez(buffer, header=text, vectors=vectors.astype(dtype), center=vectors[0])
            buffers.append(buffer.getvalue())
    return buffers


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """An npz of words: changed bytes, or another header or other vectors in a whole file."""
    if draw(st.booleans()):
        return draw(mutated(_tables()))
    with np.load(io.BytesIO(_tables()[0])) as stored:
        header = json.loads(bytes(stored["header"]))
        vectors, center = stored["vectors"].copy(), stored["center"].copy()
    header = draw(altered([header]))
    special = draw(st.sampled_from([np.nan, np.inf, 0.0, 1e38, 1e-45]))
    kind = draw(st.sampled_from(["", "number", "center", "short", "flat", "text", "scalar"]))
    if kind == "number":
        vectors[draw(st.integers(0, 5))] = special
    elif kind == "center":
        center[0] = special
    arrays: dict[str, Any] = {"vectors": vectors, "center": center}
    if kind == "short":
        arrays["center"] = center[:2]
    elif kind in ("flat", "text", "scalar"):
        other = {"flat": vectors.reshape(-1), "text": vectors.astype(str), "scalar": np.float32(1)}
        arrays[draw(st.sampled_from(["vectors", "center"]))] = other[kind]
    buffer = io.BytesIO()
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text = draw(st.sampled_from([text] * 9 + [b"[" * 100_000, b""]))
    np.savez(buffer, header=np.frombuffer(text, np.uint8), **arrays)
    found = buffer.getvalue()
    shapes = st.sampled_from([b"(9, 4)", b"(6, 9)", b"((6,4)", b"(-1,4)", b"(9e9,)"])
    return found.replace(b"(6, 4)", draw(shapes)) if draw(st.integers(0, 4)) == 0 else found


def check_table(case: bytes, folder: Path) -> None:
    """Each word has a finite unit vector, before and after it is stored."""
    path = folder / "given.npz"
    path.write_bytes(case)
    table = TextTable.load(path)
    assert table.vectors.shape == (len(table.words), table.channels)
    assert table.center is not None and table.center.shape == (table.channels,)
    assert np.isfinite(table.vectors).all() and np.isfinite(table.center).all()
    assert np.abs(np.linalg.norm(table.vectors, axis=1) - 1).max() < 1e-3
    known = [word for word in table.words if table.known(word)]
    assert table.embed(known).shape == (len(known), table.channels)
    table.near("car")
    table.save(path)
    again = TextTable.load(path)
    assert again.words == table.words and np.allclose(again.vectors, table.vectors, atol=1e-6)
    assert np.isfinite(table.extended(["zebra"], np.ones((1, table.channels))).vectors).all()


TUM = b"# poses\n" + b"\n".join(b"%d.%09d %d 0 0 0 0 0 1" % (1600000000, i, i) for i in range(9))


def check_tum(case: bytes, folder: Path) -> None:
    """Poses are rigid, and stamps increase."""
    path = folder / "given.txt"
    path.write_bytes(case)
    found = read_tum(path)
    assert len(found) and (np.diff(found.stamps_ns) > 0).all()
    for T in found.poses[:20]:
        check_pose(T)
    check_pose(found.at(int(found.stamps_ns[-1])))


def _yaml(kind: str, check: Any, examples: int) -> Target:
    return Target(
        kind, functools.partial(documents, kind), check, ("given", "label space"), examples
    )


TARGETS = (
    _yaml("recipe", check_recipe, 60),
    _yaml("labels", check_labels, 60),
    _yaml("calibration", check_calibration, 60),
    _yaml("parameters", check_parameters, 40),
    Target("words", tables, check_table, ("given", "text table"), 80),
    Target("poses-file", lambda: st.one_of(texts(TUM), mutated([TUM])), check_tum, ("given",), 80),
)
