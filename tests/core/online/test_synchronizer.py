# SPDX-License-Identifier: Apache-2.0
"""Which images a sweep gets, when it stops waiting, and what disorder does to both."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.errors import InputError
from pcseg_core.online.synchronizer import MAX_IMAGES, Match, Synchronizer

MS = 1_000_000


def feed(sync: Synchronizer, camera: str, *stamps_ms: int) -> None:
    for stamp in stamps_ms:
        sync.add_image(camera, stamp * MS, f"{camera}@{stamp}")


def one(matches: list[Match]) -> Match:
    assert len(matches) == 1
    return matches[0]


def test_the_nearest_image_of_each_camera() -> None:
    sync: Synchronizer = Synchronizer(["front", "back"], tolerance_s=0.04)
    feed(sync, "front", 60, 93, 126)
    feed(sync, "back", 70, 103)
    sync.add_sweep(100 * MS, "sweep", now_s=5.0)
    match = one(sync.poll(5.01))
    assert match.images == {"front": "front@93", "back": "back@103"}
    assert match.stamps_ns == {"front": 93 * MS, "back": 103 * MS}
    assert match.sweep == "sweep" and match.missing == ()
    assert match.waited_s == pytest.approx(0.01)
    assert sync.poll(9.0) == [] and not sync.counters


def test_an_image_outside_the_tolerance_is_none() -> None:
    sync: Synchronizer = Synchronizer(["front"], tolerance_s=0.01)
    feed(sync, "front", 89, 111)
    sync.add_sweep(100 * MS, "sweep", 0.0)
    match = one(sync.poll(0.0))
    assert match.images == {} and match.missing == ("front",) and sync.missing["front"] == 1
    feed(sync, "front", 190, 210)
    sync.add_sweep(200 * MS, "sweep", 0.1)
    assert one(sync.poll(0.1)).images == {"front": "front@190"}  # the edge counts, the earlier wins


def test_a_sweep_waits_for_a_nearer_image_until_the_deadline() -> None:
    sync: Synchronizer = Synchronizer(["front"], tolerance_s=0.06, deadline_s=0.05)
    feed(sync, "front", 0, 100)
    sync.add_sweep(160 * MS, "sweep", 7.0)
    assert sync.poll(7.049) == [] and sync.next_deadline_s == pytest.approx(7.05)
    feed(sync, "front", 200)
    assert one(sync.poll(7.0495)).images == {"front": "front@200"}
    sync.add_sweep(260 * MS, "sweep", 7.1)
    assert sync.poll(7.14) == []
    match = one(sync.poll(7.15))
    assert match.images == {"front": "front@200"} and sync.counters == {"deadline": 1}
    assert sync.next_deadline_s is None


def test_nothing_is_waited_for_that_can_only_be_farther() -> None:
    """The camera's next image is due 100 ms after its last: 98 ms off, where 2 ms are there."""
    sync: Synchronizer = Synchronizer(["front"], deadline_s=10)
    feed(sync, "front", 98, 198)
    sync.add_sweep(200 * MS, "sweep", 0.0)
    assert one(sync.poll(0.0)).images == {"front": "front@198"}


def test_a_camera_that_dies_holds_no_sweep_up_and_is_used_when_it_returns() -> None:
    sync: Synchronizer = Synchronizer(["a", "b"], deadline_s=0.05, silent_s=0.3)
    waited, missing = [], []
    now = 0.0
    for k in range(30):
        stamp = 100 * k
        for camera in ("a", "b"):
            if camera == "a" or not 10 <= k < 20:
                feed(sync, camera, stamp)
        sync.add_sweep(stamp * MS, k, now)
        matches = sync.poll(now) or sync.poll(now + 0.05)
        waited.append(one(matches).waited_s)
        missing.append(matches[0].missing)
        now += 0.1
    assert missing == [()] * 10 + [("b",)] * 10 + [()] * 10
    assert [k for k, w in enumerate(waited) if w > 0] == [10, 11, 12]  # then it counts as silent
    assert sync.missing == {"b": 10}


def test_without_cameras_every_sweep_goes_through_at_once() -> None:
    sync: Synchronizer = Synchronizer([])
    sync.add_sweep(1, "x", 0.0)
    assert one(sync.poll(0.0)).missing == ()


def test_disorder_is_counted() -> None:
    sync: Synchronizer = Synchronizer(["a"], tolerance_s=0.02)
    feed(sync, "a", 100, 200, 150, 150)
    assert sync.counters == {"image_out_of_order": 2, "image_duplicate": 1}
    sync.add_sweep(150 * MS, "second", 0.0)
    sync.add_sweep(120 * MS, "first", 0.0)
    sync.add_sweep(150 * MS, "again", 0.0)
    first, second = sync.poll(0.0)
    assert (first.sweep, first.images) == ("first", {"a": "a@100"})
    assert (second.sweep, second.images) == ("second", {"a": "a@150"})
    sync.counters.clear()
    sync.add_sweep(150 * MS, "duplicate", 0.0)
    sync.add_sweep(140 * MS, "too late", 0.0)
    feed(sync, "a", 145, 20)
    assert sync.poll(1.0) == []
    assert sync.counters == {
        "sweep_duplicate": 1,
        "sweep_out_of_order": 1,
        "image_late": 2,
        "image_out_of_order": 1,
    }


