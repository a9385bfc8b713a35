"""PBS: OpenPBS and PBS Professional in three dialects, and Torque.

The lines of a script are made in :mod:`~dlhpc.schedulers.pbs_directives`, answers are read in
:mod:`~dlhpc.schedulers.pbs_parse`; here the commands are built and run.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence

from dlhpc.errors import CommandError, UserError
from dlhpc.process import Answer, CommandFailed, CommandTimeout, ask
from dlhpc.schedulers.base import Abilities, Dependency, Header, JobRequest, JobState, JobStatus, StartEstimate
from dlhpc.schedulers.pbs_directives import directives
from dlhpc.schedulers.pbs_parse import (
    FINISHED_CODE,
    HISTORY_OFF,
    UNKNOWN_CODE,
    Attributes,
    absent,
    array_of,
    free_nodes,
    lookup,
    number_of,
    parse_full,
    parse_ids,
    parse_json,
    parse_nodes,
    parse_submission,
    queue_job,
    status_of,
)
from dlhpc.schedulers.portions import portions
from dlhpc.schedulers.waits import estimate_start

TIMEOUT_S = 60.0
_LONGEST = 100_000
"""Characters of ids on one command line."""
_MANY_TASKS = 20
"""From so many tasks of one array on, qstat is asked for the array with all its tasks."""
_HISTORY = 100
"""So many of the last ended jobs of a queue are looked at for how long they waited."""

_LOST = re.compile(
    r"timed? ?out|end of file|premature end|protocol|communication failure|server disconnect|broken pipe"
    r"|connection (reset|lost|closed)|no (reply|response)",
    re.IGNORECASE,
)
"""Words after which it is not known whether the job was made."""
_DOWN = re.compile(r"cannot connect|could not connect|connection refused|unknown host", re.IGNORECASE)
_HARMLESS = re.compile(r"unknown job|has finished|request invalid for state|invalid state for job", re.IGNORECASE)
_REMEDIES = (
    (r"unknown queue|queue is not enabled|no default queue", "Choose another job.queue; `qstat -Q` lists them."),
    (r"illegal -n value", "Choose a shorter spec name of letters and digits; old servers allow 15 characters."),
    (r"illegal -k value", "This server is too old for live output; `dlhpc` needs PBS Professional 18.2 or later."),
    (
        r"violates queue|exceeds? queue|resource limit|would exceed|array job exceeds",
        "Lower job.walltime, job.nodes or the number of jobs, or choose another job.queue; see `qstat -Qf`.",
    ),
    (r"unknown resource", "Correct gpu.resource, the dialect or the directives in the site profile."),
    (r"node\(s\) specification|cannot be used with|used without", "Correct the dialect in the site profile."),
    (r"account|project", "Name a valid project with job.account."),
    (r"bad uid|unauthorized|not authorized|access", "Submit from a node that may, or ask the centre's staff."),
    (r"directive error|illegal -", "Correct the directives of the spec or the site profile."),
    (r"cannot connect|connection refused|unknown host", "The server does not answer; repeat the command later."),
)


def depend(after: Sequence[Dependency], dialect: str) -> str:
    """``afterok:1.server:2.server,afternotok:98[].server``, the value of ``-W depend=``."""
    kinds: dict[str, list[str]] = {}
    for one in after:
        if array_of(one.job_id) is not None:
            raise UserError(
                f"PBS cannot wait for one task of an array ({one.job_id})", remedy="Wait for the whole array."
            )
        of_array = dialect == "torque" and "[" in one.job_id
        kinds.setdefault(f"{one.kind}array" if of_array else one.kind, []).append(one.job_id)
    return ",".join(":".join([kind, *ids]) for kind, ids in kinds.items())


def submit_command(request: JobRequest, dialect: str) -> list[str]:
    """``qsub`` for one request. Everything else stands in the script."""
    words = ["qsub", "-N", request.tag]
    if request.after:
        words += ["-W", f"depend={depend(request.after, dialect)}"]
    if request.held:
        words.append("-h")
    return [*words, str(request.script)]


def query_command(ids: Sequence[str], dialect: str, *, history: bool, every_task: bool = False) -> list[str]:
    """``qstat`` for all that is known of these jobs; of an array with many tasks, for the array with every task.

    With ``every_task`` the ids are those of arrays, and each is listed with all its tasks.
    """
    tasks: dict[str, int] = {}
    for one in ids:
        if (array := array_of(one)) is not None:
            tasks[array] = tasks.get(array, 0) + 1
    whole = {array for array, count in tasks.items() if count >= _MANY_TASKS}
    asked = dict.fromkeys(array if (array := array_of(one)) in whole and array else one for one in ids)
    words = ["qstat", "-f"] if dialect == "torque" else ["qstat", *(["-x"] if history else []), "-f", "-F", "json"]
    return [*words, *(["-t"] if whole or every_task else []), *asked]


def refusal(answer: Answer) -> CommandError:
    """What a failed qsub means: certainly no job, or perhaps one whose id was lost."""
    said = f"{answer.err}\n{answer.out}"
    down = _DOWN.search(said) is not None
    if answer.code < 0 or (_LOST.search(said) and not down) or (answer.code == 255 and not down):
        return CommandTimeout(
            f"`{' '.join(answer.argv)}` lost its connection (code {answer.code}): {said.strip()[-500:] or 'no word'}",
            remedy="Ask `dlhpc status`: it looks whether the job arrived.",
        )
    remedy = next((words for pattern, words in _REMEDIES if re.search(pattern, said, re.IGNORECASE)), None)
    return CommandFailed(answer, remedy)


class PbsScheduler:
    """See :class:`dlhpc.schedulers.base.Scheduler`; ``dialect`` as in :class:`dlhpc.sites.models.Site`."""

    def __init__(self, dialect: str = "select") -> None:
        if dialect not in ("select", "nodes", "totals", "torque"):
            raise UserError(f"PBS has no dialect `{dialect}`", remedy="Known: select, nodes, totals, torque.")
        self._dialect = dialect
        self._torque = dialect == "torque"

    @property
    def abilities(self) -> Abilities:
        """Arrays and dependencies; a user may not send a running job back into the queue."""
        return Abilities(arrays=True, least_array=1 if self._torque else 2, dependencies=True, hold=True)

    def directives(self, header: Header) -> list[str]:
        """The ``#PBS`` lines."""
        return directives(header, self._dialect)

    def submission(self, request: JobRequest) -> list[str]:
        """The call of qsub."""
        return submit_command(request, self._dialect)

    def submit(self, request: JobRequest) -> list[str]:
        """Queue the job and give its id, whole."""
        if request.steps > 1:
            raise UserError(
                "PBS takes one job a submission", remedy="Submit further attempts as jobs that wait for it."
            )
        words = submit_command(request, self._dialect)
        if os.environ.get("PBS_DPREFIX"):
            words[1:1] = ["-C", "#PBS"]  # the user's own prefix would turn all our directives into comments
        answer = ask(words, timeout=TIMEOUT_S)
        if answer.code != 0:
            raise refusal(answer)
        job_id = parse_submission(answer.out)
        if job_id is None:
            raise CommandTimeout(
                f"`{' '.join(words)}` gave no job id: {(answer.out + answer.err).strip()[-500:] or 'it said nothing'}",
                remedy="Ask `dlhpc status`: it looks whether the job arrived.",
            )
        return [job_id]

    def member_ids(self, array_id: str, indices: Sequence[int]) -> list[str]:
        """``98[3].server`` of ``98[].server``."""
        number, bracket, rest = array_id.partition("[]")
        if not bracket:
            raise UserError(f"{array_id} is no array of PBS", remedy="Give the id of an array, such as 98[].server.")
        return [f"{number}[{index}]{rest}" for index in indices]

    def query(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Where these jobs stand; ended ones too where the server keeps a history."""
        return self._look(job_ids)[0]

    def _look(self, job_ids: Sequence[str]) -> tuple[dict[str, JobStatus], bool]:
        """The answer, and whether the server remembers ended jobs."""
        found: dict[str, JobStatus] = {}
        history = not self._torque
        for ids in portions(list(dict.fromkeys(job_ids)), _LONGEST):
            jobs, answer = self._ask_jobs(ids, history=history)
            said = answer.err if jobs or answer.out.lstrip().startswith("{") else f"{answer.err}\n{answer.out}"
            if history and HISTORY_OFF.search(said) and any(lookup(jobs, one) is None for one in ids):
                history = False
                jobs, answer = self._ask_jobs(ids, history=False)
                said = answer.err
            for one in ids:
                job = lookup(jobs, one)
                found[one] = status_of(one, job) if job is not None else absent(one, answer.code, said, jobs)
        return found, history

    def _ask_jobs(
        self, ids: Sequence[str], *, history: bool, every_task: bool = False
    ) -> tuple[dict[str, Attributes], Answer]:
        """The jobs that qstat lists. Jobs it knows are listed even where its code speaks of another."""
        words = query_command(ids, self._dialect, history=history, every_task=every_task)
        answer = ask(words, timeout=TIMEOUT_S)
        jobs: dict[str, Attributes] | None = parse_full(answer.out)
        if not self._torque:
            jobs = parse_json(answer.out)
            if jobs is None and answer.code in (0, FINISHED_CODE, UNKNOWN_CODE) and answer.out.strip():
                # Some versions write JSON that is none when a job's variables hold odd characters.
                answer = ask([word for word in words if word not in ("-F", "json")], timeout=TIMEOUT_S)
                jobs = parse_full(answer.out)
        if not jobs and answer.code not in (0, FINISHED_CODE, UNKNOWN_CODE):
            raise CommandFailed(answer, "The server does not answer; what was known of the jobs stays.")
        return jobs or {}, answer

    def find(self, tag: str) -> list[str]:
        """The job of this name."""
        if self._torque:
            answer = self._demand(["qstat", "-f"])
            return [job_id for job_id, job in parse_full(answer.out).items() if job.get("Job_Name") == tag]
        found = parse_ids(self._demand(["qselect", "-x", "-N", tag], history=True).out)
        # A server without a history says so and lists nothing, waiting jobs neither.
        return found or parse_ids(self._demand(["qselect", "-N", tag]).out)

    def cancel(self, job_ids: Sequence[str]) -> None:
        """TERM, and KILL a few seconds later. Returns when the server has taken the request."""
        known, remembers = self._look(job_ids)
        alive = [one for one, status in known.items() if status.state not in (JobState.ENDED, JobState.GONE)]
        unsure = [one for one in alive if known[one].state is JobState.UNKNOWN]
        sure = [one for one in alive if one not in unsure]
        # A call of qdel with a valid and an unknown id has brought a server down. Where ended jobs are forgotten, one
        # may become unknown at this moment.
        calls = [*portions(sure, _LONGEST)] if remembers else [[one] for one in sure]
        for ids in [*calls, *([one] for one in unsure)]:
            self._change(["qdel", *ids])

    def hold(self, job_ids: Sequence[str]) -> None:
        """A user's hold."""
        for portion in portions(self._holdable(job_ids, "hold"), _LONGEST):
            self._change(["qhold", "-h", "u", *portion])

    def release(self, job_ids: Sequence[str]) -> None:
        """End a user's hold."""
        for portion in portions(self._holdable(job_ids, "release"), _LONGEST):
            self._change(["qrls", "-h", "u", *portion])

    def _holdable(self, job_ids: Sequence[str], what: str) -> list[str]:
        """What to name to qhold or qrls: an array in place of its tasks, where all that wait are meant.

        PBS Professional and OpenPBS hold an array as a whole only (qhold(1B); `req_holdjob.c` refuses a task with
        ``PBSE_IVALREQ``). Torque holds tasks as well, but ends with one word the hold that the array began with.
        """
        named: dict[str, list[str]] = {}
        for one in job_ids:
            if (array := array_of(one)) is not None:
                named.setdefault(array, []).append(one)
        if not named:
            return list(job_ids)
        jobs, _ = self._ask_jobs(list(named), history=False, every_task=True)
        waiting: dict[str, set[str]] = {number_of(array): set() for array in named}
        for task, job in jobs.items():
            array = array_of(task)
            if array is not None and status_of(task, job).state in (JobState.QUEUED, JobState.HELD):
                waiting.setdefault(number_of(array), set()).add(number_of(task))
        ids = [one for one in job_ids if array_of(one) is None]
        for array, tasks in named.items():
            others = waiting[number_of(array)].difference(map(number_of, tasks))
            if not others:
                ids.append(array)
            elif self._torque:
                ids += tasks
            else:
                raise UserError(
                    f"PBS can {what} an array of jobs only as a whole, and {len(others)} more of {array} wait",
                    remedy=f"`dlhpc {what}` the whole sweep; or cancel this member, and resume it later.",
                )
        return ids

    def requeue(self, job_id: str) -> None:
        """Not allowed to users of PBS."""
        raise CommandError(
            f"PBS does not let a user send the running job {job_id} back into the queue", remedy="Submit it anew."
        )

    def estimate_start(self, request: JobRequest) -> StartEstimate:
        """From free nodes, the jobs in the queue, and how long the last ones of this size waited."""
        header = request.header
        if header.reservation is not None:
            return StartEstimate(None, "a reservation has times of its own")
        place = [header.queue] if header.queue is not None else []
        jobs = None
        if not self._torque:
            jobs = parse_json(self._demand(["qstat", "-f", "-F", "json", *place]).out)
        if jobs is None:
            jobs = parse_full(self._demand(["qstat", "-f", *place]).out)
        jobs = {**self._ended(header.queue), **jobs}
        return estimate_start(
            [queue_job(job) for job in jobs.values()],
            nodes=header.nodes,
            free_nodes=self._free_nodes(header),
            now=time.time(),
        )

    def _ended(self, queue: str | None) -> dict[str, Attributes]:
        """The last jobs that ended in a queue; none where the server keeps no history. Torque lists them by itself."""
        if self._torque:
            return {}
        try:
            place = [] if queue is None else ["-q", queue]
            ids = parse_ids(self._demand(["qselect", "-x", *place, "-s", "F"], history=True).out)[-_HISTORY:]
            return self._ask_jobs(ids, history=True)[0] if ids else {}
        except CommandError:
            return {}

    def _free_nodes(self, header: Header) -> int | None:
        try:
            answer = self._demand(["pbsnodes", "-a"] if self._torque else ["pbsnodes", "-a", "-F", "json"])
        except CommandError:
            return None
        nodes = parse_nodes(answer.out) if self._torque else parse_json(answer.out, "nodes")
        if not nodes:
            return None
        return free_nodes(
            nodes,
            cores=header.ranks_per_node * header.cores_per_rank,
            gpus=header.gpus_per_node,
            gpu=header.gpu_resource or "ngpus",
            memory_bytes=header.memory_bytes,
        )

    @staticmethod
    def _demand(words: Sequence[str], *, history: bool = False) -> Answer:
        """An answer with code 0; with ``history`` also one that says that there is no history."""
        answer = ask(words, timeout=TIMEOUT_S)
        if answer.code != 0 and not (history and HISTORY_OFF.search(answer.err + answer.out)):
            raise CommandFailed(answer)
        return answer

    @staticmethod
    def _change(words: Sequence[str]) -> None:
        """Run qdel, qhold or qrls; that a job is over already is no error."""
        answer = ask(words, timeout=TIMEOUT_S)
        lines = [line for line in answer.err.splitlines() if line.strip()]
        if answer.code != 0 and not (lines and all(_HARMLESS.search(line) for line in lines)):
            raise CommandFailed(answer)
