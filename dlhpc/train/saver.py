"""Checkpoints are written by a thread, while training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dlhpc.train.checkpoint import Checkpoints, Pending


class Saver:
    """Writes one checkpoint at a time. What goes wrong is raised by the next call, on the training thread.

    ``written(name)`` is called by the thread once a checkpoint is durable.
    """

    def __init__(self, checkpoints: Checkpoints, written: Callable[[Pending], None]) -> None:
        self._checkpoints, self._written = checkpoints, written
        self._thread: threading.Thread | None = None
        self._pending: Pending | None = None
        self._failure: BaseException | None = None
        self.seconds = 0.0
        """What the last checkpoint took, from its beginning until it was durable."""

    @property
    def busy(self) -> bool:
        """Something is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, pending: Pending) -> None:
        """Begin to write; waits for the checkpoint before. :meth:`release` must be called before tensors change."""
        self.wait()
        self._pending = pending
        self._thread = threading.Thread(target=self._write, args=(pending,), name="checkpoint", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Weights and optimiser state are about to change: what has not been read of them is copied now."""
        if self._pending is None:
            return
        if not self.busy:
            self.wait()
        elif not self._pending.released:
            self._pending.held.keep_all()
            self._pending.released = True

    def wait(self) -> None:
        """Return when the checkpoint is durable."""
        if self._thread is not None:
            self._thread.join()
        self._thread = self._pending = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, pending: Pending) -> None:
        began = time.perf_counter()
        try:
            self._checkpoints.write(pending)
            self.seconds = time.perf_counter() - began
            self._written(pending)
        except BaseException as error:  # noqa: BLE001 - told by the thread that trains
            self._failure = error
