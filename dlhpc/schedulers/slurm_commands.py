"""Slurm's commands and the environments that they run in. Pure.

Options: the manual pages of sbatch, squeue, sacct, scancel and scontrol.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dlhpc.errors import UserError
from dlhpc.schedulers.base import Dependency, JobRequest
from dlhpc.schedulers.directives import compressed
from dlhpc.schedulers.slurm_parse import SEPARATOR, JobId, parse_job_id

LONGEST_LIST = 60_000
"""Characters of a list of ids in one argument; Linux takes 131,071."""

_QUEUE_OPTIONS = ("--all", "--noheader", "--states=all")
_QUEUE_FORMAT = SEPARATOR.join(("%i", "%T", "%r", "%S", "%e"))
_ENDING_FIELDS = ("%T", "%r", "%S", "%e")
_ACCOUNTING_OPTIONS = ("--allocations", "--noheader", "--parsable2", f"--delimiter={SEPARATOR}")


def submit_command(request: JobRequest) -> list[str]:
    """``sbatch --parsable …``. Raises :class:`UserError` for a tag or dependency that cannot be said."""
    return ["sbatch", "--parsable", *_submit_options(request), _script(request)]


def estimate_command(request: JobRequest) -> list[str]:
    """Answers when the job would start, and queues nothing (it uses up a job id)."""
    return ["sbatch", "--test-only", f"--job-name={_tag(request)}", _script(request)]


def queue_command(user: int, cluster: str | None = None) -> list[str]:
    """All jobs of one user, also those that ended in the last minutes."""
    return ["squeue", *_on(cluster), *_QUEUE_OPTIONS, f"--user={user}", f"--format={_QUEUE_FORMAT}"]


def queue_ids_command(jobs: Sequence[str], cluster: str | None = None, *, each_task: bool = False) -> list[str]:
    """These jobs, whoever's they are (all jobs if these are too many to name); with a line for each waiting task."""
    words = ",".join(jobs)
    named = [f"--jobs={words}"] if len(words) <= LONGEST_LIST else []
    lines = ["--array"] if each_task else []
    return ["squeue", *_on(cluster), *_QUEUE_OPTIONS, *lines, *named, f"--format={_QUEUE_FORMAT}"]


def accounting_command(jobs: Sequence[str], cluster: str | None = None) -> list[str]:
    """These jobs, whoever's they are, from the accounting database."""
    return [
        *("sacct", *_on(cluster), *_ACCOUNTING_OPTIONS, "--allusers", "--starttime=2000-01-01"),
        *(f"--jobs={','.join(jobs)}", "--format=JobID,State,ExitCode,Start,End"),
    ]


def find_command(tag: str, user: int, cluster: str | None = None) -> list[str]:
    """The user's jobs of this name in the queue."""
    return [
        *("squeue", *_on(cluster), *_QUEUE_OPTIONS, f"--user={user}", f"--name={tag}"),
        f"--format=%i{SEPARATOR}%j",
    ]


def find_accounting_command(tag: str, user: int, cluster: str | None = None) -> list[str]:
    """The user's jobs of this name in a year of accounting."""
    return [
        *("sacct", *_on(cluster), *_ACCOUNTING_OPTIONS, f"--user={user}", f"--name={tag}", "--starttime=now-366days"),
        "--format=JobID,JobName",
    ]


def cancel_commands(job_ids: Iterable[JobId]) -> list[list[str]]:
    """Few scancel for many ids; tasks of one array together."""
    return [["scancel", *_on(cluster), *words] for cluster, words in _portions(job_ids)]


def control_commands(verb: str, job_ids: Iterable[JobId]) -> list[list[str]]:
    """``scontrol hold`` or ``release`` for many ids."""
    return [["scontrol", *_on(cluster), verb, ",".join(words)] for cluster, words in _portions(job_ids)]


def ending_command(job_id: JobId) -> list[str]:
    """Whether Slurm is ending this job, why, and when it would end (see :func:`was_cancelled`)."""
    return [
        *("squeue", *_on(job_id.cluster), "--all", "--noheader", f"--jobs={job_id.word}"),
        f"--format={SEPARATOR.join(_ENDING_FIELDS)}",
    ]


def asking_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """For questions: without the user's own formats and filters, times as seconds, lists of tasks whole."""
    foreign = ("SQUEUE_", "SACCT_", "SCANCEL_", "SBATCH_")
    kept = {name: value for name, value in environment.items() if not name.startswith(foreign)}
    return kept | {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}


def submitting_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """For sbatch: without ``SBATCH_*``, which beat directives, and what tells of the job that we run in ourselves.

    The new job would inherit the latter where Slurm has nothing to say, as the number of an array's task.
    """
    ours = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SACK_SOCKET", "SLURM_TIME_FORMAT")
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("SBATCH_") and (not name.startswith("SLURM_") or name in ours)
    }


def _on(cluster: str | None) -> tuple[str, ...]:
    return () if cluster is None else (f"--clusters={cluster}",)


def _tag(request: JobRequest) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]{0,199}", request.tag):
        raise UserError(
            f"a job of Slurm cannot be called {request.tag!r}", remedy="Use letters, digits, `_`, `-`, `.`."
        )
    return request.tag


def _script(request: JobRequest) -> str:
    path = str(request.script)
    return f"./{path}" if path.startswith("-") else path


def _submit_options(request: JobRequest) -> list[str]:
    if request.steps != 1:
        raise UserError("Slurm takes one job a submission", remedy="Submit the others with a dependency.")
    options = [f"--job-name={_tag(request)}"]
    if request.after:
        options.append(f"--dependency={_dependencies(request.after)}")
    if request.held:
        options.append("--hold")
    return options


def _dependencies(after: Sequence[Dependency]) -> str:
    kinds: dict[str, list[str]] = {}
    for dependency in after:
        known = parse_job_id(dependency.job_id)
        if known is None or dependency.kind not in ("afterok", "afternotok", "afterany"):
            raise UserError(f"Slurm has no dependency `{dependency.kind}` on `{dependency.job_id}`")
        kinds.setdefault(dependency.kind, []).append(known.word)
    return ",".join(":".join((kind, *words)) for kind, words in kinds.items())


def _portions(job_ids: Iterable[JobId]) -> Iterator[tuple[str | None, list[str]]]:
    """(cluster, words) for one command each: in the order given, tasks of one array as ``123_[0-9]``."""
    arrays: dict[tuple[str | None, str], set[int]] = {}
    for known in job_ids:
        tasks = arrays.setdefault((known.cluster, known.job), set())
        tasks.add(-1 if known.task is None else known.task)
    words: dict[str | None, list[str]] = {}
    for (cluster, job), tasks in arrays.items():
        if -1 in tasks:
            words.setdefault(cluster, []).append(job)
        elif len(tasks) == 1:
            words.setdefault(cluster, []).append(f"{job}_{min(tasks)}")
        else:
            words.setdefault(cluster, []).append(f"{job}_[{compressed(sorted(tasks))}]")
    for cluster, all_words in words.items():
        for first in range(0, len(all_words), 500):
            yield cluster, all_words[first : first + 500]
