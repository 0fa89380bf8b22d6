# SPDX-License-Identifier: Apache-2.0
"""The account of a recording: what it holds, what is used, what is left out and why."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from pcseg_core.data import Recording

UNREADABLE = "unreadable sample: "  # prefix of the reasons of samples that fail on access


class Entry(Section):
    """One kind of items: numbers held, used, left out and failed by reason, and unexplained."""

    held: int
    used: int
    left_out: dict[str, int] = Field(default_factory=dict)
    failed: dict[str, int] = Field(default_factory=dict)
    unexplained: int = 0

    def line(self, kind: str) -> str:
        """The entry in one line."""
        parts = [f"{self.used} of {self.held} used"]
        for word, reasons in (("left out", self.left_out), ("failed", self.failed)):
            parts += [f"{count} {word} ({reason})" for reason, count in reasons.items()]
        parts += [f"{self.unexplained} unexplained"] if self.unexplained else []
        return f"{kind}: {', '.join(parts)}"


def _reasons() -> defaultdict[str, Counter[str]]:
    return defaultdict(Counter)


@dataclass
class Account:
    """Numbers of items by kind, such as a topic, "sweeps" or "image_02".

    Attributes:
        held: items that the container says it holds.
        used: items that the recording uses.
        left_out: items that a rule excludes, by kind and reason.
        failed: items that cannot be read, by kind and reason.
        remarks: sentences about the container, such as a file that is cut off.
    """

    held: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    left_out: defaultdict[str, Counter[str]] = field(default_factory=_reasons)
    failed: defaultdict[str, Counter[str]] = field(default_factory=_reasons)
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, held: Mapping[str, int], used: Mapping[str, int], skipped: Mapping[str, int]
    ) -> Account:
        """Account of a reader whose reasons start with "KIND: ", or are of its first kind."""
        found = cls(Counter(held), Counter(used))
        for reason, count in skipped.items():
            if reason.startswith(UNREADABLE):
                continue
            kind, colon, text = reason.partition(": ")
            if colon and kind in held:
                found.left_out[kind][text] += count
            else:
                found.left_out[next(iter(held))][reason] += count
        return found

    def unexplained(self) -> dict[str, int]:
        """Items by kind that are held, and neither used, left out nor failed."""
        rest = {kind: held - self._explained(kind) for kind, held in self.held.items()}
        return {kind: count for kind, count in rest.items() if count}

    def check(self, name: str) -> None:
        """Raise InputError if there are unexplained items in the recording `name`."""
        for kind, count in self.unexplained().items():
            raise InputError(
                f"{name}: {kind} holds {self.held[kind]} and {self.held[kind] - count} were read, "
                "for no known reason; the recording is damaged. Repair it ('mcap recover', 'ros2 "
                "bag reindex'), or copy it again"
            )

    def entries(self) -> dict[str, Entry]:
        """The numbers by kind; similar reasons are one (see `grouped`)."""
        rest = self.unexplained()
        return {
            kind: Entry(
                held=held,
                used=self.used[kind],
                left_out=dict(grouped(self.left_out.get(kind, {}))),
                failed=dict(grouped(self.failed.get(kind, {}))),
                unexplained=rest.get(kind, 0),
            )
            for kind, held in self.held.items()
        }

    def lines(self) -> list[str]:
        """One line per kind, and the remarks."""
        return [entry.line(kind) for kind, entry in self.entries().items()] + self.remarks

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The numbers by kind, for JSON."""
        return {kind: entry.model_dump() for kind, entry in self.entries().items()}

    def _explained(self, kind: str) -> int:
        reasons = self.left_out.get(kind, Counter()), self.failed.get(kind, Counter())
        return self.used[kind] + sum(sum(counts.values()) for counts in reasons)


def account(recording: Recording) -> Account:
    """The account of a recording of any reader, with the samples that failed so far."""
    given = getattr(recording, "account", None)
    if isinstance(given, Account):
        found = Account(
            Counter(given.held),
            Counter(given.used),
            given.left_out,
            _copied(given.failed),
            given.remarks,
        )
    else:
        other = {r: n for r, n in recording.skipped.items() if not r.startswith(UNREADABLE)}
        found = Account(Counter(sweeps=len(recording)), Counter(sweeps=len(recording)))
        if other:
            found.held["other items"] = sum(other.values())
            found.left_out["other items"] = Counter(other)
    kind = next(iter(found.used), "sweeps")
    for reason, count in recording.skipped.items():
        if reason.startswith(UNREADABLE):
            lost = min(count, found.used[kind])
            found.used[kind] -= lost
            found.failed[kind][reason.removeprefix(UNREADABLE)] += lost
    return found


def grouped(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """(reason, count), most frequent first; reasons that differ in numbers alone are one.

    Stamps, sizes and file names do not make a reason of their own. The first stands for all.
    """
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for reason, count in reasons.items():
        key = re.sub(r"\d+(\.\d+)?", "#", reason)
        counts[first.setdefault(key, reason)] += count
    return counts.most_common()


def _copied(reasons: Mapping[str, Counter[str]]) -> defaultdict[str, Counter[str]]:
    return defaultdict(Counter, {kind: Counter(counts) for kind, counts in reasons.items()})
