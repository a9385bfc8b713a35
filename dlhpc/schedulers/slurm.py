"""Slurm: the thin class that runs its commands.

They are built in :mod:`~dlhpc.schedulers.slurm_commands`, directives in
:mod:`~dlhpc.schedulers.slurm_directives`, and answers are read in :mod:`~dlhpc.schedulers.slurm_parse`. Only options
that Slurm has had for long are used, and no JSON: a centre's Slurm may be old, and JSON costs many times as much.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from dlhpc.errors import CommandError
from dlhpc.process import Answer, CommandFailed, CommandMissing, CommandTimeout, ask, demand
from dlhpc.schedulers.base import Abilities, Header, JobCancelled, JobRequest, JobState, JobStatus, StartEstimate
from dlhpc.schedulers.slurm_commands import (
    LONGEST_LIST,
    accounting_command,
    asking_environment,
    cancel_commands,
    control_commands,
    ending_command,
    estimate_command,
    find_accounting_command,
    find_command,
    queue_command,
    queue_ids_command,
    submit_command,
    submitting_environment,
)
from dlhpc.schedulers.slurm_directives import directives
from dlhpc.schedulers.slurm_parse import (
    JobId,
    Table,
    parse_accounting,
    parse_job_id,
    parse_names,
    parse_queue,
    parse_start,
    parse_submit,
    was_cancelled,
)

TIMEOUT_S = 60.0

_LOST = re.compile(
    r"unable to contact slurm controller|timed? ?out|zero bytes were transmitted|unexpected message|receive failure"
    r"|communication (connection )?(failure|error)|connection (refused|reset|closed|failure)|transport endpoint"
    r"|send/recv|send failure",
    re.IGNORECASE,
)
"""After these words of sbatch the controller may have the job all the same."""

_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"submit ?job ?limit|accounting/qos policy", "Wait until some of your jobs have ended, or ask for less."),
    (r"invalid partition|partition.*not (available|valid)", "Set job.queue; `sinfo -s` lists the partitions."),
    (r"group not permitted to use this partition", "Set job.queue to a partition that your group may use."),
    (r"reservation", "Set job.reservation to one that `scontrol show reservation` lists for you, or remove it."),
    (r"invalid account|account/partition", "Set job.account; `sacctmgr show associations user=$USER` lists yours."),
    (r"invalid qos|qos.*permission", "Set job.qos; `sacctmgr show associations user=$USER format=account,qos` lists."),
    (r"time limit", "Set job.walltime to no more than the partition allows; `sinfo -o '%P %l'` tells."),
    (r"memory specification", "Set job.memory to less than a node has; `sinfo -o '%P %m'` tells it in MB."),
    (r"node count", "Set job.nodes to what the partition allows; `sinfo -o '%P %D %s'` tells."),
    (r"generic resource|gres", "Set gpu.resource in the site profile to the name in `sinfo -o '%P %G'`."),
    (
        r"node configuration is not available",
        "No node of this partition has that: ask for fewer nodes, ranks, cores or GPUs (`sinfo -o '%P %D %c %m %G'`).",
    ),
    (r"array specification", "Set max_array in the site profile to MaxArraySize - 1 of `scontrol show config`."),
    (r"feature specification", "Correct the constraint in job.directives; `sinfo -o '%P %f'` lists the features."),
    (r"unrecognized option|invalid option|invalid directive|ambiguous", "Correct job.directives; see `man sbatch`."),
    (r"dependency", "A job that this one waits for is not known to Slurm (any more)."),
)
_OVER = re.compile(r"invalid job id specified|already completing or completed", re.IGNORECASE)
_REQUEUED = re.compile(r"job is pending execution", re.IGNORECASE)
"""The staff, a preemption or the loss of a node was quicker: Slurm has sent the job back already."""
_ACCOUNTING_OFF = re.compile(r"accounting storage is (disabled|not)|slurmdbd.*not (configured|enabled)", re.IGNORECASE)


class SlurmScheduler:
    """See :class:`dlhpc.schedulers.base.Scheduler`."""

    def __init__(self) -> None:
        self._accounting_is_off = False

    @property
    def abilities(self) -> Abilities:
        return Abilities(arrays=True, dependencies=True, requeue=True, hold=True)

    def directives(self, header: Header) -> list[str]:
        return directives(header)

    def submission(self, request: JobRequest) -> list[str]:
        return submit_command(request)

    def submit(self, request: JobRequest) -> list[str]:
        answer = ask(submit_command(request), timeout=TIMEOUT_S, environment=submitting_environment(os.environ))
        job_id = parse_submit(answer.out)
        if job_id is not None:
            return [job_id]
        killed = answer.code < 0 or 128 < answer.code < 193  # a wrapper script says 128 + signal; 255 is sbatch's own
        if answer.code == 0 or killed or _LOST.search(answer.err):
            raise CommandTimeout(
                f"sbatch gave no clear answer (code {answer.code}): {_said(answer) or 'it said nothing'}",
                remedy="The job may be queued all the same; `dlhpc status` finds out.",
            )
        raise CommandFailed(answer, _remedy(answer))

    def member_ids(self, array_id: str, indices: Sequence[int]) -> list[str]:
        number, semicolon, cluster = array_id.partition(";")
        return [f"{number}_{index}{semicolon}{cluster}" for index in indices]

    def query(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """One squeue. More only where its answer leaves something open.

        A second squeue for jobs that are not the user's own, one for arrays of which some tasks are held and others are
        not, and one sacct for jobs that slurmctld has forgotten.
        """
        answer: dict[str, JobStatus] = {}
        wanted: defaultdict[str | None, dict[str, JobId]] = defaultdict(dict)
        for job_id in job_ids:
            known = parse_job_id(job_id)
            if known is None:
                answer[job_id] = JobStatus(job_id, JobState.GONE, reason="this is no id of Slurm's")
            else:
                wanted[known.cluster][job_id] = known
        for cluster, ids in wanted.items():
            answer.update(self._query(cluster, ids))
        return answer

    def find(self, tag: str) -> list[str]:
        user = os.getuid()
        # With SLURM_CLUSTERS set (one name or several), sbatch answers `123;cluster`.
        clusters = [name.strip() for name in os.environ.get("SLURM_CLUSTERS", "").split(",") if name.strip()]
        asked: list[str | None] = [*clusters] or [None]
        for cluster in asked:
            found = parse_names(_question(find_command(tag, user, cluster)).out, tag)
            if not found and (said := self._accounting(find_accounting_command(tag, user, cluster))) is not None:
                found = parse_names(said, tag)
            if found:
                return found if cluster is None else [f"{job};{cluster}" for job in found]
        return []

    def cancel(self, job_ids: Sequence[str]) -> None:
        for command in cancel_commands(_known(job_ids)):
            answer = ask(command, timeout=TIMEOUT_S, environment=asking_environment(os.environ))
            complaints = [line for line in answer.err.split("\n") if line.strip()]
            if answer.code != 0 and not (complaints and all(_OVER.search(line) for line in complaints)):
                raise CommandFailed(answer, "Try again; the jobs may still run.")

    def hold(self, job_ids: Sequence[str]) -> None:
        for command in control_commands("hold", _known(job_ids)):
            _question(command)

    def release(self, job_ids: Sequence[str]) -> None:
        for command in control_commands("release", _known(job_ids)):
            _question(command)

    def requeue(self, job_id: str) -> None:
        for known in _known([job_id]):
            if _is_being_cancelled(known):  # Slurm would take back even this one
                raise JobCancelled(f"job {job_id} was cancelled with Slurm's own command")
        for command in control_commands("requeue", _known([job_id])):
            try:
                _question(command, none=_REQUEUED)
            except CommandFailed as error:
                if _LOST.search(error.answer.err):
                    raise CommandTimeout(f"scontrol gave no clear answer: {_said(error.answer)}") from error
                raise

    def estimate_start(self, request: JobRequest) -> StartEstimate:
        environment = submitting_environment(os.environ) | {"SLURM_TIME_FORMAT": "%s"}
        answer = ask(estimate_command(request), timeout=TIMEOUT_S, environment=environment)
        if answer.code != 0:
            raise CommandFailed(answer, _remedy(answer))
        start = parse_start(answer.err) or parse_start(answer.out)
        return StartEstimate(start, "Slurm's own plan" if start is not None else "Slurm names no time")

    def _query(self, cluster: str | None, ids: Mapping[str, JobId]) -> dict[str, JobStatus]:
        table = Table()
        table.add(parse_queue(_question(queue_command(os.getuid(), cluster)).out))
        asked = {known.job for known in ids.values()}
        if mixed := sorted(table.mixed & asked):
            command = queue_ids_command(mixed, cluster, each_task=True)
            table.add(parse_queue(_question(command, none=_OVER).out))
        if missing := _missing(ids, table):
            table.add(parse_queue(_question(queue_ids_command(missing, cluster), none=_OVER).out))
        entries = {job_id: table.look(known) for job_id, known in ids.items()}
        gone = {job_id: ids[job_id] for job_id, entry in entries.items() if entry is None}
        statuses = {job_id: entry.status(job_id) for job_id, entry in entries.items() if entry is not None}
        return {**statuses, **self._query_accounting(cluster, gone)}

    def _query_accounting(self, cluster: str | None, gone: Mapping[str, JobId]) -> dict[str, JobStatus]:
        """How jobs ended that slurmctld has forgotten. It is slurmctld that knows what runs: these do not."""
        past = Table()
        silent: str | None = None
        for jobs in _lists(_missing(gone, past)):
            try:
                said = self._accounting(accounting_command(jobs, cluster))
            except (CommandFailed, CommandTimeout) as error:
                silent = f"Slurm no longer knows it, and its accounting did not answer: {error.what}"
                break
            if said is None:
                break
            past.add(parse_accounting(said))
        statuses = {}
        for job_id, known in gone.items():
            entry = past.look(known)
            if entry is not None and entry.state is JobState.ENDED:
                statuses[job_id] = entry.status(job_id)
            else:
                statuses[job_id] = JobStatus(job_id, JobState.GONE, reason=silent)
        return statuses

    def _accounting(self, command: Sequence[str]) -> str | None:
        """What sacct says; None if this Slurm keeps no accounts."""
        if self._accounting_is_off:
            return None
        try:
            answer = ask(command, timeout=TIMEOUT_S, environment=asking_environment(os.environ))
        except CommandMissing:
            self._accounting_is_off = True
            return None
        if answer.code == 0:
            return answer.out
        if _ACCOUNTING_OFF.search(answer.err):
            self._accounting_is_off = True
            return None
        raise CommandFailed(answer)


def _question(command: Sequence[str], none: re.Pattern[str] | None = None) -> Answer:
    """Run it; an error that matches ``none`` is an answer too, an empty one."""
    environment = asking_environment(os.environ)
    if none is None:
        return demand(command, timeout=TIMEOUT_S, environment=environment)
    answer = ask(command, timeout=TIMEOUT_S, environment=environment)
    if answer.code != 0 and not none.search(answer.err):
        raise CommandFailed(answer)
    return answer


def _is_being_cancelled(job_id: JobId) -> bool:
    try:
        return was_cancelled(_question(ending_command(job_id)).out, time.time())
    except CommandError:
        return False  # what is asked of Slurm next has its own error


def _known(job_ids: Sequence[str]) -> list[JobId]:
    """What is no id of Slurm's is no job of its: there is nothing to do."""
    return [known for job_id in job_ids if (known := parse_job_id(job_id)) is not None]


def _missing(ids: Mapping[str, JobId], table: Table) -> list[str]:
    """The numbers of those jobs that the table lacks; an array's once."""
    return list(dict.fromkeys(known.job for known in ids.values() if table.look(known) is None))


def _lists(jobs: Sequence[str]) -> Iterator[Sequence[str]]:
    """Portions that fit into one argument (a number and its comma have at most 19 characters)."""
    size = LONGEST_LIST // 19
    return (jobs[first : first + size] for first in range(0, len(jobs), size))


def _said(answer: Answer) -> str:
    return (answer.err.strip() or answer.out.strip())[-500:]


def _remedy(answer: Answer) -> str | None:
    return next((remedy for words, remedy in _REMEDIES if re.search(words, answer.err, re.IGNORECASE)), None)
