# SPDX-License-Identifier: Apache-2.0
"""Bags as files: what is written is read by other tools, and broken ones are explained."""

import os
import pickle
import shutil

import numpy as np
import pytest
from recordings import CAMERA, PERIOD, START, bag, points
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer

from pcseg_core.cloud import encode_cloud, read_cloud
from pcseg_core.data.bag_reader import BagFile, parse_header, type_store
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import InputError

FORMATS = [("mcap", False), ("mcap", True), ("sqlite3", False), ("sqlite3", True)]


def _recompressed(source, target, plugin: str, mode: CompressionMode):
    """The same bag with another kind of compression."""
    writer = Writer(target, version=9, storage_plugin=StoragePlugin[plugin.upper()])
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with Reader(source) as reader, writer:
        connections = {
            c.topic: writer.add_connection(
                c.topic, c.msgtype, msgdef=c.msgdef.data, rihs01=c.digest
            )
            for c in BagFile(source).connections
        }
        for connection, stamp, raw in reader.messages():
            writer.write(connections[connection.topic], stamp, raw)
    return target


def _check(path) -> None:
    file = BagFile(path)
    index, transforms = file.index(["/points"])
    np.testing.assert_array_equal(index["/points"].stamps_ns, START + PERIOD * np.arange(5))
    assert index["/points"].frame_id == "lidar" and len(transforms) == 6
    for position in (4, 0, 2):
        cloud = read_cloud(file.read(index["/points"], position))
        np.testing.assert_array_equal(cloud.xyz, points(seed=position)[:, :3])
        assert cloud.stamp_ns == START + PERIOD * position


@pytest.mark.parametrize(("format", "compress"), FORMATS)
def test_own_bags(tmp_path, format: str, compress: bool) -> None:
    _check(bag(tmp_path / "drive", format=format, compress=compress))


@pytest.mark.parametrize("plugin", ["mcap", "sqlite3"])
@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_compressed_files_and_messages(tmp_path, plugin: str, mode: CompressionMode) -> None:
    _check(_recompressed(bag(tmp_path / "drive", format=plugin), tmp_path / "packed", plugin, mode))


@pytest.mark.parametrize(("format", "suffix"), [("mcap", "mcap"), ("sqlite3", "db3")])
def test_bare_files_and_folders_without_metadata(tmp_path, format: str, suffix: str) -> None:
    path = bag(tmp_path / "drive", format=format)
    _check(path / f"drive.{suffix}")
    (path / "metadata.yaml").unlink()
    _check(path)
    shutil.copy(path / f"drive.{suffix}", path / f"second.{suffix}")
    with pytest.raises(InputError, match="ros2 bag reindex"):
        BagFile(path)


@pytest.mark.parametrize(("format", "compress"), FORMATS)
def test_rosbags_reads_what_is_written(tmp_path, format: str, compress: bool) -> None:
    path = bag(tmp_path / "drive", format=format, compress=compress, odometry=True)
    with AnyReader([path]) as reader:
        assert {c.topic: c.msgcount for c in reader.connections} == {
            "/tf_static": 1,
            "/points": 5,
            "/tf": 5,
            "/odometry": 5,
            "/front/image_raw/compressed": 5,
            "/front/camera_info": 5,
        }
        found = {c.topic: reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages()}
        durability = {
            c.topic: c.ext.offered_qos_profiles[0].durability.name for c in reader.connections
        }
    assert durability["/tf_static"] == "TRANSIENT_LOCAL" and durability["/points"] == "VOLATILE"
    info = found["/front/camera_info"]
    assert (info.width, info.height, info.distortion_model) == (40, 20, "plumb_bob")
    np.testing.assert_array_equal(info.k, CAMERA.K.reshape(-1))
    assert found["/odometry"].child_frame_id == "base_link"
    assert [f.name for f in found["/points"].fields] == ["x", "y", "z", "intensity"]


