"""What the commands of OpenPBS, PBS Professional and Torque say, as values. Pure, and never surprised.

Sources: ``qstat(1B)`` and ``pbs_job_attributes(7B)`` of OpenPBS 23; the exit codes of OpenPBS' ``job.h``; Torque's
manual for ``qstat -f`` and its exit codes; and what a real OpenPBS 23.06 server answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from dlhpc.schedulers.base import JobState, JobStatus
from dlhpc.schedulers.waits import QueueJob, parse_clock, parse_time

Attributes = dict[str, str]
"""Of one job or node, as text; ``Resource_List.walltime`` is one name."""

_ID = re.compile(r"\d+(?:\[\d*\])?(?:\.[A-Za-z0-9_.-]+)?")
_ATTRIBUTE = re.compile(r"^ {2,8}([A-Za-z][\w.]*) =\s?(.*)$")
_NOT_KNOWN = re.compile(r"unknown job|has finished|job history", re.IGNORECASE)
HISTORY_OFF = re.compile(r"history", re.IGNORECASE)
FINISHED_CODE, UNKNOWN_CODE = 35, 153
"""Exit codes of qstat: PBS' error numbers 15139 and 15001, of which a process can leave the last eight bits."""

_STATES = {
    "B": (JobState.RUNNING, None),  # an array that has begun
    "E": (JobState.RUNNING, "it is being cleared away"),
    "F": (JobState.ENDED, None),
    "X": (JobState.ENDED, None),  # a task of an array
    "C": (JobState.ENDED, None),  # Torque
    "H": (JobState.HELD, None),
    "M": (JobState.UNKNOWN, "it was moved to another server"),
    "Q": (JobState.QUEUED, None),
    "R": (JobState.RUNNING, None),
    "S": (JobState.RUNNING, "suspended by the server"),
    "T": (JobState.QUEUED, "it is being moved"),
    "U": (JobState.RUNNING, "suspended: somebody works at its machine"),
    "W": (JobState.QUEUED, "it waits for its time"),
}
_ENDS = {
    -1: "the server could not start it, and lost its output",
    -2: "the server could not start it",
    -3: "the server could not start it, and was to try again",
    -4: "the node's server was restarted while it ran",
    -5: "the node's server was restarted while it ran",
    -6: "the node's server was restarted while it ran",
    -7: "it could not be restarted from its checkpoint",
    -10: "the node does not know the user or its group",
    -11: "it was to be run again",
    -12: "it was saved and killed",
    -13: "the user's password was refused",
    -14: "it was to be run again",
    -15: "it was to be run again from its checkpoint",
    -16: "a hook of the site refused it, and wants it tried again",
    -17: "a hook of the site refused it",
    -18: "a hook of the site wants it run again",
    -19: "a hook of the site deleted it",
    -20: "the connection to its first node was lost",
    -21: "PBS' own folder on the node is not safe",
    -22: "a hook of the site failed",
    -23: "its Kerberos credentials are missing",
    -24: "it used more cores than it had asked for",
    -25: "it used more cores than it had asked for",
    -26: "it used more virtual memory than it had asked for",
    -27: "it used more memory than it had asked for",
    -28: "it used more processor time than it had asked for",
    -29: "it reached its walltime",
}
"""OpenPBS' ``JOB_EXEC_…``; Torque shares the first seven."""
_TORQUE_ENDS = {
    -8: "the server could not run its command",
    -9: "its output could not be opened",
    -10: "it used more memory than it had asked for",
    -11: "it reached its walltime",
    -12: "it used more processor time than it had asked for",
}


def parse_submission(out: str) -> str | None:
    """The id in what qsub printed, whole (``123.server``, ``98[].server``); other lines may come from hooks."""
    for line in reversed(out.splitlines()):
        if _ID.fullmatch(line.strip()):
            return line.strip()
    return None


def parse_ids(out: str) -> list[str]:
    """The ids that qselect printed, one a line."""
    return [line.strip() for line in out.splitlines() if _ID.fullmatch(line.strip())]


