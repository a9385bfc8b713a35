"""How a build remembers what it has done: a stamp per finished step, and one lock per folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlhpc.errors import StorageError
from dlhpc.files import read_json, replace_json, storage_errors

FOLDER = ".dlhpc"


def key_of(*inputs: Any) -> str:
    """A short hash of JSON-able inputs: the same inputs give the same key, in every process."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Stamps:
    """The finished steps of one environment, each with the key of its inputs and what it found."""

    prefix: Path

    def _path(self, step: str) -> Path:
        return self.prefix / FOLDER / "steps" / f"{step}.json"

    def found(self, step: str, key: str) -> dict[str, Any] | None:
        """What the step noted when it finished with this key; None if it has to run (again)."""
        try:
            stamp = read_json(self._path(step))
        except StorageError:
            return None
        if not isinstance(stamp, dict) or stamp.get("key") != key:
            return None
        facts = stamp.get("facts")
        return facts if isinstance(facts, dict) else None

    def put(self, step: str, key: str, **facts: Any) -> None:
        """Note that the step finished."""
        path = self._path(step)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, {"key": key, "facts": facts})

    def drop(self, step: str) -> None:
        """Forget the step, before its work begins to change something."""
        with storage_errors(self._path(step), "remove"):
            self._path(step).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``; ``waiting`` is called once if somebody else holds it.

    The lock goes with the process that holds it, however that ends. File systems without locks are used unlocked.
    """
    with storage_errors(path, "lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
        yield
    finally:
        os.close(descriptor)
