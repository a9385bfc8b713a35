"""Header → ``#SBATCH`` lines. Pure.

Syntax: sbatch(1). How sbatch splits a directive into words (blanks, both quotes, backslash, ``#``) and what it makes of
``%`` and backslash in a file name was tried on Slurm 22.05.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlhpc.errors import UserError
from dlhpc.schedulers.base import Header
from dlhpc.schedulers.directives import MEBIBYTE, compressed, raise_faults

_LONGEST_ARRAY = 4096
"""Characters; slurmctld refuses a longer list of tasks."""
_LONGEST_SIGNAL_S = 65535
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:@,/-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_./%+:@,=-]+")
_UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_MAIL = {"begin": "BEGIN", "end": "END", "fail": "FAIL"}

_OWN: dict[str, str] = {
    "time": "job.walltime", "time-min": "job.walltime", "nodes": "job.nodes", "ntasks-per-node": "job.ranks_per_node",
    "ntasks": "job.nodes and job.ranks_per_node", "cpus-per-task": "job.cores_per_rank",
    "cpus-per-gpu": "job.cores_per_rank", "gres": "job.gpus_per_rank, or gpu.resource in the site profile",
    "gpus": "job.gpus_per_rank", "gpus-per-node": "job.gpus_per_rank", "gpus-per-socket": "job.gpus_per_rank",
    "gpus-per-task": "job.gpus_per_rank", "mem": "job.memory", "mem-per-cpu": "job.memory", "mem-per-gpu": "job.memory",
    "partition": "job.queue", "account": "job.account", "mail-user": "job.mail", "mail-type": "job.mail_on",
    "exclusive": "job.exclusive", "reservation": "job.reservation", "qos": "job.qos", "dependency": "job.after",
    "hold": "job.hold", "job-name": "name", "array": "sweep", "clusters": "", "cluster": "", "error": "", "export": "",
    "export-file": "", "get-user-env": "", "gid": "", "help": "", "input": "", "kill-on-invalid-dep": "",
    "no-requeue": "", "open-mode": "", "output": "", "parsable": "", "quiet": "", "requeue": "", "signal": "",
    "test-only": "", "uid": "", "usage": "", "version": "", "wait": "", "wrap": "",
}  # fmt: skip
"""Options that dlhpc sets itself or that would change how it submits, and the key of the spec that says the same."""

_SHORT = {
    "t": "time", "N": "nodes", "n": "ntasks", "c": "cpus-per-task", "G": "gpus", "p": "partition", "A": "account",
    "q": "qos", "d": "dependency", "H": "hold", "J": "job-name", "a": "array", "M": "clusters", "e": "error",
    "i": "input", "o": "output", "h": "help", "Q": "quiet", "V": "version", "W": "wait",
}  # fmt: skip
_FLAGS = "kOsv"
"""Short options without a value: another may follow in the same word."""


def directives(header: Header) -> list[str]:
    """The ``#SBATCH`` lines of a job script; see :meth:`dlhpc.schedulers.base.Scheduler.directives`."""
    words = [
        f"--job-name={_word(header.name, 'the job name')}",
        f"--output={output_value(header.output, array=bool(header.array))}",
        "--open-mode=append",
        f"--nodes={header.nodes}",
        f"--ntasks-per-node={header.ranks_per_node}",
        f"--cpus-per-task={header.cores_per_rank}",
    ]
    if header.gpus_per_node:
        resource = _word(header.gpu_resource or "gpu", "gpu.resource")
        words.append(f"--gres={resource}:{header.gpus_per_node}")
    if header.memory_bytes is not None:
        # Rounded down: a node whose whole memory is asked for has not a fraction of a MiB more.
        words.append(f"--mem={max(1, header.memory_bytes // MEBIBYTE)}M")
    words.append(f"--time={time_limit(header.walltime_seconds)}")
    if header.warning_seconds > 0:
        words.append(f"--signal=B:USR2@{_signal_seconds(header)}")
    for option, value, key in (
        ("partition", header.queue, "job.queue"),
        ("account", header.account, "job.account"),
        ("reservation", header.reservation, "job.reservation"),
        ("qos", header.qos, "job.qos"),
    ):
        if value is not None:
            words.append(f"--{option}={_word(value, key)}")
    if header.exclusive:
        words.append("--exclusive")
    if header.mail is not None and header.mail_on:
        words.append(f"--mail-user={_word(header.mail, 'job.mail')}")
        words.append(f"--mail-type={','.join(_MAIL[event] for event in header.mail_on)}")
    if header.array:
        words.append(f"--array={array_value(header.array, header.array_running)}")
    # A job whose node fails goes back into the queue; one that can never start does not wait for ever.
    words += ["--requeue", "--kill-on-invalid-dep=yes"]
    raise_faults([error for extra in header.extra if (error := _refusal(extra)) is not None])
    return [f"#SBATCH {word}" for word in (*words, *(extra.strip() for extra in header.extra))]


