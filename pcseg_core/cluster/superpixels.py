# SPDX-License-Identifier: Apache-2.0
"""The job of `pcseg superpixels`: maps of the images of recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pcseg_core.cluster.job import Plan, Stretch, Summary, store_summary, stored_summary, stretches
from pcseg_core.data import find_source, fingerprint, open_recording, split_query
from pcseg_core.files import slug
from pcseg_core.vision.image_cache import SuperpixelCache

if TYPE_CHECKING:
    from pcseg_core.data import Recording
    from pcseg_core.vision.imported import ImportedMasks
    from pcseg_core.vision.superpixels import SuperpixelGenerator

MADE, KEPT = "made", "kept"
_PART = 50  # sweeps


@dataclass(frozen=True)
class SuperpixelJob:
    """Superpixels of recordings.

    Attributes:
        out: folder of the maps, see `SuperpixelCache`.
        maker: makes the generator, in each worker.
    """

    out: Path
    maker: Callable[[], SuperpixelGenerator | ImportedMasks]
    title: str = "superpixels"

    def worker(self) -> SuperpixelWorker:
        """Makes the generator when it is needed first."""
        return SuperpixelWorker(self)


@dataclass
class SuperpixelWorker:
    """Segments the images of recordings. See `job.Worker`."""

    job: SuperpixelJob
    _opened: dict[str, Recording] = field(default_factory=dict)

    @cached_property
    def cache(self) -> SuperpixelCache:
        """The folder of maps with the generator."""
        return SuperpixelCache(self.job.out, self.job.maker())

    def load(self) -> None:
        """Make the generator, and claim the folder."""
        _ = self.cache

    def plan(self, source: str) -> Plan:
        """Parts of a recording. No image depends on another one."""
        file, key = self._note(source)
        if (done := stored_summary(file, key)) is not None:
            return Plan(done.sweeps, (), place=done.place, done=done)
        recording = self._open(source)
        count = len(recording)
        whole = recording.pose_source == "kiss-icp"
        return Plan(count, stretches(count, _PART), whole, slug(recording.name))

    def run(self, source: str, stretch: Stretch) -> Counter[str]:
        """Number of images of a part that were made, kept, and skipped by reason."""
        return self.cache.fill(self._open(source), sweeps=range(*stretch))

    def finish(self, source: str, results: Sequence[Counter[str]]) -> Summary:
        """The sum of the parts."""
        total = sum(results, Counter[str]())
        skipped = {
            reason.removeprefix("skipped: "): n
            for reason, n in total.items()
            if reason not in (MADE, KEPT)
        }
        recording = self._open(source)
        skipped |= recording.skipped
        counts = {name: total[name] for name in (MADE, KEPT) if total[name]}
        place = slug(recording.name)
        summary = Summary(len(recording), total[KEPT], counts, skipped, place=place)
        self._opened.clear()
        store_summary(*self._note(source), summary)
        return summary

    def _open(self, source: str) -> Recording:
        if source not in self._opened:
            self._opened.clear()  # one at a time
            self._opened[source] = open_recording(source)
        return self._opened[source]

    def _note(self, source: str) -> tuple[Path, str]:
        """The file that says that a recording is done, and what it depends on."""
        path = split_query(find_source(source)[1])[0]
        key = f"{source} {fingerprint(path)} {self.cache.manifest['hash']}"
        return self.job.out / "done" / f"{slug(source)[-100:]}", key
