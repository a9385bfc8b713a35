"""Directives for PBS that a user or a site writes by hand: checked for what qsub would drop without a word.

Of a repeated ``-l`` name qsub takes the first and forgets the second, of other options the last; a ``# comment`` behind
a directive is an error. So whatever dlhpc says itself is refused here, with the key of the spec that says it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from dlhpc.errors import UserError
from dlhpc.schedulers.base import Header
from dlhpc.schedulers.directives import raise_faults

_WITH_VALUE = {"pbs": frozenset("aAcCeJjklmMNopPqrRSuvW"), "torque": frozenset("aAbcCdDeFjklLmMNopPqrStTuvwW")}
_WITHOUT = {"pbs": frozenset("fhIVXzG"), "torque": frozenset("fhIVxXzn")}
_OURS = {
    "N": "the spec's `name`",
    "q": "job.queue",
    "A": "job.account",
    "M": "job.mail",
    "m": "job.mail_on",
    "J": "`--sweep`",
    "t": "`--sweep`",
    "h": "job.hold",
}
_NODES = "job.nodes, job.ranks_per_node and job.cores_per_rank"
_OURS_RESOURCES = {
    "walltime": "job.walltime",
    "select": _NODES,
    "nodes": _NODES,
    "procs": _NODES,
    "ncpus": _NODES,
    "mpiprocs": _NODES,
    "ompthreads": "job.cores_per_rank",
    "ngpus": "job.gpus_per_rank",
    "gpus": "job.gpus_per_rank",
    "mem": "job.memory",
    "pmem": "job.memory",
    "place": "job.exclusive",
    "naccesspolicy": "job.exclusive",
    "qos": "job.qos",
    "advres": "job.reservation",
}
_NEVER = {
    **dict.fromkeys("oejkR", "dlhpc keeps the job's output in the run's folder"),
    "r": "every job of dlhpc may be run again, since it goes on from its last checkpoint",
    "C": "it changes the word by which all directives are known",
    "I": "it makes the job interactive",
    "X": "it is for interactive jobs",
    "G": "it is for interactive jobs",
    "z": "it hides the job's id, which dlhpc must know",
    "S": "the job script is one for /bin/sh",
    "F": "the job script takes no arguments",
    "d": "the job finds its folder by itself",
}
_VARIABLES = re.compile(r"[A-Za-z_]\w*(=[\w./:+@%-]*)?(,[A-Za-z_]\w*(=[\w./:+@%-]*)?)*")


def extra_directives(header: Header, dialect: str) -> Iterator[str]:
    """The header's extra directives, without ``#PBS``. Raises what :func:`raise_faults` does."""
    faults: list[UserError] = []
    good: list[str] = []
    seen = {header.gpu_resource} if header.gpu_resource else set()
    for text in header.extra:
        try:
            for option in _options(text, "torque" if dialect == "torque" else "pbs"):
                _check(text, option, seen)
            good.append(text.strip())
        except UserError as error:
            faults.append(error)
    raise_faults(faults)
    yield from good


def _refused(text: str, why: str, remedy: str) -> UserError:
    return UserError(f"the directive `{text}` cannot be used: {why}", remedy=remedy)


def _options(text: str, system: str) -> Iterator[tuple[str, str]]:
    """The options of one directive with their values, split as qsub splits them."""
    if re.search(r"[^ -~]", text):
        raise _refused(text, "it holds a character other than printable ASCII", "Write it in plain letters.")
    if text.lstrip().startswith("#"):
        raise _refused(text, "it begins with `#`", "Write only what follows after `#PBS`.")
    if text.rstrip().endswith("\\"):
        raise _refused(text, "a backslash at its end joins it to the next line", "Remove the backslash.")
    try:
        words = shlex.split(text)
    except ValueError:
        raise _refused(text, "a quote is not closed", "Close it.") from None
    if not words:
        raise _refused(text, "it is empty", "Remove it.")
    while words:
        word = words.pop(0)
        if not re.fullmatch(r"-[A-Za-z].*", word):
            comment = " (qsub knows no comment behind a directive)" if word.startswith("#") else ""
            raise _refused(text, f"`{word}` is no option of qsub{comment}", "Write it as `-l software=abc`.")
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _WITHOUT[system]:
                yield letter, ""
            elif letter not in _WITH_VALUE[system]:
                raise _refused(text, f"qsub has no option -{letter}", "See `man qsub`.")
            elif not letters and not words:
                raise _refused(text, f"the option -{letter} lacks its value", "Write the value behind it.")
            else:
                yield letter, letters or words.pop(0)
                letters = ""


def _check(text: str, option: tuple[str, str], seen: set[str]) -> None:
    letter, value = option
    if letter in _OURS:
        raise _refused(text, "dlhpc says this itself", f"Use {_OURS[letter]} in its place.")
    if letter in _NEVER:
        raise _refused(text, _NEVER[letter], "Remove it.")
    if letter == "l":
        for name in (part.partition("=")[0].strip() for part in value.split(",") if "=" in part):
            if name in _OURS_RESOURCES:
                raise _refused(text, "PBS would not notice a second one", f"Use {_OURS_RESOURCES[name]} in its place.")
            _once(text, f"-l {name}" if name not in seen else name, seen)
    elif letter == "W":
        name, _, rest = value.partition("=")
        if name.strip() == "depend":
            raise _refused(text, "dlhpc says this itself", "Use job.after in its place.")
        if name.strip() == "x" and (ours := re.search("ADVRES|QOS", rest, re.IGNORECASE)):
            key = "job.qos" if ours[0].upper() == "QOS" else "job.reservation"
            raise _refused(text, "dlhpc says this itself", f"Use {key} in its place.")
        _once(text, f"-W {name.strip()}", seen)
    else:
        _once(text, f"-{letter}", seen)
        if letter == "v" and not _VARIABLES.fullmatch(value):
            raise _refused(
                text,
                "qsub loses quotes, backslashes and commas in a value without a word",
                "Set the variable in the profile, under launcher.environment.",
            )


def _once(text: str, what: str, seen: set[str]) -> None:
    if what in seen:
        raise _refused(text, f"`{what}` is given twice, and PBS would drop one of them", "Give it once.")
    seen.add(what)