def time_limit(seconds: int) -> str:
    """``[D-]H:MM:SS``. Slurm itself counts in minutes, and rounds up."""
    minutes, rest = divmod(max(1, seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hours:02d}:{minutes:02d}:{rest:02d}"


def array_value(indices: Sequence[int], running: int | None) -> str:
    """The value of ``--array``."""
    value = compressed(indices, steps=True) + (f"%{running}" if running is not None else "")
    if len(value) >= _LONGEST_ARRAY:
        raise UserError(
            f"Slurm takes no array whose task numbers need {len(value)} characters",
            remedy="Submit it in several parts, or with numbers that follow each other.",
        )
    return value


def output_value(path: Path, *, array: bool) -> str:
    """A file name for ``--output``, in which sbatch finds no pattern but ``%a`` (the task's number) of an array."""
    text = str(path)
    if "\\" in text:
        raise UserError(
            "Slurm cannot write into a folder whose name has a backslash", where=path, remedy="Choose another --runs."
        )
    if _UNSPEAKABLE.search(text):
        raise UserError(
            "a directive cannot hold a path with control characters or bytes that are no UTF-8",
            where=repr(text),
            remedy="Choose another --runs.",
        )
    text = text.replace("%", "%%")
    if array:
        suffix = path.suffix.replace("%", "%%")
        text = f"{text.removesuffix(suffix) if suffix else text}-%a{suffix}"
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _signal_seconds(header: Header) -> int:
    """Slurm counts the warning from its own limit, which is the walltime rounded up to minutes."""
    limit = -(-max(1, header.walltime_seconds) // 60) * 60
    return min(_LONGEST_SIGNAL_S, header.warning_seconds + limit - header.walltime_seconds)


def _word(value: str, what: str) -> str:
    if not _WORD.fullmatch(value):
        raise UserError(
            f"{what} is {value!r}, which cannot stand in a directive", remedy="Letters, digits and `_.+:@,/-` can."
        )
    return value


def _refusal(extra: str) -> UserError | None:
    """Why this directive of the user's or the site's cannot be taken; None if it can."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in extra):
        return UserError(f"the directive {extra!r} holds a control character", remedy="Write one option a line.")
    try:
        words = list(_split(extra))
    except ValueError as error:
        return UserError(f"the directive `{extra}` {error}", remedy="Write it as sbatch has it: --constraint=a100")
    if not words or not words[0].startswith("-"):
        return UserError(
            f"the directive `{extra}` is no option of sbatch", remedy="Write it as sbatch has it: --constraint=a100"
        )
    for word in words:
        if (option := _own_option(word)) is not None:
            key = _OWN[option]
            return UserError(
                f"the directive `{extra}` sets --{option}, which dlhpc sets itself",
                remedy=f"Use {key} instead." if key else "Leave it out.",
            )
    return None


def _own_option(word: str) -> str | None:
    """The option of ours that this word sets, also abbreviated (``--tim=5``) or behind others (``-kN2``)."""
    if word.startswith("--"):
        name = word[2:].partition("=")[0]
        if name in _OWN:
            return name
        return next((own for own in _OWN if name and own.startswith(name)), None)
    if word.startswith("-"):
        for letter in word[1:]:
            if letter in _SHORT:
                return _SHORT[letter]
            if letter not in _FLAGS:
                return None
    return None


def _split(line: str) -> Iterator[str]:
    """The words of a directive as sbatch finds them. Raises :class:`ValueError` for what it would drop silently."""
    word: str | None = None
    quote = ""
    for letter in line:
        if letter == "\\":
            raise ValueError("has a backslash; quotes keep a value together")
        if quote and letter == quote:
            quote = ""
        elif quote:
            word = (word or "") + letter
        elif letter in "\"'":
            quote, word = letter, word or ""
        elif letter == "#":
            raise ValueError("has a `#`, and sbatch drops all that follows it; quotes keep it")
        elif letter.isspace():
            if word is not None:
                yield word
            word = None
        else:
            word = (word or "") + letter
    if quote:
        raise ValueError(f"lacks the second {quote}")
    if word is not None:
        yield word
