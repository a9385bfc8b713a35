"""What stands in the ``#PBS`` lines: for OpenPBS and PBS Professional in three dialects, and for Torque.

Sources: the manual pages ``qsub(1B)`` and ``pbs_resources(7B)`` of OpenPBS 23, Torque's `Requesting Resources`, and
what a real OpenPBS 23.06 server took and refused. A directive is split into words at blanks, with quotes and
backslashes; of a repeated ``-l`` name the first one counts and the others are dropped without a word, so none is ever
repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from dlhpc.errors import UserError
from dlhpc.schedulers.base import Header
from dlhpc.schedulers.directives import MEBIBYTE, clock, compressed, gather
from dlhpc.schedulers.pbs_extra import extra_directives

_LONGEST = 4000
"""qsub reads lines into 4 KiB."""
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]*")
_RESOURCE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_PATH = re.compile(r"[A-Za-z0-9_./+@%=,~-]+")
_PATH_WITH_BLANKS = re.compile(r"[A-Za-z0-9_./+@%=,~ -]+")


def directives(header: Header, dialect: str) -> list[str]:
    """The ``#PBS`` lines for a header; ``dialect`` is ``select``, ``nodes``, ``totals`` or ``torque``.

    The early warning before the walltime is not among them: PBS has no such signal, the trainer keeps its own deadline.
    Raises :class:`UserError`, or an ``ErrorList`` of them, for what cannot be said.
    """
    return gather(*(_lines(part(header, dialect)) for part in (_about, _place, _people, _tasks, extra_directives)))


def _lines(words: Iterable[str]) -> Iterator[str]:
    """With ``#PBS`` before each; a comment is left as it is."""
    for line in (word if word.startswith("#") else f"#PBS {word}" for word in words):
        if len(line) > _LONGEST:
            raise UserError(
                f"a directive for PBS is too long: {line[:60]}…", remedy="Use a folder of runs with a shorter path."
            )
        yield line


def job_name(text: str, dialect: str) -> str:
    """``text`` as a name that PBS takes: letters, digits and ``-_+.``, at most 230; Torque's begin with a letter."""
    name = re.sub(r"[^A-Za-z0-9_+.-]", "_", text)[:230] or "dlhpc"
    return name if dialect != "torque" or name[0].isalpha() else f"j{name}"[:230]


def _checked(text: str, what: str) -> str:
    if not _WORD.fullmatch(text):
        raise UserError(
            f"{what} `{text}` cannot stand in a directive of PBS", remedy="Use letters, digits and _ . + : @ - only."
        )
    return text


def _about(header: Header, dialect: str) -> Iterator[str]:
    """Name, output, shell."""
    yield f"-N {job_name(header.name, dialect)}"
    output = header.output
    if header.array and dialect != "torque":  # Torque puts the index behind the name by itself
        output = output.with_name(f"{output.stem}-^array_index^{output.suffix}")
    text = str(header.output)
    if not (_PATH if dialect == "torque" else _PATH_WITH_BLANKS).fullmatch(text):
        odd = sorted(set(re.sub(r"[A-Za-z0-9_./+@%=,~-]", "", text)))
        raise UserError(
            f"the path {text!r} cannot be given to PBS: it holds {' '.join(repr(letter) for letter in odd[:5])}",
            remedy="Use a folder of runs (--runs, DLHPC_RUNS) whose path has letters, digits and _.+-=@%,~ only.",
        )
    yield f'-o "{output}"' if " " in text else f"-o {output}"
    yield "-j oe"
    if dialect == "torque":
        # The user's login shell, perhaps a csh, reads the script otherwise.
        yield "-S /bin/sh"
    else:
        # Straight into the file while the job runs, and appended to what is there. Otherwise the file is replaced at
        # the job's end, and lost where it cannot be copied.
        yield "-k oed"


