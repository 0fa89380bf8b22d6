# SPDX-License-Identifier: Apache-2.0
"""Write rosbag2 files (mcap or sqlite3) for any ROS 2 tool, without ROS."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import EncodedCloud
from pcseg_core.data import bag_reader, messages
from pcseg_core.data.bag_folder import bag_folder
from pcseg_core.data.bag_reader import type_store
from pcseg_core.errors import InputError, require
from pcseg_core.files import check_new_folder, claim_folder, new_folder

Format = Literal["mcap", "sqlite3"]
METADATA_VERSION: Literal[8] = 8  # read by Humble and later; 9 is Jazzy's
_QOS_DEPTH = 10
_RESERVED_BYTES = 256 * 1024  # for metadata and indexes


class BagWriter:
    """A new bag, written atomically or, if it is live, in place.

    Use it as a context manager. When the block raises, an atomic bag is removed, and a live one
    keeps what was saved. Messages are recorded at their header stamps by default; any order is
    allowed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: Format = "mcap",
        compress: bool = False,
        force: bool = False,
        live: bool = False,
    ) -> None:
        """Start a bag.

        Args:
            path: the new bag's folder.
            format: storage, "mcap" or "sqlite3".
            compress: zstd, by chunk (mcap) or by message (sqlite3).
            force: replace a bag at `path`; other content is never replaced.
            live: write at `path` from the start, for recordings; sqlite3 only. `save` stores what
                was written, which then survives a full disk, SIGKILL and a loss of power.

        Raises:
            InputError: the path is taken, the format is unknown, or it cannot be at this path.
        """
        self.path = Path(path).absolute()
        if format not in ("mcap", "sqlite3"):
            raise InputError(f"bag format '{format}': expected mcap or sqlite3")
        if format == "sqlite3" and set(str(self.path)) & set("#%?"):
            raise InputError(
                f"{self.path}: sqlite3 bags need a path without '#', '%' and '?'; choose another "
                "folder, or mcap"
            )
        if live and format != "sqlite3":
            raise InputError(f"live bag of format '{format}': expected sqlite3")
        check_new_folder(self.path, bag_folder(self.path), force=force)
        self.counts: dict[str, int] = {}
        self._folder = self.path
        self._connections: dict[str, Any] = {}
        self._unsaved_bytes = 0  # of a live bag
        self._full = False
        self._refused: dict[str, str] = {}
        self._format = format
        self._compress = compress
        self._force = force
        self._writer: Any = None
        self._context = self._recording() if live else self._writing()

    def __enter__(self) -> BagWriter:
        self._context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.__exit__(kind, error, trace)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Open the writer for the block."""
        with new_folder(self.path, bag_folder(self.path), force=self._force) as folder:
            self._folder = folder
            self._open(folder)
            try:
                yield
            except BaseException:
                with suppress(Exception):  # the folder is removed in any case
                    self._writer.storage.abort()
                raise
            self._writer.close()

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Open the writer in place for the block; what was saved stays."""
        claim_folder(self.path, bag_folder(self.path), fresh=True)
        try:
            if self.path.is_dir():
                self.path.rmdir()  # empty; the writer makes it
            self._open(self.path)
            database = self._writer.storage.conn
            # A reader finds the last commit in the database or in its log, whenever this ends.
            database.execute("PRAGMA journal_mode=WAL")
        except (OSError, sqlite3.Error) as error:
            raise self._not_written(error) from error
        try:
            self.save()
            yield
            self.save()
            database.execute("PRAGMA journal_mode=DELETE")
            self._writer.close()
        except BaseException:
            with suppress(Exception):
                if not self._full:
                    self.save()
                database.rollback()
                database.execute("PRAGMA journal_mode=DELETE")
            with suppress(Exception):
                database.close()
            raise

    def _open(self, folder: Path) -> None:
        rosbag2 = require("rosbags.rosbag2", "core")
        plugin = rosbag2.StoragePlugin[self._format.upper()]
        self._writer = rosbag2.Writer(folder, version=METADATA_VERSION, storage_plugin=plugin)
        if self._compress:
            mode = rosbag2.CompressionMode
            chosen = mode.STORAGE if self._format == "mcap" else mode.MESSAGE
            self._writer.set_compression(chosen, rosbag2.CompressionFormat.ZSTD)
        self._writer.open()

    def save(self) -> None:
        """Store the messages of a live bag and its metadata.

        Raises:
            InputError: the disk is full; what was saved before stays.
        """
        storage = self._writer.storage
        try:
            # The log and the database each take the messages. Without room for both, the database
            # could not be read without its log.
            if shutil.disk_usage(self.path).free < 2 * self._unsaved_bytes + _RESERVED_BYTES:
                raise sqlite3.OperationalError("database or disk is full")
            storage.conn.commit()
            storage.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._writer.storage = _OpenStorage(storage.path)
            self._writer.close()  # writes the metadata
            self._unsaved_bytes = 0
        except (OSError, sqlite3.Error) as error:
            raise self._not_written(error) from error
        finally:
            self._writer.storage = storage

    def add_file(self, name: str, text: str) -> None:
        """Add a text file to the folder of the bag, such as labels.yaml."""
        (self._folder / name).write_text(text, encoding="utf-8")

    def write_cloud(
        self,
        topic: str,
        cloud: EncodedCloud,
        frame_id: str,
        stamp_ns: int,
        bag_ns: int | None = None,
    ) -> None:
        """Write a sensor_msgs/PointCloud2 (`bag_ns`: recording time, default its stamp)."""
        message = messages.cloud(cloud, frame_id, stamp_ns)
        self.write_message(topic, bag_reader.CLOUD, message, _first(bag_ns, stamp_ns))

    def write_image(
        self,
        topic: str,
        image: npt.NDArray[np.uint8],
        frame_id: str,
        stamp_ns: int,
        bag_ns: int | None = None,
    ) -> None:
        """Write a sensor_msgs/Image from (H, W, 3) RGB (rgb8) or (H, W) gray (mono8) uint8."""
        message = messages.image(image, frame_id, stamp_ns)
        self.write_message(topic, bag_reader.IMAGE, message, _first(bag_ns, stamp_ns))

    def write_compressed_image(
        self,
        topic: str,
        data: bytes,
        format: str,
        frame_id: str,
        stamp_ns: int,
        bag_ns: int | None = None,
    ) -> None:
        """Write a sensor_msgs/CompressedImage of an image file; `format` is "png" or "jpeg"."""
        message = messages.compressed_image(data, format, frame_id, stamp_ns)
        self.write_message(topic, bag_reader.COMPRESSED_IMAGE, message, _first(bag_ns, stamp_ns))

    def write_camera_info(
        self,
        topic: str,
        camera: CameraModel,
        frame_id: str,
        stamp_ns: int,
        bag_ns: int | None = None,
    ) -> None:
        """Write a sensor_msgs/CameraInfo; see `messages.camera_info`."""
        message = messages.camera_info(camera, frame_id, stamp_ns)
        self.write_message(topic, bag_reader.CAMERA_INFO, message, _first(bag_ns, stamp_ns))

    def write_tf(
        self,
        transforms: Mapping[tuple[str, str], npt.NDArray[Any]],
        stamp_ns: int,
        static: bool = False,
        bag_ns: int | None = None,
    ) -> None:
        """Write transforms to /tf, or to /tf_static (latched).

        Args:
            transforms: (parent, child) -> T_parent_child (4, 4).
            stamp_ns: their stamp.
            static: write to /tf_static.
            bag_ns: recording time; None takes the stamp.
        """
        topic = "/tf_static" if static else "/tf"
        message = messages.tf(transforms, stamp_ns)
        self.write_message(topic, bag_reader.TF, message, _first(bag_ns, stamp_ns), latched=static)

    def write_odometry(
        self,
        topic: str,
        pose: npt.NDArray[Any],
        frame_id: str,
        child_frame_id: str,
        stamp_ns: int,
        linear: Sequence[float] = (0.0, 0.0, 0.0),
        angular: Sequence[float] = (0.0, 0.0, 0.0),
        bag_ns: int | None = None,
    ) -> None:
        """Write a nav_msgs/Odometry with unknown covariance (zeros).

        Args:
            topic: its topic.
            pose: T_frame_child (4, 4).
            frame_id: fixed frame, such as odom.
            child_frame_id: moving frame, such as base_link.
            stamp_ns: its stamp.
            linear, angular: velocity in the moving frame [m/s, rad/s].
            bag_ns: recording time; None takes the stamp.
        """
        message = messages.odometry(pose, frame_id, child_frame_id, stamp_ns, linear, angular)
        self.write_message(topic, bag_reader.ODOMETRY, message, _first(bag_ns, stamp_ns))

    def write_message(
        self, topic: str, msgtype: str, message: Any, bag_ns: int, latched: bool = False
    ) -> None:
        """Write any message object of `type_store().types`."""
        raw = type_store().serialize_cdr(message, msgtype)
        self.write_raw(topic, msgtype, raw, bag_ns, latched)

    def write_raw(
        self, topic: str, msgtype: str, raw: bytes | memoryview, bag_ns: int, latched: bool = False
    ) -> None:
        """Write a serialized message of a type of `type_store()`."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, msgtype, typestore=type_store(), offered_qos_profiles=[_qos(latched)]
            )
        self._check_type(topic, msgtype)
        self._write(topic, bag_ns, raw)

    def pass_through(self, connection: Any, bag_ns: int, raw: bytes | memoryview) -> None:
        """Copy a serialized message of another bag, with its type and QoS.

        Args:
            connection: its connection from `BagFile.messages`.
            bag_ns: recording time.
            raw: serialized message.

        Raises:
            InputError: the type is not a standard type and the bag has no definition of it.
        """
        reason = self.add_topic(connection)
        if reason:
            raise InputError(reason)
        self._check_type(connection.topic, connection.msgtype)
        self._write(connection.topic, bag_ns, raw)

    def add_topic(self, connection: Any) -> str:
        """Prepare to copy a topic of another bag.

        Returns:
            Why the topic cannot be copied, such as a definition that does not parse; else "".
        """
        topic = connection.topic
        if topic not in self._connections and topic not in self._refused:
            try:
                self._connections[topic] = self._copy_connection(connection)
            except InputError as error:
                self._refused[topic] = str(error)
        return self._refused.get(topic, "")

    def _copy_connection(self, connection: Any) -> Any:
        qos = connection.ext.offered_qos_profiles
        if connection.msgdef.data and connection.digest:
            return self._writer.add_connection(
                connection.topic,
                connection.msgtype,
                msgdef=connection.msgdef.data,
                rihs01=connection.digest,
                offered_qos_profiles=qos,
            )
        if connection.msgtype not in type_store().fielddefs and not connection.msgdef.data:
            raise InputError(
                f"{connection.topic}: the bag holds no definition of {connection.msgtype}, so it "
                "cannot be copied; leave the topic out"
            )
        try:
            return self._writer.add_connection(
                connection.topic,
                connection.msgtype,
                typestore=messages.store_with(connection),
                offered_qos_profiles=qos,
            )
        except InputError:
            raise
        except (Exception, RecursionError) as error:  # a type that is unknown or holds itself
            raise messages.bad_definition(connection, repr(error)) from error

    def _check_type(self, topic: str, msgtype: str) -> None:
        known = self._connections[topic].msgtype
        if known != msgtype:
            raise InputError(f"{topic}: a topic of {known} cannot take a {msgtype}")

    def _write(self, topic: str, bag_ns: int, raw: bytes | memoryview) -> None:
        try:
            self._writer.write(self._connections[topic], int(bag_ns), raw)
        except (OSError, sqlite3.Error) as error:
            raise self._not_written(error) from error
        self.counts[topic] = self.counts.get(topic, 0) + 1
        self._unsaved_bytes += len(raw)

    def _not_written(self, error: OSError | sqlite3.Error) -> InputError:
        self._full = True
        reason = getattr(error, "strerror", None) or error
        return InputError(f"cannot write {self.path}: {reason}")


@dataclass
class _OpenStorage:
    """Stands in for the storage of a bag whose metadata is written before it is closed."""

    path: Path

    def close(self, version: int, metadata: str) -> None:
        """Leave the storage open."""


def _first(bag_ns: int | None, stamp_ns: int) -> int:
    return stamp_ns if bag_ns is None else bag_ns


def _qos(latched: bool) -> Any:
    """Reliable, keep last; transient local for latched topics."""
    rosbags = require("rosbags.interfaces", "core")
    never = rosbags.QosTime(sec=9223372036, nsec=854775807)  # RMW_DURATION_INFINITE
    durability = rosbags.QosDurability
    return rosbags.Qos(
        history=rosbags.QosHistory.KEEP_LAST,
        depth=_QOS_DEPTH,
        reliability=rosbags.QosReliability.RELIABLE,
        durability=durability.TRANSIENT_LOCAL if latched else durability.VOLATILE,
        deadline=never,
        lifespan=never,
        liveliness=rosbags.QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=never,
        avoid_ros_namespace_conventions=False,
    )
