"""Long commands of a build: every line into the log, progress to the user, nothing left running behind."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from dlhpc.errors import CommandError
from dlhpc.files import storage_errors

_ERROR_LINE = re.compile(r"\b(?:fatal error|error|CMake Error)\b", re.IGNORECASE)

_ADVICE = (
    ("No space left on device", "Free some space on this file system, then repeat the command; it continues."),
    ("Disk quota exceeded", "Free some of your quota, then repeat the command; it continues."),
    ("Temporary failure in name resolution", "Check the network connection or proxy, then repeat the command."),
    ("NewConnectionError", "Check the network connection or proxy, then repeat the command; it continues."),
    ("No matching distribution found", "Check the version in the recipe, and that pip's index can be reached."),
    ("Killed signal terminated program", "The compiler ran out of memory: set MAKEFLAGS=-j1 and repeat the command."),
)


class StepFailed(CommandError):
    """A command of a build failed; the message holds what it said last and where the whole log lies."""


def _advice(said: Sequence[str], otherwise: str) -> str:
    text = "\n".join(said)
    return next((advice for sign, advice in _ADVICE if sign in text), otherwise)


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Interrupt the command and all it started (it is a session of its own); kill what does not leave."""
    for number, seconds in ((signal.SIGINT, grace), (signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def stream(
    argv: Sequence[str | Path],
    *,
    log: Path,
    remedy: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    grace: float = 10.0,
    on_line: Callable[[str], None] | None = None,
    on_tick: Callable[[], None] | None = None,
) -> list[str]:
    """Run ``argv``, append what it says to ``log``, and give its last 200 lines.

    ``env`` is the whole environment; ``on_line`` gets each line, ``on_tick`` is called about once a second;
    ``timeout`` is in seconds. If this process is interrupted, the command and its children are ended first, with
    ``grace`` seconds to leave by themselves.
    Raises :class:`StepFailed`.
    """
    words = [str(word) for word in argv]
    said: deque[str] = deque(maxlen=200)
    errors: list[str] = []
    started = time.monotonic()

    def hear(line: str) -> None:
        line = line.rstrip()
        if line:
            said.append(line)
            if len(errors) < 3 and _ERROR_LINE.search(line):
                errors.append(line)
        if on_line is not None:
            on_line(line)

    with storage_errors(log), log.open("ab") as book, _as_interrupt():
        book.write(f"\n$ {' '.join(words)}\n".encode())
        book.flush()
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except (FileNotFoundError, PermissionError) as error:
            raise StepFailed(f"`{words[0]}` cannot be run: {error.strerror}", where=log, remedy=remedy) from error
        assert process.stdout is not None
        try:
            rest = b""
            with process.stdout as pipe, selectors.DefaultSelector() as selector:
                selector.register(pipe, selectors.EVENT_READ)
                while True:
                    if selector.select(1.0):
                        chunk = os.read(pipe.fileno(), 65536)
                        if not chunk:
                            break
                        book.write(chunk)
                        book.flush()
                        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                        for line in lines:
                            hear(line.decode(errors="replace"))
                    elif process.poll() is not None:
                        break  # a grandchild keeps the pipe open
                    if on_tick is not None:
                        on_tick()
                    if timeout is not None and time.monotonic() - started > timeout:
                        raise StepFailed(
                            f"`{Path(words[0]).name}` did not end within {timeout:g} s", where=log, remedy=remedy
                        )
            hear(rest.decode(errors="replace"))
            code = process.wait()
        except BaseException:
            _end(process, grace)
            raise
    if code != 0:
        last = list(said)[-8:]
        shown = [line for line in errors if line not in last] + last
        quoted = "".join(f"\n    {line[:300]}" for line in shown)
        raise StepFailed(
            f"`{Path(words[0]).name}` ended with code {code}. It said:{quoted}",
            where=log,
            remedy=_advice(shown, remedy),
        )
    return list(said)


@contextlib.contextmanager
def _as_interrupt() -> Iterator[None]:
    """While a command runs, TERM and HUP end us as Ctrl-C does, so that the command is ended with us."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
    with contextlib.suppress(ValueError):  # not the main thread: whoever runs us there cares for signals
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
