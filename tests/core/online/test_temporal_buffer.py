# SPDX-License-Identifier: Apache-2.0
"""Evidence over time: Bayes by hand, motion, forgetting, arrivals, jumps and bounded memory."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler, invert, transform
from pcseg_core.labels import IGNORE
from pcseg_core.native import library
from pcseg_core.online.free_space import FreeSpace, half
from pcseg_core.online.temporal import TemporalBuffer, TemporalBufferConfig, spread
from pcseg_core.online.voxel_table import VoxelTable, voxel_keys

STEP = 100_000_000  # ns


def buffer(classes: int = 2, **settings: float) -> TemporalBuffer:
    return TemporalBuffer(TemporalBufferConfig(**settings), classes)


def looks(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32)


POINT = np.array([[5.05, 0.05, 0.05]], np.float32)


def test_two_looks_fuse_as_by_hand() -> None:
    """Log odds add, the first faded by e^-0.1; one look more counts a half for the confidence."""
    fused = buffer(memory_s=1.0, correlation=0.5)
    fused.update(POINT, looks((0.9, 0.1)), np.eye(4), 0)
    labels, confidence = fused.update(POINT, looks((0.3, 0.7)), np.eye(4), STEP)
    fade = np.exp(-0.1)
    odds = fade * np.log(0.9 / 0.1) + np.log(0.3 / 0.7)
    weight = fade + 1
    odds *= (1 + 0.5 * (weight - 1)) / weight
    assert labels.tolist() == [0] and labels.dtype == np.int32
    assert confidence[0] == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-4)


def test_the_probabilities_of_the_buffer_replace_those_observed_on_request() -> None:
    points = np.vstack([POINT, [[90.0, 0.0, 0.0]]]).astype(np.float32)  # the last one is far
    fused = buffer(3)
    for k, overwrite in enumerate((False, True)):
        observed = looks((0.6, 0.3, 0.1), (0.2, 0.3, 0.5))
        before = observed.copy()
        labels, confidence = fused.update(points, observed, np.eye(4), k * STEP, overwrite)
        assert (observed[0] == before[0]).all() == (not overwrite)
        assert (observed[1] == before[1]).all()
    assert observed.argmax(1).tolist() == labels.tolist() == [0, 2]
    np.testing.assert_allclose(observed.max(1), confidence, rtol=1e-6)
    np.testing.assert_allclose(observed.sum(1), 1, rtol=1e-6)


def test_the_first_look_is_kept_as_it_is() -> None:
    labels, confidence = buffer().update(POINT, looks((0.2, 0.8)), np.eye(4), 0)
    assert labels.tolist() == [1] and confidence[0] == pytest.approx(0.8, abs=1e-5)


def test_points_of_a_voxel_are_one_look() -> None:
    """Fifty points that say "1" in one sweep do not outvote two sweeps that say "0"."""
    fused = buffer(memory_s=60)
    for k in range(2):
        fused.update(POINT, looks((0.8, 0.2)), np.eye(4), k * STEP)
    many = np.repeat(POINT, 50, 0)
    labels, _ = fused.update(many, np.repeat(looks((0.3, 0.7)), 50, 0), np.eye(4), 2 * STEP)
    assert (labels == 0).all()


def test_evidence_stays_in_place_while_the_sensor_moves_and_turns() -> None:
    rng = np.random.default_rng(0)
    far = np.array([1e5, -2e5, 40])  # from the origin of odometry
    world = rng.uniform(-20, 20, (2000, 3)) + far
    truth = rng.integers(0, 3, 2000)
    world[:, 2] += 5 * truth  # classes lie apart
    clear = np.full((2000, 3), 0.1, np.float32)
    clear[np.arange(2000), truth] = 0.8
    fused, pose = buffer(3, gate_m=0), np.eye(4)
    for k in range(5):
        pose = from_euler(0.01 * k, 0.02 * k, 0.3 * k, (1e5 + k, -2e5 + 0.5 * k, 40))
        local = transform(invert(pose), world).astype(np.float32)
        labels, _ = fused.update(local, clear, pose, k * STEP)
        assert (labels == truth).all()
    blind = np.full((2000, 3), 1 / 3, np.float32)
    pose = from_euler(0, 0, 1.4, (1e5 + 4, -2e5, 40))
    local = transform(invert(pose), world).astype(np.float32)
    labels, _ = fused.update(local, blind, pose, 5 * STEP)
    assert (labels == truth).mean() > 0.97  # float32 moves some points across a face


def test_old_evidence_fades() -> None:
    fused = buffer(memory_s=0.2, max_gap_s=10)
    for k in range(10):
        fused.update(POINT, looks((0.95, 0.05)), np.eye(4), k * STEP)
    labels, _ = fused.update(POINT, looks((0.3, 0.7)), np.eye(4), 9 * STEP + 2_000_000_000)
    assert labels.tolist() == [1]


def scene(target: tuple[float, float, float] | None) -> np.ndarray:
    """A wall 20 m ahead, and a small plate in front of it."""
    y, z = np.meshgrid(np.linspace(-4, 4, 160), np.linspace(-2, 2, 80))
    wall = np.stack([np.full(y.size, 20.0), y.ravel(), z.ravel()], 1)
    if target is None:
        return wall.astype(np.float32)
    dy, dz = np.meshgrid(np.linspace(-0.3, 0.3, 25), np.linspace(-0.3, 0.3, 25))
    plate = np.stack([np.zeros(dy.size), dy.ravel(), dz.ravel()], 1) + target
    return np.concatenate([wall, plate]).astype(np.float32)


@pytest.mark.parametrize("gate_m, inherited", [(0.5, False), (0.0, True)])
def test_what_arrives_does_not_inherit_what_the_place_was(gate_m: float, inherited: bool) -> None:
    """A plate of class 1 stands long, goes, the wall is seen through its place, and one of class
    2 comes there."""
    fused = buffer(3, memory_s=10, gate_m=gate_m)

    def look(xyz: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray]:
        p = np.repeat(looks((0.9, 0.05, 0.05)), len(xyz), 0)
        p[xyz[:, 0] < 15] = np.full(3, 0.1, np.float32)
        p[xyz[:, 0] < 15, kind] = 0.8
        return xyz, p

    for k in range(10):
        fused.update(*look(scene((10.1, 0, 0)), 1), np.eye(4), k * STEP)
    fused.update(*look(scene(None), 1), np.eye(4), 10 * STEP)
    xyz, p = look(scene((10.1, 0, 0)), 2)
    labels, _ = fused.update(xyz, p, np.eye(4), 11 * STEP)
    plate = labels[xyz[:, 0] < 15]
    assert (plate == (1 if inherited else 2)).all()
    assert (labels[xyz[:, 0] > 15] == 0).all()
    assert (fused.counters["gated"] > 0) != inherited


def test_a_static_place_that_was_hidden_keeps_its_evidence() -> None:
    """Behind an occluder nothing was seen to be free, so nothing is forgotten."""
    wall, plate = scene(None), scene((10, 0, 0))
    free = FreeSpace(plate.T)
    behind = np.abs(wall[:, 1:]).max(1) < 0.4
    assert not free.passed(wall[behind].T, 0.5).any()
    before_wall = wall * np.float32(0.8)
    aside = np.abs(before_wall[:, 1]) > 1.5
    assert free.passed(before_wall[aside & (np.abs(wall[:, 2]) < 1.5)].T, 0.5).mean() > 0.95
    nowhere = np.array([[-5.0, 0, 0]], np.float32)  # no return came from there
    assert not free.passed(nowhere.T, 0.5).any()


@pytest.mark.parametrize("columns", [512, 1024, 2048])
def test_beams_leave_no_gap_between_columns(columns: int) -> None:
    """A wall around the sensor: every direction below it was passed."""
    turn = np.arange(columns) * 2 * np.pi / columns
    around = np.stack([np.cos(turn), np.sin(turn)], 1)
    rise = np.linspace(-0.2, 0.2, 32)
    xyz = np.array([(20 * x, 20 * y, 20 * z) for z in rise for x, y in around], np.float32)
    free = FreeSpace(xyz[half(len(xyz), None)].T)
    turn = np.linspace(-np.pi, np.pi, 5000)
    inside = np.stack([10 * np.cos(turn), 10 * np.sin(turn), np.zeros(5000)]).astype(np.float32)
    assert free.passed(inside, 0.5).all()


@pytest.mark.parametrize(
    "pose, stamp, reason",
    [
        (np.eye(4), 0, "reset_time"),
        (np.eye(4), -STEP, "reset_time"),
        (np.eye(4), 20 * STEP, "reset_time"),
        (from_euler(0, 0, 0, (50, 0, 0)), STEP, "reset_motion"),
        (from_euler(0, 0, 1.5, (0, 0, 0)), STEP, "reset_motion"),
    ],
)
def test_a_jump_starts_anew(pose: np.ndarray, stamp: int, reason: str) -> None:
    fused = buffer(memory_s=10, gate_m=0)
    fused.update(POINT, looks((1.0, 0.0)), np.eye(4), 0)
    local = transform(invert(pose), POINT.astype(np.float64)).astype(np.float32)
    labels, confidence = fused.update(local, looks((0.4, 0.6)), pose, stamp)
    assert labels.tolist() == [1] and confidence[0] == pytest.approx(0.6, abs=1e-5)
    assert fused.counters == {reason: 1}


def test_points_that_cannot_be_remembered_keep_their_own_label() -> None:
    fused = buffer(max_range_m=10)
    xyz = np.array([[np.nan, 0, 0], [20, 0, 0], [5, 0, 0], [5, 0, 3]], np.float32)
    p = looks((0.9, 0.1), (0.9, 0.1), (0, 0), (0.1, 0.9))
    for k in range(2):
        labels, confidence = fused.update(xyz, p, np.eye(4), k * STEP)
        assert labels.tolist() == [0, 0, IGNORE, 1]
        assert confidence[:3] == pytest.approx([0.9, 0.9, 0])
    empty = np.zeros((0, 3), np.float32)
    labels, _ = fused.update(empty, np.zeros((0, 2), np.float32), np.eye(4), 2 * STEP)
    assert len(labels) == 0


def test_labels_with_confidence_stand_for_probabilities() -> None:
    labels, confidence = np.array([2, IGNORE]), np.array([0.7, 0.0], np.float32)
    p = spread(labels, confidence, 4)
    assert p[0] == pytest.approx([0.1, 0.1, 0.7, 0.1]) and (p[1] == 0).all()
    xyz = np.array([[5, 0, 0], [6, 0, 0]], np.float32)
    fused, share = buffer(4).update(xyz, (labels, confidence), np.eye(4), 0)
    assert fused.tolist() == [2, IGNORE] and share == pytest.approx([0.7, 0])


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="probabilities of shape"):
        buffer(3).update(POINT, looks((1, 0)), np.eye(4), 0)
    with pytest.raises(InputError, match="points of shape"):
        buffer(2).update(POINT[:, :2], looks((1, 0)), np.eye(4), 0)
    with pytest.raises(InputError, match="pose"):
        buffer(2).update(POINT, looks((1, 0)), np.full((4, 4), np.nan), 0)


def test_memory_is_bounded_and_makes_room() -> None:
    """A full table drops no label; expired voxels give their place to new ones."""
    fused = buffer(2, capacity=1024, memory_s=0.1, max_speed_mps=1e4, gate_m=0)
    rng = np.random.default_rng(0)
    for k in range(20):
        xyz = rng.uniform(-30, 30, (3000, 3)).astype(np.float32)
        p = np.repeat(looks((0.3, 0.7)), 3000, 0)
        pose = from_euler(0, 0, 0, (60.0 * k, 0, 0))
        labels, _ = fused.update(xyz, p, pose, k * STEP)
        assert (labels == 1).all()
    assert fused.counters["overflow"] > 0 and len(fused._table) <= 1024
    fused.update(POINT, looks((0.9, 0.1)), pose, 40 * STEP)
    labels, _ = fused.update(POINT, looks((0.4, 0.6)), pose, 41 * STEP)
    assert labels.tolist() == [0]


@pytest.fixture(params=["native", "numpy"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The table's search with the native library and without."""
    if request.param == "numpy":
        monkeypatch.setattr(library, "load", lambda: "not built")
    elif isinstance(library.load(), str):
        pytest.skip("the native library was not built")
    return str(request.param)


