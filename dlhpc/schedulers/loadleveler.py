"""IBM LoadLeveler (AIX and Linux): jobs of one or several steps, no arrays, no dependencies between jobs.

The keywords of a script are made in :mod:`~dlhpc.schedulers.loadleveler_keywords`. Source of commands and states: IBM,
"LoadLeveler: Using and Administering".
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dlhpc.errors import CommandError, StorageError, UserError
from dlhpc.files import replace_text, storage_errors
from dlhpc.process import Answer, CommandFailed, CommandMissing, CommandTimeout, ask
from dlhpc.schedulers.base import Abilities, Header, JobRequest, JobState, JobStatus, StartEstimate
from dlhpc.schedulers.loadleveler_keywords import command_file, directives
from dlhpc.schedulers.portions import portions
from dlhpc.schedulers.waits import QueueJob, estimate_start, parse_clock, parse_time

TIMEOUT_S = 60.0
_LONGEST = 20_000
"""Characters of ids on one command line; AIX allows 24 KiB where nobody raised it."""

_STATES = {
    "I": (JobState.QUEUED, None),
    "NQ": (JobState.QUEUED, "not in the queue yet: it waits for the step before, or for the user's other jobs"),
    "D": (JobState.QUEUED, "deferred until its start date"),
    "H": (JobState.HELD, "held by its user"),
    "S": (JobState.HELD, "held by the system"),
    "HS": (JobState.HELD, "held by its user and the system"),
    "P": (JobState.QUEUED, "it is about to start"),
    "ST": (JobState.RUNNING, "it is starting"),
    "R": (JobState.RUNNING, None),
    "E": (JobState.RUNNING, "preempted by another job"),
    "EP": (JobState.RUNNING, "about to be preempted by another job"),
    "MP": (JobState.RUNNING, "about to go on after it was preempted"),
    "CK": (JobState.RUNNING, "LoadLeveler saves it"),
    "CP": (JobState.RUNNING, "it is being cleared away"),
    "RP": (JobState.RUNNING, "it is being removed"),
    "VP": (JobState.RUNNING, "it has to leave its nodes"),
    "XP": (JobState.QUEUED, "its node would not start it"),
    "X": (JobState.QUEUED, "its node would not start it"),
    "V": (JobState.QUEUED, "it had to leave its nodes, and waits to be run again"),
    "C": (JobState.ENDED, None),
    "CA": (JobState.ENDED, "cancelled"),
    "RM": (JobState.ENDED, "removed"),
    "NR": (JobState.ENDED, "never run: its dependency can no longer be met"),
    "TX": (JobState.ENDED, "terminated by LoadLeveler"),
    "SX": (JobState.ENDED, "its submission failed"),
}
"""llq's words. Rejected and vacated steps may run again; if not, llq forgets them."""

NOTHING = "There is currently no job status to report"
_SUBMITTED = re.compile(r'The job "([A-Za-z0-9_.-]+\.\d+)" has been submitted')
_STEP = re.compile(r"([A-Za-z0-9_.-]+)\.(\d+)\.(\d+)")
_LOST = re.compile(r"timed? ?out|no (reply|response)|connection (reset|lost|closed)|broken pipe", re.IGNORECASE)
_BLOCK = re.compile(r"^=+ Job Step (\S+) =+$")
_PAIR = re.compile(r"^\s*([A-Za-z][A-Za-z /]*?)\s*: ?(.*)$")
_REMEDIES = (
    (r"class", "Choose another job.queue; `llclass` lists the classes."),
    (r"wall_clock_limit", "Lower job.walltime; `llclass -l` shows the limits."),
    (r"account", "Name a valid project with job.account."),
    (r"resource", "Correct gpu.resource in the site profile; `llstatus -R` lists the resources."),
    (r"may not submit|not authorized|permission", "Submit from a node that may, or ask the centre's staff."),
    (r"connect", "LoadLeveler does not answer; repeat the command later."),
)


def parse_submission(text: str) -> str | None:
    """``host.domain.N`` in what llsubmit printed; a submit filter may print lines of its own before it."""
    found = _SUBMITTED.findall(text)
    return str(found[-1]) if found else None


def short(step_id: str) -> tuple[str, str, str] | None:
    """Host without domain, job number and step number of ``host.domain.N.S``: llq may leave the domain out."""
    found = _STEP.fullmatch(step_id.strip())
    return (found[1].partition(".")[0], found[2], found[3]) if found else None


def query_command(ids: Sequence[str]) -> list[str]:
    """``llq`` for id and state of these steps."""
    return ["llq", "-f", "%id", "%st", *ids]