def parse_json(out: str, group: str = "Jobs") -> dict[str, Attributes] | None:
    """``qstat -f -F json`` (``Jobs``) or ``pbsnodes -F json`` (``nodes``); None if this is no such answer.

    The group is missing where there is nothing to tell. Values that look like numbers come as numbers, so all are
    turned into text again, save for what is lost: nothing here depends on ``007``.
    """
    start = out.find("{")
    if start < 0:
        return None
    try:
        answer, _ = json.JSONDecoder(strict=False).raw_decode(out, start)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    things = answer.get(group, {})
    if not isinstance(things, dict):
        return None
    return {str(name): _flat(thing) for name, thing in things.items() if isinstance(thing, dict)}


def _flat(thing: Mapping[str, object]) -> Attributes:
    flat: Attributes = {}
    for name, value in thing.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": str(one) for key, one in value.items() if not isinstance(one, (dict, list))}
        elif not isinstance(value, list):
            flat[str(name)] = str(value)
    return flat


def parse_full(out: str) -> dict[str, Attributes]:
    """``qstat -f``: blocks of ``name = value``, long values folded onto lines that begin with a tab."""
    return dict(_blocks(out, re.compile(r"^Job Id: (\S+)\s*$")))


def parse_nodes(out: str) -> dict[str, Attributes]:
    """``pbsnodes -a`` as Torque prints it."""
    return dict(_blocks(out, re.compile(r"^(\S+)\s*$")))


def _blocks(out: str, head: re.Pattern[str]) -> Iterator[tuple[str, Attributes]]:
    name: str | None = None
    found: Attributes = {}
    last: str | None = None
    for line in out.splitlines():
        if (begin := head.match(line)) is not None:
            if name is not None:
                yield name, found
            name, found, last = begin[1], {}, None
        elif line.startswith("\t") and last is not None:
            found[last] += line[1:]
        elif (attribute := _ATTRIBUTE.match(line)) is not None:
            last = attribute[1]
            found[last] = attribute[2]
    if name is not None:
        yield name, found


def number_of(job_id: str) -> str:
    """``123`` of ``123.server``, ``98[2]`` of ``98[2].server``; a job that moves gets another suffix."""
    return job_id.partition(".")[0]


def array_of(job_id: str) -> str | None:
    """``98[].server`` of ``98[2].server``; None for what is no task of an array."""
    found = re.match(r"(\d+)\[\d+\](.*)", job_id, re.DOTALL)
    return f"{found[1]}[]{found[2]}" if found else None


def lookup(jobs: Mapping[str, Attributes], job_id: str) -> Attributes | None:
    """The job of this id, also if its suffix has changed and no other has its number."""
    if job_id in jobs:
        return jobs[job_id]
    same = [known for known in jobs if number_of(known) == number_of(job_id)]
    return jobs[same[0]] if len(same) == 1 else None


def status_of(job_id: str, job: Mapping[str, str]) -> JobStatus:
    """Our words for one job of qstat."""
    letter = job.get("job_state", "")
    state, reason = _STATES.get(letter, (JobState.UNKNOWN, f"state `{letter}` of PBS"))
    comment = job.get("comment", "").strip() or None
    exit_code: int | None = None
    ended: float | None = None
    if letter == "H":
        depend = job.get("depend", "").strip()
        if depend and "u" not in job.get("Hold_Types", ""):
            state, reason = JobState.QUEUED, f"waits for {_depend_words(depend)}"
    elif state is JobState.QUEUED:
        reason = comment or reason
    elif state is JobState.ENDED:
        exit_code, reason = end_of(job)
        if exit_code is None and reason is None:
            reason = comment or "PBS has no exit status of it"
        ended = _first_time(job, "comp_time", "history_timestamp", "obittime", "mtime")
    started = _first_time(job, "stime", "start_time") if state in (JobState.RUNNING, JobState.ENDED) else None
    return JobStatus(job_id, state, exit_code=exit_code, reason=reason, started=started, ended=ended)


def _depend_words(depend: str) -> str:
    """``afterok:12.server@server`` in words."""
    ids = [part.partition("@")[0] for part in re.split("[:,]", depend) if part[:1].isdigit()]
    return ", ".join(ids) or depend