def put(table: VoxelTable, keys: list[int], now: float) -> list[float]:
    """What the keys' rows held, NaN for keys without; now they hold the keys."""
    wanted = np.array(keys, np.int64)
    rows, group, _ = table.locate(wanted, expired=-1.0)
    held = np.append(table.rows[rows, 0], np.nan)[group]
    kept = group >= 0
    table.rows[rows[group[kept]], 0] = wanted[kept]
    table.seen[rows] = now
    return held.tolist()


@pytest.mark.usefixtures("search")
def test_a_full_table_forgets_what_was_seen_longest_ago() -> None:
    table = VoxelTable(8, 1)  # a key may lie in any of its rows
    for number in range(8):
        assert put(table, [100 + number], now=float(number)) == [0]
    assert put(table, [200, 100, 201, 103], now=8.0) == [0, 100, 0, 103]
    # 101 and 102 made room, for 100 was asked for in the same call
    assert len(table) == 8
    assert put(table, [104, 105, 106, 107], now=9.0) == [104, 105, 106, 107]
    many = put(table, list(range(300, 320)), now=10.0)
    assert np.isnan(many).sum() == 12 and many.count(0) == 8


@pytest.mark.usefixtures("search")
def test_expired_voxels_make_room_before_younger_ones_and_stay_until_then() -> None:
    table = VoxelTable(8, 1)
    for number in range(8):
        put(table, [100 + number], now=float(-number))  # the last two are older than -5.5
    table.locate(np.array([200, 201], np.int64), expired=-5.5)
    rows, _, _ = table.locate(np.arange(100, 106, dtype=np.int64), expired=-5.5)
    assert table.rows[rows, 0].tolist() == [100, 101, 102, 103, 104, 105]
    rows, _, _ = table.locate(np.array([105], np.int64), expired=1.0)
    assert table.rows[rows, 0].tolist() == [105]  # found, though expired