def parse_states(text: str) -> dict[tuple[str, str, str], str]:
    """The lines of ``llq -f %id %st``: step → state as llq abbreviates it."""
    found: dict[tuple[str, str, str], str] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and (key := short(words[0])) is not None:
            found[key] = words[1]
    return found


def status_of(step_id: str, word: str) -> JobStatus:
    """Our words for one state of llq."""
    state, reason = _STATES.get(word.upper(), (JobState.UNKNOWN, f"state `{word}` of LoadLeveler"))
    return JobStatus(step_id, state, reason=reason)


def parse_long(text: str) -> list[tuple[str, dict[str, str]]]:
    """``llq -l`` or ``llsummary -l``: step ids with their ``Name: value`` lines, in order."""
    steps: list[tuple[str, dict[str, str]]] = []
    for line in text.splitlines():
        if (head := _BLOCK.match(line.strip())) is not None:
            steps.append((head[1], {}))
        elif steps and (pair := _PAIR.match(line)) is not None:
            steps[-1][1].setdefault(pair[1], pair[2].strip())
    return steps


def steps_of(tag: str, text: str) -> list[str]:
    """The ids of the steps of the job with this name, in order."""
    found = [step_id for step_id, step in parse_long(text) if step.get("Job Name") == tag and short(step_id)]
    return sorted(dict.fromkeys(found), key=lambda one: int(one.rpartition(".")[2]))


def queue_job(step: Mapping[str, str]) -> QueueJob:
    """What matters of a step for guessing when another would start."""
    nodes = next((step[name] for name in ("Number of Nodes", "Node minimum", "Nodes") if step.get(name)), "")
    limit = step.get("Wall Clk Hard Limit", "").partition(" ")[0]
    status = step.get("Status", "")
    return QueueJob(
        nodes=int(nodes) if re.fullmatch(r"\d{1,7}", nodes) else None,
        queued=parse_time(step.get("Queue Date", "")),
        started=parse_time(step.get("Dispatch Time", "")),
        walltime_seconds=parse_clock(limit),
        waiting=status == "Idle",
        running=status in ("Running", "Starting"),
    )


def parse_free(text: str, name: str) -> int | None:
    """Free slots of a class in the table of ``llclass``: the last number but one before the description."""
    for line in text.splitlines():
        found = re.match(rf"\s*{re.escape(name)}\s+(\S+\s+\S+)\s+(\d{{1,7}})\s+(\d{{1,7}})(\s|$)", line)
        if found:
            return int(found[2])
    return None


def refusal(answer: Answer) -> CommandError:
    """What a failed llsubmit means: certainly no job, or perhaps one whose id was lost."""
    said = f"{answer.err}\n{answer.out}"
    if "has not been submitted" not in said and (answer.code < 0 or _LOST.search(said)):
        return CommandTimeout(
            f"`{' '.join(answer.argv)}` lost its connection (code {answer.code}): {said.strip()[-500:] or 'no word'}",
            remedy="Ask `dlhpc status`: it looks whether the job arrived.",
        )
    remedy = next((words for pattern, words in _REMEDIES if re.search(pattern, said, re.IGNORECASE)), None)
    return CommandFailed(answer, remedy)