def _place(header: Header, dialect: str) -> Iterator[str]:
    """Walltime, nodes, cores, GPUs, memory."""
    yield f"-l walltime={clock(max(1, header.walltime_seconds))}"
    cores = header.ranks_per_node * header.cores_per_rank
    gpu = header.gpu_resource or ("gpus" if dialect == "torque" else "ngpus")
    if not _RESOURCE.fullmatch(gpu):  # a colon would begin another resource
        raise UserError(
            f"`{gpu}` is no name of a PBS resource",
            remedy="Correct gpu.resource in the site profile: a letter, then letters, digits, `_` or `-`.",
        )
    megabytes = None if header.memory_bytes is None else max(1, header.memory_bytes // MEBIBYTE)
    if dialect == "select":
        chunk = f"ncpus={cores}:mpiprocs={header.ranks_per_node}:ompthreads={header.cores_per_rank}"
        if header.gpus_per_node:
            chunk += f":{gpu}={header.gpus_per_node}"
        if megabytes is not None:
            chunk += f":mem={megabytes}mb"
        yield f"-l select={header.nodes}:{chunk}"
        # Without scatter, chunks may land on one node.
        yield f"-l place={'scatter' if header.nodes > 1 else 'pack'}{':excl' if header.exclusive else ''}"
        return
    if dialect == "totals":
        if header.exclusive:
            raise UserError(
                "a node for one job alone cannot be asked of PBS without `select`",
                remedy="Remove job.exclusive and ask for all cores of the node, or use a site with `dialect: select`.",
            )
        yield f"-l ncpus={header.nodes * cores}"
        if header.gpus_per_node:
            yield f"-l {gpu}={header.nodes * header.gpus_per_node}"
        if megabytes is not None:
            yield f"-l mem={header.nodes * megabytes}mb"
        return
    node = f"nodes={header.nodes}:ppn={cores}"
    if header.gpus_per_node and dialect == "torque":
        node += f":{gpu}={header.gpus_per_node}"
    elif header.gpus_per_node:
        raise UserError(
            "PBS takes no GPUs together with `nodes=…:ppn=…`",
            remedy="Set `dialect: select` (or `totals`) in the site profile, or job.gpus_per_rank to 0.",
        )
    yield f"-l {node}"
    if megabytes is not None:
        yield f"-l mem={header.nodes * megabytes}mb"  # of the whole job
    if header.exclusive and dialect == "torque":
        yield "-l naccesspolicy=singlejob"
    elif header.exclusive:
        raise UserError(
            "a node for one job alone cannot be asked of PBS together with `nodes=…:ppn=…`",
            remedy="Remove job.exclusive and ask for all cores of the node, or set `dialect: select` in the profile.",
        )


def _people(header: Header, dialect: str) -> Iterator[str]:
    """Queue, reservation, quality of service, account, mail."""
    if header.reservation is not None and dialect != "torque":
        # A reservation of PBS is a queue, so that only one of the two can be named.
        reservation = _checked(header.reservation, "job.reservation").partition(".")[0]
        if header.queue is not None:
            queue = _checked(header.queue, "job.queue")
            yield f"# The reservation {reservation} is a queue of its own: it stands in place of {queue}."
        yield f"-q {reservation}"
    elif header.queue is not None:
        yield f"-q {_checked(header.queue, 'job.queue')}"
    if header.reservation is not None and dialect == "torque":
        yield f"-W x=FLAGS:ADVRES:{_checked(header.reservation, 'job.reservation')}"
    if header.qos is not None:
        if dialect != "torque":
            raise UserError(
                "PBS has no quality of service to ask for", remedy="Remove job.qos, or choose another job.queue."
            )
        yield f"-l qos={_checked(header.qos, 'job.qos')}"
    if header.account is not None:
        yield f"-A {_checked(header.account, 'job.account')}"
    if header.mail is not None:
        yield f"-M {_checked(header.mail, 'job.mail')}"
        points = {"begin": "b", "end": "e", "fail": "a"}
        letters = "".join(sorted({points[moment] for moment in header.mail_on if moment in points}))
        yield f"-m {letters or 'n'}"


def _tasks(header: Header, dialect: str) -> Iterator[str]:
    """May be run again; the tasks of an array."""
    yield "-r y"
    if header.array:
        limit = "" if header.array_running is None else f"%{header.array_running}"
        yield f"{'-t' if dialect == 'torque' else '-J'} {indices(header.array, dialect)}{limit}"


def indices(array: tuple[int, ...], dialect: str) -> str:
    """``0-9`` or ``0-8:2``; Torque has no steps, but lists: ``0-3,7``."""
    if dialect == "torque":
        return compressed(array)
    if len(array) < 2:
        raise UserError("an array of PBS has at least two tasks", remedy="Submit the one as a job of its own.")
    step = array[1] - array[0]
    if step < 1 or array != tuple(range(array[0], array[-1] + 1, step)):
        raise UserError(
            "an array of PBS has tasks at equal distances, and these are not",
            remedy="Submit each part of the array by itself.",
        )
    return f"{array[0]}-{array[-1]}" + (f":{step}" if step > 1 else "")