@pytest.mark.parametrize("classes", [2, 8, 300])
def test_memory_is_bounded_however_many_the_classes(classes: int) -> None:
    table = TemporalBuffer(TemporalBufferConfig(memory_mb=16), classes)._table
    used = sum(a.nbytes for a in (table.rows, table._slots))
    assert 8e6 < used <= 16e6
    assert len(TemporalBuffer(TemporalBufferConfig(), 8)._table.seen) == 2**20


@pytest.mark.usefixtures("search")
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(st.integers(0, 40), max_size=60), max_size=8), st.integers(1, 9))
def test_the_table_is_a_dictionary_with_a_bound(batches: list[list[int]], bits: int) -> None:
    """Every key finds the row that it wrote, or a new one, or none; no two keys share a row."""
    table = VoxelTable(1 << bits, 1)
    known: set[int] = set()
    for now, batch in enumerate(batches):
        keys = np.array(batch, np.int64) * 7919 + 1
        rows, group, first = table.locate(keys, expired=-1.0)
        assert len(set(rows.tolist())) == len(rows) == len(first) and len(group) == len(keys)
        assert (group[first] == np.arange(len(rows))).all()
        distinct = {key: int(g) for key, g in zip(keys.tolist(), group.tolist())}
        assert [distinct[key] for key in keys.tolist()] == group.tolist()
        placed = {key: g for key, g in distinct.items() if g >= 0}
        assert sorted(placed.values()) == list(range(len(rows)))
        for key, g in placed.items():
            assert table.rows[rows[g], 0] in ((0, key) if key in known else (0,))
            if bits == 9:  # room for all: nothing is lost
                assert (table.rows[rows[g], 0] == key) == (key in known)
        assert bits < 9 or len(placed) == len(distinct)
        table.rows[rows, 0] = keys[first]
        table.seen[rows] = now
        known |= set(placed)
    assert len(table) <= 1 << bits