def end_of(job: Mapping[str, str]) -> tuple[int | None, str | None]:
    """Exit code and reason of an ended job: above 256 is a signal's number, below 0 a reason of PBS' own."""
    text = job.get("Exit_status", job.get("exit_status", ""))
    if not re.fullmatch(r"[+-]?\d{1,9}", text):
        return None, None
    code = int(text)
    if code < 0:
        ends = {**_ENDS, **_TORQUE_ENDS} if "exit_status" in job else _ENDS
        return None, ends.get(code, f"ended by PBS with status {code}")
    if code > 256:
        return 128 + (code - 256) % 128, None
    return code, None


def _first_time(job: Mapping[str, str], *names: str) -> float | None:
    for name in names:
        if (moment := parse_time(job.get(name, ""))) is not None:
            return moment
    return None


def absent(job_id: str, code: int, said: str, jobs: Mapping[str, Attributes]) -> JobStatus:
    """A job that qstat did not list: gone, if it says so; else unknown, for not seen is not finished."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    about = [line for line in lines if re.search(rf"(?<![\w.]){re.escape(number_of(job_id))}(?![\w\[])", line)]
    if any(_NOT_KNOWN.search(line) for line in about):
        return JobStatus(job_id, JobState.GONE)
    array = array_of(job_id)
    if array is not None and not about and code == 0 and lookup(jobs, array) is not None:
        return JobStatus(job_id, JobState.GONE, reason="its array has no such task")
    if not about and code in (FINISHED_CODE, UNKNOWN_CODE) and all(_NOT_KNOWN.search(line) for line in lines):
        return JobStatus(job_id, JobState.GONE)
    return JobStatus(job_id, JobState.UNKNOWN, reason=(about or lines or ["the server said nothing of it"])[-1])


def queue_job(job: Mapping[str, str]) -> QueueJob:
    """What matters of a job for guessing when another would start."""
    nodes = job.get("Resource_List.nodect", "")
    return QueueJob(
        nodes=int(nodes) if re.fullmatch(r"\d{1,7}", nodes) else None,
        queued=_first_time(job, "etime", "qtime", "ctime"),
        started=_first_time(job, "stime", "start_time"),
        walltime_seconds=parse_clock(job.get("Resource_List.walltime", "")),
        waiting=job.get("job_state") == "Q",
        running=job.get("job_state") in ("R", "E"),
        planned=_first_time(job, "estimated.start_time"),
    )


def free_nodes(nodes: Mapping[str, Attributes], *, cores: int, gpus: int, gpu: str, memory_bytes: int | None) -> int:
    """How many nodes have so much to spare now. A node of Torque (which tells no GPUs in use) must then be empty."""
    return sum(_has_room(node, cores, gpus, gpu, memory_bytes) for node in nodes.values())


def _has_room(node: Mapping[str, str], cores: int, gpus: int, gpu: str, memory_bytes: int | None) -> bool:
    if node.get("state", "").strip() != "free":
        return False
    if "np" in node:  # Torque
        used = _slots(node.get("jobs", ""))
        if gpus and (used or _whole(node.get("gpus", "")) < gpus):
            return False
        return _whole(node["np"]) - used >= cores

    def left(what: str) -> int:
        return _whole(node.get(f"resources_available.{what}", "")) - _whole(node.get(f"resources_assigned.{what}", ""))

    if left("ncpus") < cores or (gpus and left(gpu) < gpus):
        return False
    return memory_bytes is None or left("mem") >= memory_bytes


def _slots(jobs: str) -> int:
    """How many slots Torque's ``0-3/12.server, 5/13.server`` names."""
    used = 0
    for part in jobs.split(","):
        found = re.match(r"\s*(\d{1,6})(?:-(\d{1,6}))?(?:/|\s*$)", part)
        if found:
            used += int(found[2] or found[1]) - int(found[1]) + 1
    return max(0, used)


def _whole(text: str) -> int:
    """A number, or a size as ``4194304kb`` in bytes; 0 for anything else."""
    found = re.fullmatch(r"(\d{1,18})([kmgtp]?)(b?)", text.strip().lower())
    return int(found[1]) * 1024 ** " kmgtp".index(found[2] or " ") if found else 0