@pytest.mark.parametrize("compress", [False, True])
def test_mcap_reads_what_is_written(tmp_path, compress: bool) -> None:
    reader_module = pytest.importorskip("mcap.reader")
    decoder = pytest.importorskip("mcap_ros2.decoder")
    path = bag(tmp_path / "drive", compress=compress)
    with (path / "drive.mcap").open("rb") as stream:
        reader = reader_module.make_reader(stream, decoder_factories=[decoder.DecoderFactory()])
        assert reader.get_summary().statistics.message_count == 21
        clouds = [m for _, _, _, m in reader.iter_decoded_messages(topics=["/points"])]
    np.testing.assert_array_equal(read_cloud(clouds[3]).xyz, points(seed=3)[:, :3])


def test_equal_times_of_recording_are_told_apart(tmp_path) -> None:
    with BagWriter(tmp_path / "b") as writer:
        for i in range(3):
            cloud = encode_cloud({axis: np.full(2, i, np.float32) for axis in "xyz"})
            writer.write_cloud("/points", cloud, "lidar", START + i, bag_ns=START)
    file = BagFile(tmp_path / "b")
    index = file.index(["/points"])[0]["/points"]
    assert [read_cloud(file.read(index, i)).xyz[0, 0] for i in (2, 0, 1)] == [2.0, 0.0, 1.0]


def test_bags_pickle_and_survive_a_fork(tmp_path) -> None:
    file = BagFile(bag(tmp_path / "drive"))
    index = file.index(["/points"])[0]["/points"]
    again = pickle.loads(pickle.dumps(file))
    np.testing.assert_array_equal(read_cloud(again.read(index, 1)).xyz, points(seed=1)[:, :3])
    child = os.fork()
    if child == 0:  # the child's reads must not move the parent's place in the file
        ok = all(len(read_cloud(file.read(index, i)).xyz) == 200 for i in range(5))
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(read_cloud(file.read(index, 4)).xyz, points(seed=4)[:, :3])


def test_pass_through_keeps_messages_types_and_qos(tmp_path) -> None:
    source = BagFile(bag(tmp_path / "drive", format="sqlite3"))
    with BagWriter(tmp_path / "copy") as writer:
        for connection, stamp, raw in source.messages():
            writer.pass_through(connection, stamp, raw)
    copy = BagFile(tmp_path / "copy")
    assert copy.counts == source.counts and copy.topics == source.topics
    before = [(c.topic, t, bytes(raw)) for c, t, raw in source.messages()]
    assert [(c.topic, t, bytes(raw)) for c, t, raw in copy.messages()] == before
    qos = {c.topic: c.ext.offered_qos_profiles for c in copy.connections}
    assert qos == {c.topic: c.ext.offered_qos_profiles for c in source.connections}
    # mcap holds no type hashes: they are worked out from the definitions.
    with BagWriter(tmp_path / "back", format="sqlite3") as writer:
        for connection, stamp, raw in BagFile(tmp_path / "copy" / "copy.mcap").messages():
            writer.pass_through(connection, stamp, raw)
    with AnyReader([tmp_path / "back"]) as reader:
        assert reader.message_count == sum(source.counts.values())


