# SPDX-License-Identifier: Apache-2.0
"""A thread that works on the newest item. No ROS imports."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LatestSlot(Generic[Item]):
    """Holds one item; a newer one replaces it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: Item | None = None
        self._closed = False

    def put(self, item: Item) -> bool:
        """Store an item. True if it replaced one that was waiting."""
        with self._changed:
            replaced = self._item is not None
            self._item = item
            self._changed.notify()
            return replaced

    def take(self) -> Item | None:
        """Wait for an item and remove it; None once the slot is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._item is not None)
            item, self._item = self._item, None
            return None if self._closed else item

    def clear(self) -> bool:
        """Discard the waiting item. True if there was one."""
        with self._changed:
            waited, self._item = self._item is not None, None
            return waited

    def close(self) -> None:
        """Discard the waiting item; `take` returns None from now on."""
        with self._changed:
            self._closed, self._item = True, None
            self._changed.notify_all()


class LatestWorker(Generic[Item]):
    """A thread that processes items one by one, skipping all but the newest.

    Args:
        process: called in the thread with each item.
        on_error: called in the thread with an item and the exception that `process` raised for
            it; the thread continues.
        name: name of the thread.
    """

    def __init__(
        self,
        process: Callable[[Item], None],
        on_error: Callable[[Item, Exception], None],
        name: str = "worker",
    ) -> None:
        self._process = process
        self._on_error = on_error
        self._slot: LatestSlot[Item] = LatestSlot()
        # A daemon, so that a call that never returns cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def offer(self, item: Item) -> bool:
        """Process an item next. True if it replaced one that was waiting."""
        return self._slot.put(item)

    def discard(self) -> bool:
        """Discard the waiting item. True if there was one."""
        return self._slot.clear()

    def stop(self, timeout_s: float) -> bool:
        """Discard the waiting item and end the thread after the current one.

        Returns:
            True if the thread has ended, False if it still runs after `timeout_s`.
        """
        self._slot.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._slot.take()) is not None:
            try:
                self._process(item)
            except Exception as error:
                self._handle(item, error)
            del item  # its memory is free while the thread waits

    def _handle(self, item: Item, error: Exception) -> None:
        try:
            self._on_error(item, error)
        except Exception:
            traceback.print_exc()