class LoadLevelerScheduler:
    """See :class:`dlhpc.schedulers.base.Scheduler`."""

    @property
    def abilities(self) -> Abilities:
        """Steps in place of dependencies; a step goes back into the queue only when LoadLeveler wants its nodes."""
        return Abilities(steps=True, hold=True)

    def directives(self, header: Header) -> list[str]:
        """The ``# @`` lines."""
        return directives(header)

    def submission(self, request: JobRequest) -> list[str]:
        """The call of llsubmit. Its file is made beside the script, under ``submitted``, when it is called.

        A reservation travels in the variable LL_RES_ID, which is where llsubmit of every release looks for it.
        """
        words = ["llsubmit", str(self._file(request))]
        if request.header.reservation is not None:
            words = ["env", f"LL_RES_ID={request.header.reservation}", *words]
        return words

    @staticmethod
    def _file(request: JobRequest) -> Path:
        return request.script.parent / "submitted" / f"{request.tag}.cmd"

    def submit(self, request: JobRequest) -> list[str]:
        """Queue the steps and give their ids, ``host.domain.N.0`` and so on."""
        if request.after:
            raise UserError(
                "LoadLeveler cannot let a job wait for another one", remedy="Submit it when the other has finished."
            )
        with storage_errors(request.script, "read"):
            script = request.script.read_text(encoding="utf-8", errors="surrogateescape")
        text = command_file(script, request)
        file = self._file(request)
        with storage_errors(file.parent):
            file.parent.mkdir(exist_ok=True)
        try:
            replace_text(file, text)
        except UnicodeEncodeError as error:
            raise StorageError("is not UTF-8 text", where=request.script, remedy="Submit the run anew.") from error
        words = self.submission(request)
        answer = ask(words, timeout=TIMEOUT_S)
        job = parse_submission(answer.out) or parse_submission(answer.err)
        if job is not None:
            return [f"{job}.{number}" for number in range(request.steps)]
        if answer.code != 0:
            raise refusal(answer)
        raise CommandTimeout(
            f"`{' '.join(words)}` gave no job id: {(answer.out + answer.err).strip()[-500:] or 'it said nothing'}",
            remedy="Ask `dlhpc status`: it looks whether the job arrived.",
        )

    def member_ids(self, array_id: str, indices: Sequence[int]) -> list[str]:
        """There are no arrays."""
        raise UserError(f"LoadLeveler has no job arrays, so {array_id} has no {len(indices)} tasks")

    def query(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Where these steps stand. llq forgets ended ones soon: what became of them, the job itself writes down."""
        found: dict[str, JobStatus] = {}
        for ids in portions(list(dict.fromkeys(job_ids)), _LONGEST):
            answer = ask(query_command(ids), timeout=TIMEOUT_S)
            states = parse_states(answer.out)
            if answer.code != 0 and not states:
                raise CommandFailed(answer, "LoadLeveler does not answer; what was known of the jobs stays.")
            answered = bool(states) or NOTHING in answer.out + answer.err
            for one in ids:
                key = short(one)
                word = states.get(key) if key is not None else None
                if word is not None:
                    found[one] = status_of(one, word)
                elif answer.code == 0 and answered:
                    found[one] = JobStatus(one, JobState.GONE)
                else:
                    said = (answer.err or answer.out).strip()[-200:] or "it said nothing"
                    found[one] = JobStatus(one, JobState.UNKNOWN, reason=f"llq: {said}")
        return found

    def find(self, tag: str) -> list[str]:
        """The steps of the job of this name, among the user's own; ended ones where their history may be read."""
        user = _user()
        answer = ask(["llq", "-l", *(["-u", user] if user else [])], timeout=TIMEOUT_S)
        if answer.code != 0:
            raise CommandFailed(answer)
        return steps_of(tag, answer.out) or steps_of(tag, _summary(["-u", user] if user else []))

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Ask for the steps to be removed. LoadLeveler says nothing of those that are over already."""
        self._change(["llcancel"], job_ids)

    def hold(self, job_ids: Sequence[str]) -> None:
        """A user's hold."""
        self._change(["llhold"], job_ids)

    def release(self, job_ids: Sequence[str]) -> None:
        """End a user's hold."""
        self._change(["llhold", "-r"], job_ids)

    @staticmethod
    def _change(words: Sequence[str], job_ids: Sequence[str]) -> None:
        for ids in portions(job_ids, _LONGEST):
            answer = ask([*words, *ids], timeout=TIMEOUT_S)
            if answer.code != 0 and NOTHING not in answer.out + answer.err:
                raise CommandFailed(answer)

    def requeue(self, job_id: str) -> None:
        """A user cannot."""
        raise CommandError(
            f"LoadLeveler does not let a user send the running step {job_id} back into the queue",
            remedy="Submit it anew.",
        )

    def estimate_start(self, request: JobRequest) -> StartEstimate:
        """From the class's free slots, the steps in it, and how long the last ones of this size waited."""
        header = request.header
        if header.reservation is not None:
            return StartEstimate(None, "a reservation has times of its own")
        place = ["-c", header.queue] if header.queue is not None else []
        answer = ask(["llq", "-l", *place], timeout=TIMEOUT_S)
        if answer.code != 0:
            raise CommandFailed(answer)
        steps = [*parse_long(_summary(place)), *parse_long(answer.out)]
        slots = self._free(header.queue)
        tasks = header.nodes * header.ranks_per_node
        return estimate_start(
            [queue_job(step) for step in dict(steps).values()],
            nodes=header.nodes,
            free_nodes=None if slots is None else (header.nodes if slots >= tasks else slots // header.ranks_per_node),
            now=time.time(),
            free_words=f"{slots} free slots",
        )

    @staticmethod
    def _free(queue: str | None) -> int | None:
        if queue is None:
            return None
        try:
            return parse_free(ask(["llclass", queue], timeout=TIMEOUT_S).out, queue)
        except CommandError:
            return None


def _summary(about: Sequence[str]) -> str:
    """What the accounting says of ended steps; nothing where it is off, or closed to users."""
    try:
        answer = ask(["llsummary", "-l", *about], timeout=TIMEOUT_S)
    except (CommandMissing, CommandTimeout):
        return ""
    return answer.out if answer.code == 0 else ""


def _user() -> str | None:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return None
