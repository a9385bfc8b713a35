"""The one place where dlhpc runs another program and waits for its answer."""

from __future__ import annotations

import os
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
    """The program is not on PATH."""


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
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
    remedy: str | None = None,
) -> Answer:
    """Run ``argv`` (never through a shell) and give its answer, whatever its exit code.

    ``timeout`` is in seconds; ``env`` is added to the environment. Raises :class:`CommandMissing` or
    :class:`CommandTimeout`.
    """
    words = tuple(str(word) for word in argv)
    try:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandMissing(
            f"the command `{words[0]}` was not found",
            remedy=remedy or f"Install it or put its folder on PATH: {words[0]}",
        ) from error
    except PermissionError as error:
        raise CommandMissing(f"the command `{words[0]}` may not be executed", remedy=remedy) from error
    except subprocess.TimeoutExpired as error:
        raise CommandTimeout(f"`{' '.join(words)}` did not answer within {timeout:g} s", remedy=remedy) from error
    return Answer(words, done.returncode, done.stdout, done.stderr)


def demand(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
    remedy: str | None = None,
) -> Answer:
    """As :func:`ask`, but a code other than zero raises :class:`CommandFailed`."""
    answer = ask(argv, timeout=timeout, env=env, cwd=cwd, stdin=stdin, remedy=remedy)
    if answer.code != 0:
        raise CommandFailed(answer, remedy)
    return answer