def test_nothing_is_left_of_a_bag_that_fails(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt), BagWriter(tmp_path / "drive") as writer:
        writer.write_tf({("a", "b"): np.eye(4)}, START)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_bag_is_replaced_only_when_asked_and_only_by_a_whole_one(tmp_path) -> None:
    path = bag(tmp_path / "drive", sweeps=2)
    with pytest.raises(InputError, match="--force"):
        BagWriter(path)
    with pytest.raises(RuntimeError), BagWriter(path, force=True):
        raise RuntimeError
    assert BagFile(path).counts["/points"] == 2
    with BagWriter(path, force=True) as writer:
        writer.write_tf({("a", "b"): np.eye(4)}, START)
    assert BagFile(path).topics == {"/tf": "tf2_msgs/msg/TFMessage"}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(InputError, match="is not a bag"):
        BagWriter(tmp_path / "thesis", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drive", "thesis"]


@pytest.mark.parametrize("metadata", ["title: my photos", "rosbag2_bagfile_information: 3"])
def test_metadata_of_another_program_does_not_make_a_folder_a_bag(tmp_path, metadata) -> None:
    (tmp_path / "metadata.yaml").write_text(metadata)
    (tmp_path / "photo.png").write_text("years of work")
    with pytest.raises(InputError, match="is not a bag"):
        BagWriter(tmp_path, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metadata.yaml", "photo.png"]


@pytest.mark.parametrize("name", ["notes.txt", "other.mcap"])
def test_files_that_a_bag_does_not_name_are_never_deleted(tmp_path, name) -> None:
    path = bag(tmp_path / "drive", sweeps=1)
    (path / name).write_text("by hand")
    with pytest.raises(InputError, match=f"did not write .{name}"):
        BagWriter(path, force=True)
    assert {name, "metadata.yaml"} < {p.name for p in path.iterdir()}


def test_writer_refuses_wrong_input(tmp_path) -> None:
    with pytest.raises(InputError, match="expected mcap or sqlite3"):
        BagWriter(tmp_path / "drive", format="zip")
    with BagWriter(tmp_path / "drive") as writer:
        with pytest.raises(InputError, match=r"expected \(H, W, 3\)"):
            writer.write_image("/i", np.zeros((2, 2, 4), np.uint8), "cam", START)
        writer.write_tf({("a", "b"): np.eye(4)}, START)
        with pytest.raises(InputError, match="cannot take"):
            writer.write_odometry("/tf", np.eye(4), "odom", "base", START)


@pytest.mark.parametrize(
    ("format", "share"), [("mcap", 0.0), *(("sqlite3", share) for share in (0.0, 0.1, 0.5, 0.99))]
)
def test_truncated_bags(tmp_path, format: str, share: float) -> None:
    path = bag(tmp_path / "drive", format=format)
    storage = next(p for p in path.iterdir() if p.suffix != ".yaml")
    whole = storage.read_bytes()
    storage.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=str(path)):
        for _ in BagFile(path).messages():
            pass


@pytest.mark.parametrize(("format", "compress"), FORMATS)
def test_bags_with_bytes_overwritten_never_raise_anything_else(tmp_path, format, compress) -> None:
    path = bag(tmp_path / "drive", format=format, compress=compress)
    storage = next(p for p in path.iterdir() if p.suffix != ".yaml")
    whole = storage.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(25):
        broken = bytearray(whole)
        start = int(rng.integers(0, len(whole)))
        broken[start : start + 64] = rng.bytes(min(64, len(whole) - start))
        storage.write_bytes(bytes(broken))
        try:
            file = BagFile(path)
            index, _ = file.index(["/points"])
            for i in range(len(index.get("/points", []))):
                read_cloud(file.read(index["/points"], i))
        except InputError:
            pass


def test_broken_metadata(tmp_path) -> None:
    path = bag(tmp_path / "drive")
    for content in (
        "",
        "rosbag2_bagfile_information: {}",
        "a: [",
        "rosbag2_bagfile_information: 3",
    ):
        (path / "metadata.yaml").write_text(content)
        with pytest.raises(InputError, match="cannot be read"):
            BagFile(path)


def test_what_is_no_bag(tmp_path) -> None:
    with pytest.raises(InputError, match="no such bag"):
        BagFile(tmp_path / "absent")
    (tmp_path / "old.bag").touch()
    with pytest.raises(InputError, match="rosbags-convert"):
        BagFile(tmp_path / "old.bag")
    with pytest.raises(InputError, match=r"no metadata\.yaml"):
        BagFile(tmp_path)


def test_headers_in_both_byte_orders() -> None:
    little = b"\0\1\0\0" + b"\x02\0\0\0" + b"\x03\0\0\0" + b"\x04\0\0\0" + b"cam\0"
    big = b"\0\0\0\0" + b"\0\0\0\x02" + b"\0\0\0\x03" + b"\0\0\0\x04" + b"cam\0"
    assert parse_header(little) == parse_header(big) == (2_000_000_003, "cam")
    for cut in (0, 3, 12, 17):
        with pytest.raises(InputError):
            parse_header(little[:cut])


def test_label_info_is_that_of_vision_msgs() -> None:
    """The hash of vision_msgs 4.1.1, by which a recorded topic is known elsewhere."""
    known = "RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783"
    assert type_store().hash_rihs01("vision_msgs/msg/LabelInfo") == known