def test_a_burst_of_sweeps_drops_the_oldest() -> None:
    sync: Synchronizer = Synchronizer(["a"], deadline_s=1, max_sweeps=2)
    feed(sync, "a", 0)
    for k in range(1, 6):
        sync.add_sweep(k * 100 * MS, k, 0.0)
    assert [match.sweep for match in sync.poll(1.0)] == [4, 5]
    assert sync.counters["sweep_overflow"] == 3


def test_a_bag_in_a_loop_starts_anew() -> None:
    sync: Synchronizer = Synchronizer(["a"], tolerance_s=0.02)
    for k in range(100, 105):
        feed(sync, "a", 100 * k)
        sync.add_sweep(100 * k * MS, k, 0.0)
        sync.poll(0.0)
    feed(sync, "a", 0)  # the image is first to be back at the start
    sync.add_sweep(0, "first again", 0.0)
    assert one(sync.poll(0.0)).images == {"a": "a@0"}
    assert sync.counters == {"image_jump": 1, "sweep_jump": 1}
    sync.add_sweep(10**18, "wrong clock", 0.0)
    sync.poll(1.0)
    feed(sync, "a", 100)
    sync.add_sweep(100 * MS, "right clock", 1.0)
    assert one(sync.poll(1.0)).images == {"a": "a@100"}


def test_a_clock_set_back_keeps_no_sweep_waiting() -> None:
    sync: Synchronizer = Synchronizer(["a"], deadline_s=0.05)
    feed(sync, "a", 0)
    sync.add_sweep(50 * MS, "x", 1000.0)
    assert len(sync.poll(3.0)) == 1


def test_reset_forgets_messages_and_keeps_counts() -> None:
    sync: Synchronizer = Synchronizer(["a"])
    feed(sync, "a", 100, 100)
    sync.add_sweep(100 * MS, "x", 0.0)
    sync.reset()
    assert sync.poll(9.0) == [] and sync.counters == {"image_duplicate": 1}
    sync.add_sweep(50 * MS, "earlier", 9.0)
    assert one(sync.poll(9.0)).missing == ("a",)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cameras": ["a", "a"]}, "each name"),
        ({"cameras": [], "tolerance_s": -1.0}, "tolerance_s"),
        ({"cameras": [], "deadline_s": float("nan")}, "deadline_s"),
        ({"cameras": [], "max_sweeps": 0}, "max_sweeps"),
    ],
)
def test_impossible_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Synchronizer(**arguments)
    with pytest.raises(InputError, match="known are a"):
        Synchronizer(["a"]).add_image("b", 0, None)


@settings(max_examples=200, deadline=None)
@given(
    images=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 500)), max_size=40),
    sweeps=st.lists(st.integers(0, 500), max_size=4, unique=True),
    tolerance=st.integers(0, 60),
)
def test_all_there_before_the_sweeps_gives_the_nearest_of_all(
    images: list[tuple[str, int]], sweeps: list[int], tolerance: int
) -> None:
    sync: Synchronizer = Synchronizer("abc", tolerance_s=tolerance / 1e3, deadline_s=0)
    by_camera = {c: sorted({s for n, s in images if n == c})[-MAX_IMAGES:] for c in "abc"}
    for camera, stamps in by_camera.items():
        feed(sync, camera, *stamps)
    for stamp in sweeps:
        sync.add_sweep(stamp * MS, stamp, 0.0)
    matches = sync.poll(0.0)
    assert [match.sweep for match in matches] == sorted(sweeps)
    for match in matches:
        for camera, stamps in by_camera.items():
            near = min(stamps, key=lambda s: (abs(s - match.sweep), s), default=None)
            if near is None or abs(near - match.sweep) > tolerance:
                assert camera in match.missing
            else:
                assert match.images[camera] == f"{camera}@{near}"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "sweep"]), st.integers(0, 900), st.integers(0, 80)),
        max_size=60,
    )
)
def test_any_order_of_messages(events: list[tuple[str, int, int]]) -> None:
    """Every sweep comes out once, in order and in time, or is counted; memory stays bounded."""
    sync: Synchronizer = Synchronizer("ab", tolerance_s=0.05, deadline_s=0.05, max_sweeps=3)
    now, matches, added = 0.0, [], 0
    for kind, stamp, pause_ms in events:
        target = now + pause_ms / 1e3
        while sync.next_deadline_s is not None and sync.next_deadline_s <= target:
            matches += sync.poll(sync.next_deadline_s)
        now = target
        if kind == "sweep":
            added += 1
            sync.add_sweep(stamp * MS, stamp, now)
        else:
            feed(sync, kind, stamp)
        matches += sync.poll(now)
        assert all(len(images.stamps) <= MAX_IMAGES for images in sync._images.values())
    for _ in range(3):  # so many may wait, each with a deadline of its own
        if sync.next_deadline_s is not None:
            matches += sync.poll(sync.next_deadline_s)
    assert sync.next_deadline_s is None
    stamps = [match.stamp_ns for match in matches]
    assert stamps == sorted(set(stamps))
    dropped = sum(sync.counters[f"sweep_{r}"] for r in ("duplicate", "out_of_order", "overflow"))
    assert added == len(matches) + dropped
    for match in matches:
        assert match.waited_s <= 0.05 + 1e-6
    for match in matches:
        assert set(match.images) | set(match.missing) == {"a", "b"}
        assert all(abs(s - match.stamp_ns) <= 50 * MS for s in match.stamps_ns.values())
    assert sync.next_deadline_s is None
