# SPDX-License-Identifier: Apache-2.0
"""The tree of frames in /tf and /tf_static of a recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, compose, from_quaternion, invert

Float64 = npt.NDArray[np.float64]
FIXED_FRAMES = ("odom", "map", "world")  # odom first: it is continuous (REP-105)
# A transform on /tf that varies less is static: publishers of joints add noise.
STILL_M = 1e-3
STILL_RAD = 1e-3
MAX_POSE_GAP_S = 1.0


@dataclass
class _Edge:
    """T_parent_child over time; a static one has one entry at stamp 0."""

    parent: str
    static: bool
    stamps_ns: list[int] = field(default_factory=list)
    quaternions: list[Sequence[float]] = field(default_factory=list)
    translations: list[Sequence[float]] = field(default_factory=list)


class TfTree:
    """Static transforms between frames, and trajectories of moving frames."""

    def __init__(self) -> None:
        self._parents: dict[str, dict[str, _Edge]] = {}  # child -> parent -> transforms
        self._edges: dict[str, _Edge] = {}
        self._trajectories: dict[str, Trajectory] = {}
        self._moving: dict[str, bool] = {}

    def add(
        self,
        parent: str,
        child: str,
        stamp_ns: int,
        quaternion: Sequence[float],
        translation: Sequence[float],
        static: bool,
    ) -> None:
        """Add one transform: the pose of `child` in `parent` (quaternion x, y, z, w).

        A static transform replaces earlier ones. Of several parents of a child, that of a static
        transform counts, else that of the most transforms, else the last.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")
        parents = self._parents.setdefault(child, {})
        edge = parents.pop(parent, None)
        if edge is None or static:
            edge = _Edge(parent, static)
        parents[parent] = edge  # at the end
        if edge.static and not static:
            return
        edge.stamps_ns.append(stamp_ns)
        edge.quaternions.append(quaternion)
        edge.translations.append(translation)
        self._edges[child] = max(
            reversed(parents.values()), key=lambda e: (e.static, len(e.stamps_ns))
        )
        self._trajectories.pop(child, None)
        self._moving.pop(child, None)

    def frames(self) -> list[str]:
        """All frames, sorted."""
        return sorted({*self._edges, *(edge.parent for edge in self._edges.values())})

    def static(self, target: str, source: str) -> Float64:
        """T_target_source (4, 4) between frames that are fixed to each other.

        Raises:
            InputError: no chain of transforms between them, or a moving one.
        """
        up, down = self._path(target, source)
        moving = [child for child in (*up, *down) if self._moves(child)]
        if moving:
            raise InputError(
                f"the transform from '{source}' to '{target}' moves (at '{moving[0]}'); sensors "
                "must be fixed to each other"
            )
        return compose(invert(self._chain_static(up)), self._chain_static(down))

    def trajectory(self, fixed: str, body: str) -> Trajectory | None:
        """T_fixed_body over time, or None if the frames are fixed to each other.

        Poses are at the stamps of the moving transforms at which all of them are known.

        Raises:
            InputError: no chain of transforms between the frames.
        """
        up, down = self._path(fixed, body)
        moving = [self._edge_trajectory(child) for child in (*up, *down) if self._moves(child)]
        if not moving:
            return None
        start = max(int(part.stamps_ns[0]) for part in moving)
        end = min(int(part.stamps_ns[-1]) for part in moving)
        stamps = np.unique(np.concatenate([part.stamps_ns for part in moving]))
        stamps = stamps[(stamps >= start) & (stamps <= end)]
        if not len(stamps):
            raise InputError(f"the transforms between '{fixed}' and '{body}' share no time")
        poses = invert(self._chain_at(up, stamps)) @ self._chain_at(down, stamps)
        return Trajectory(stamps, poses, max_gap_s=MAX_POSE_GAP_S)

    def find_trajectory(self, body: str, fixed: str | None = None) -> Trajectory | None:
        """The trajectory of `body` in `fixed`, or in the first fixed frame in which it moves.

        The candidates are odom, map, world and the root of the tree.

        Raises:
            InputError: `fixed` is given and `body` does not move in it.
        """
        if fixed is not None:
            found = self.trajectory(fixed, body)
            if found is None:
                raise InputError(f"'{body}' does not move in '{fixed}': no poses in /tf")
            return found
        above = self._ancestors(body)
        for frame in [*(f for f in FIXED_FRAMES if f in above), *above[-1:]]:
            found = self.trajectory(frame, body)
            if found is not None:
                return found
        return None

    def _path(self, target: str, source: str) -> tuple[list[str], list[str]]:
        """Frames below the common ancestor of two frames, from each of them upwards."""
        target, source = target.lstrip("/"), source.lstrip("/")
        up, down = self._ancestors(target), self._ancestors(source)
        common = next((frame for frame in up if frame in down), None)
        if common is None:
            known = ", ".join(self.frames()) or "none"
            raise InputError(
                f"no transform from '{source}' to '{target}' in /tf_static or /tf; frames known: "
                f"{known}"
            )
        return up[: up.index(common)], down[: down.index(common)]

    def _ancestors(self, frame: str) -> list[str]:
        """The frame itself, its parent, and so on to the root.

        Raises:
            InputError: the frames are in a circle.
        """
        chain = [frame.lstrip("/")]
        while chain[-1] in self._edges:
            parent = self._edges[chain[-1]].parent
            if parent in chain:
                circle = ", ".join([*chain, parent])[:400]
                raise InputError(
                    f"no transform: each of the frames {circle} is the parent of the one before, "
                    "in a circle; correct the publisher of one of them"
                )
            chain.append(parent)
        return chain

    def _moves(self, child: str) -> bool:
        edge = self._edges[child]
        if edge.static or len(edge.stamps_ns) == 1:
            return False
        if child not in self._moving:
            poses = self._edge_trajectory(child).poses
            change = invert(poses[:1]) @ poses
            # For small angles the norm of R - I is sqrt(2) times the angle.
            turn = np.linalg.norm(change[:, :3, :3] - np.eye(3), axis=(1, 2)) / np.sqrt(2)
            shift = np.linalg.norm(change[:, :3, 3], axis=1)
            self._moving[child] = bool(shift.max() > STILL_M or turn.max() > STILL_RAD)
        return self._moving[child]

    def _edge_trajectory(self, child: str) -> Trajectory:
        """T_parent_child over time; sorted, keeps the last of equal stamps."""
        if child not in self._trajectories:
            edge = self._edges[child]
            stamps = np.array(edge.stamps_ns, dtype=np.int64)
            order = np.argsort(stamps, kind="stable")
            order = order[np.append(np.diff(stamps[order]) > 0, True)]
            poses = from_quaternion(
                np.array(edge.quaternions, dtype=np.float64)[order],
                np.array(edge.translations, dtype=np.float64)[order],
            )
            self._trajectories[child] = Trajectory(stamps[order], poses)
        return self._trajectories[child]

    def _chain_static(self, children: list[str]) -> Float64:
        """T_ancestor_frame of a static path from the frame upwards."""
        return compose(*(self._edge_trajectory(child).poses[0] for child in reversed(children)))

    def _chain_at(self, children: list[str], stamps: npt.NDArray[np.int64]) -> Float64:
        """T_ancestor_frame (M, 4, 4) of a path from the frame upwards, at stamps."""
        chain = np.tile(np.eye(4), (len(stamps), 1, 1))
        for child in reversed(children):
            trajectory = self._edge_trajectory(child)
            moving = self._moves(child)
            chain = chain @ (trajectory.at_many(stamps) if moving else trajectory.poses[0])
        return chain
