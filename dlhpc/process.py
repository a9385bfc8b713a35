"""The one place where dlhpc runs another program and waits for its answer."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlhpc.errors import CommandError


@dataclass(frozen=True)
class Answer:
    """What a program said: exit code and both streams as text (undecodable bytes replaced)."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str


class CommandMissing(CommandError):
    """The program is not on PATH, or cannot be run."""


class CommandTimeout(CommandError):
    """The program did not answer in time; whether it acted is not known."""


class CommandFailed(CommandError):
    """The program ended with a code other than zero; ``answer`` holds what it said."""

    def __init__(self, answer: Answer, remedy: str | None = None) -> None:
        said = (answer.err.strip() or answer.out.strip() or "it said nothing")[-2000:]
        super().__init__(f"`{' '.join(answer.argv)}` ended with code {answer.code}: {said}", remedy=remedy)
        self.answer = answer


def ask(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    remedy: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Run ``argv`` (never through a shell) and give its answer, whatever its exit code.

    It gets nothing on its standard input, and our own environment unless ``environment`` is given (all of it then).
    ``timeout`` is in seconds. Raises :class:`CommandMissing` or
    :class:`CommandTimeout`.
    """
    words = tuple(str(word) for word in argv)
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env=environment,
            close_fds=False,  # a lock that was made inheritable stays taken while the program lives, even without us
        )
    except FileNotFoundError as error:
        raise CommandMissing(
            f"the command `{words[0]}` was not found",
            remedy=remedy or f"Install it or put its folder on PATH: {words[0]}",
        ) from error
    except OSError as error:
        raise CommandMissing(f"the command `{words[0]}` cannot be run: {error.strerror}", remedy=remedy) from error
    except subprocess.TimeoutExpired as error:
        raise CommandTimeout(f"`{' '.join(words)}` did not answer within {timeout:g} s", remedy=remedy) from error
    return Answer(words, done.returncode, done.stdout, done.stderr)


def demand(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    remedy: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """As :func:`ask`, but a code other than zero raises :class:`CommandFailed`."""
    answer = ask(argv, timeout=timeout, remedy=remedy, environment=environment)
    if answer.code != 0:
        raise CommandFailed(answer, remedy)
    return answer