def test_both_searches_smooth_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(library.load(), str):
        pytest.skip("the native library was not built")
    rng = np.random.default_rng(2)
    sweeps = [rng.uniform(-20, 20, (4000, 3)).astype(np.float32) for _ in range(6)]
    probabilities = [rng.dirichlet(np.ones(4), 4000).astype(np.float32) for _ in sweeps]

    def smoothed() -> list[tuple[np.ndarray, np.ndarray]]:
        fused = buffer(4, voxel_m=1.0)
        pose = [from_euler(0, 0, 0.02 * k, (0.5 * k, 0, 0)) for k in range(len(sweeps))]
        return [
            fused.update(sweep, p, pose[k], k * STEP)
            for k, (sweep, p) in enumerate(zip(sweeps, probabilities))
        ]

    native = smoothed()
    monkeypatch.setattr(library, "load", lambda: "not built")
    for one, other in zip(native, smoothed(), strict=True):
        assert (one[0] == other[0]).mean() > 0.9999  # equal but for ties, which rounding decides
        np.testing.assert_allclose(one[1], other[1], atol=1e-6)


def test_keys_do_not_depend_on_how_far_odometry_has_gone() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-50, 50, (3, 500)).astype(np.float32)
    pose = from_euler(0.1, -0.1, 2.0, (3.1, 4.2, 0.3))
    far = pose.copy()
    far[:3, 3] += 0.2 * np.array([400_000, -300_000, 1000])
    near_keys, far_keys = voxel_keys(points, pose, 0.2), voxel_keys(points, far, 0.2)
    cells = np.floor(transform(pose, points.T.astype(np.float64)) / 0.2).astype(np.int64)
    differ = (cells[:, None] != cells[None]).any(2)
    same_key = near_keys[:, None] == near_keys[None]
    assert (same_key == ~differ).mean() > 0.9999
    assert ((far_keys[:, None] == far_keys[None]) == same_key).mean() > 0.9999


def test_smoothing_takes_the_native_library_without_torch() -> None:
    """Results do not depend on what else the process has imported."""
    if isinstance(library.load(), str):
        pytest.skip("the native library was not built")
    code = (
        "import sys, numpy as np\n"
        "from pcseg_core.native import library\n"
        "from pcseg_core.online.temporal import TemporalBuffer, TemporalBufferConfig\n"
        "native = library.library()\n"
        "calls = []\n"
        "check = native.pcseg_voxel_locate\n"
        "native.pcseg_voxel_locate = lambda *a: calls.append(1) or check(*a)\n"
        "buffer = TemporalBuffer(TemporalBufferConfig(memory_mb=1), 2)\n"
        "buffer.update(np.ones((5, 3), np.float32), np.ones((5, 2), np.float32), np.eye(4), 0)\n"
        "print(len(calls), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["1", "False"]
