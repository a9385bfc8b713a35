"""What can be seen of a site only from a compute node: a small job looks around there and writes down what it finds.

The job asks for one core and, where the queue's nodes have them, one GPU. It lies in a hidden folder among the runs,
which goes with the check, whatever happens; one that was left by a killed check is removed a day later like every
other unfinished folder there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlhpc import resources
from dlhpc.errors import DlhpcError, UserError
from dlhpc.files import replace_text, storage_errors
from dlhpc.schedulers.base import Header, JobRequest, JobState, JobStatus, Scheduler, get_scheduler
from dlhpc.sites.findings import Finding, cannot_tell, differs, ok
from dlhpc.sites.login import environment_arguments, environment_findings

if TYPE_CHECKING:
    from dlhpc.sites.models import Queue, Site

WALLTIME_S = 300
"""Long enough to start Python from slow storage, short enough to be backfilled."""
_ANSWER_LAG_S = 20.0
"""How long shared storage may take to show the login node what a job that has ended wrote."""
_LONGEST_PAUSE_S = 10.0
_JOB = "job.sh"
_INNER = "inner.sh"
_ANSWER = "answer"


@dataclass(frozen=True)
class _Probe:
    """The folder of one check, and the names of its two jobs."""

    folder: Path
    tag: str

    @property
    def inner_tag(self) -> str:
        return f"{self.tag}i"


def check_from_job(
    site: Site,
    runs: Path,
    *,
    queue: str | None = None,
    account: str | None = None,
    wait_s: float = 600.0,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Submit the small job, wait for it at most ``wait_s`` seconds, and give what it saw.

    ``tell`` hears now and then where the job stands. The job is cancelled when the wait is over or is broken off. A
    batch system that refuses the job is a finding, not an error.
    """
    asked = _queue(site, queue)
    scheduler = get_scheduler(site.scheduler, site.dialect)
    # Short, for the sake of systems that allow 15 characters in a name.
    probe = _Probe(runs / f".new-site-check-{secrets.token_hex(4)}", f"chk{secrets.token_hex(4)}")
    subject = f"job in queue {asked.name}"
    with storage_errors(runs):
        made = [folder for folder in (runs, *runs.parents) if not folder.exists()]
        probe.folder.mkdir(parents=True)
    try:
        try:
            job_ids = scheduler.submit(_write(site, asked, account, probe, scheduler))
        except DlhpcError as error:
            remedy = error.remedy or "Correct the queue, its limits, accounts or directives in the profile."
            return [differs(subject, f"was not submitted: {error.what}", remedy, key=("queues",))]
        status = _await(scheduler, job_ids, probe, wait_s, tell)
        answer = _answer(probe, patient=status.state in (JobState.ENDED, JobState.GONE))
        if answer is None:
            return [_no_answer(subject, status, probe, wait_s)]
        return list(_findings(site, asked, answer, probe))
    finally:
        _clear(scheduler, probe)
        shutil.rmtree(probe.folder, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # something else is in it by now
                folder.rmdir()


def _queue(site: Site, name: str | None) -> Queue:
    for queue in site.queues:
        if name in (None, queue.name):
            return queue
    known = ", ".join(queue.name for queue in site.queues)
    raise UserError(f"the profile has no queue `{name}`", remedy=f"It has: {known}.")


def _header(site: Site, queue: Queue, account: str | None, name: str, output: Path) -> Header:
    node = site.node_of(queue)
    return Header(
        name=name,
        output=output,
        queue=None if site.scheduler == "local" else queue.name,
        nodes=queue.min_nodes,
        ranks_per_node=1,
        cores_per_rank=1,
        gpus_per_node=1 if node.gpus else 0,
        memory_bytes=10**9 if node.memory else None,
        walltime_seconds=WALLTIME_S,
        warning_seconds=60,
        account=account or site.accounts.default,
        gpu_resource=site.gpu.resource,
        gpu_feature=site.gpu.feature,
        network=site.network,
        extra=tuple(site.directives),
    )


def _write(site: Site, queue: Queue, account: str | None, probe: _Probe, scheduler: Scheduler) -> JobRequest:
    """Put both job scripts into the folder."""
    folder = probe.folder
    with storage_errors(folder):
        shutil.copy(resources.folder("jobtemplates") / "site-environment.sh", folder / "environment.sh")
        shutil.copy(resources.folder("jobtemplates") / "site-check.sh", folder / "look.sh")
    header = _header(site, queue, account, probe.tag, folder / "job.out")
    inner = _header(site, queue, account, probe.inner_tag, folder / "inner.out")
    lines = ["#!/bin/sh", *scheduler.directives(header), ""]
    # The scratch folder is the one word that a shell is to expand; its model allows nothing else of the shell in it.
    lines.append(f'scratch=$(set -u; printf %s "{site.paths.scratch or ""}")')
    lines.append(f'sh {shlex.quote(str(folder / "look.sh"))} {shlex.quote(str(folder))} {site.scheduler} "$scratch"')
    for number, name in enumerate(site.environments):
        words = environment_arguments(site, name, folder / "environment.sh")
        target = shlex.quote(str(folder / f"environment-{number}"))
        lines.append(f"sh {' '.join(map(shlex.quote, words))} > {target} 2>&1")
    lines.append(f"mv {shlex.quote(str(folder / 'answer.tmp'))} {shlex.quote(str(folder / _ANSWER))}")
    replace_text(folder / _JOB, "\n".join(lines) + "\n")
    replace_text(
        folder / _INNER, "\n".join(["#!/bin/sh", *_held(site, scheduler.directives(inner)), "", "true"]) + "\n"
    )
    return JobRequest(probe.tag, folder / _JOB, header, kill_grace_seconds=round(site.kill_grace.total_seconds()))


def _held(site: Site, directives: list[str]) -> list[str]:
    """LoadLeveler holds a job by a keyword, before the line that ends the step; PBS by an option of the command."""
    if site.scheduler != "loadleveler":
        return directives
    return ["# @ hold = user", *directives]


def _await(
    scheduler: Scheduler, job_ids: list[str], probe: _Probe, wait_s: float, tell: Callable[[str], None]
) -> JobStatus:
    """Wait until the job has answered or is over; cancel it otherwise. The last known status."""
    end = time.monotonic() + wait_s
    pause = 0.5
    status = JobStatus(job_ids[0], JobState.UNKNOWN)
    try:
        while True:
            try:
                status = scheduler.query(job_ids)[job_ids[0]]
            except DlhpcError as error:
                status = JobStatus(job_ids[0], JobState.UNKNOWN, reason=error.what)
            if status.state in (JobState.ENDED, JobState.GONE) or (probe.folder / _ANSWER).exists():
                return status
            left = end - time.monotonic()
            if left <= 0:
                return status
            tell(f"job {job_ids[0]}: {status.state}{f', {status.reason}' if status.reason else ''}")
            time.sleep(min(pause, left))
            pause = min(_LONGEST_PAUSE_S, pause * 1.5)
    finally:
        if status.state not in (JobState.ENDED, JobState.GONE):
            with contextlib.suppress(DlhpcError):
                scheduler.cancel(job_ids)


def _clear(scheduler: Scheduler, probe: _Probe) -> None:
    """Cancel what the job submitted from its compute node, and itself if its submission's answer was lost."""
    for tag in (probe.tag, probe.inner_tag):
        with contextlib.suppress(DlhpcError):
            if found := scheduler.find(tag):
                scheduler.cancel(found)


def _answer(probe: _Probe, *, patient: bool) -> dict[str, str] | None:
    """The lines that the job wrote, first word → rest."""
    end = time.monotonic() + (_ANSWER_LAG_S if patient else 0.0)
    while True:
        with contextlib.suppress(OSError):
            os.listdir(probe.folder)  # makes NFS look at the folder again
            text = (probe.folder / _ANSWER).read_text(encoding="utf-8", errors="replace")
            return {key: value for key, _, value in (line.partition(" ") for line in text.splitlines())}
        if time.monotonic() >= end:
            return None
        time.sleep(0.5)


def _no_answer(subject: str, status: JobStatus, probe: _Probe, wait_s: float) -> Finding:
    why = f": {status.reason}" if status.reason else ""
    if status.state not in (JobState.ENDED, JobState.GONE):
        what = f"did not answer within {wait_s:g} s (it is {status.state}{why}) and was cancelled"
        return cannot_tell(subject, what, "Wait longer with --wait, or choose a faster queue with --queue.")
    said = ""
    with contextlib.suppress(OSError):
        said = (probe.folder / "job.out").read_text(encoding="utf-8", errors="replace").strip()[-300:]
    code = "" if status.exit_code is None else f" with code {status.exit_code}"
    what = f"ended{code} and left no answer{why}{f'; it said: {said}' if said else ''}"
    remedy = "Check that the folder of runs is on storage which login and compute nodes share, under the same name."
    return differs(subject, what, remedy, profile=str(probe.folder.parent), key=("paths", "runs"))


def _findings(site: Site, queue: Queue, answer: dict[str, str], probe: _Probe) -> Iterator[Finding]:
    host = answer.get("host", "the compute node")
    runs = probe.folder.parent
    yield ok(f"job in queue {queue.name}", f"ran on {host}", live=host, key=("queues",))
    yield ok("folder of runs", f"{runs}: writable from {host}", profile=str(runs), key=("paths", "runs"))
    yield from _scratch(site, answer, host)
    yield from _gpu(site, queue, answer, host)
    yield from _submits(site, answer, host)
    for number, name in enumerate(site.environments):
        with contextlib.suppress(OSError):
            said = (probe.folder / f"environment-{number}").read_text(encoding="utf-8", errors="replace")
            yield from environment_findings(site, name, said, host)


def _scratch(site: Site, answer: dict[str, str], host: str) -> Iterator[Finding]:
    if site.paths.scratch is None:
        return
    verdict, _, rest = answer.get("scratch", "no").partition(" ")
    if verdict == "yes":
        yield ok("scratch", f"{rest}: writable on {host}", profile=site.paths.scratch, key=("paths", "scratch"))
    else:
        yield differs(
            "scratch",
            f"{site.paths.scratch} is {rest or 'empty'} on {host}, where the job cannot write",
            "Correct paths.scratch, or remove it.",
            profile=site.paths.scratch,
            live=rest,
            key=("paths", "scratch"),
        )


def _gpu(site: Site, queue: Queue, answer: dict[str, str], host: str) -> Iterator[Finding]:
    if not site.node_of(queue).gpus:
        return
    subject = "GPU in a job"
    listed, visible = int(answer.get("gpus") or 0), answer.get("visible", "")
    if listed:
        yield ok(subject, f"{host} shows {listed} to a job that asked for one: {answer.get('gpu', '')}", live=listed)
    elif visible:
        what = f"{host} gave the device {visible}, but has no nvidia-smi to look at it"
        yield cannot_tell(subject, what, key=("gpu",))
    else:
        yield differs(
            subject,
            f"a job that asked for one sees none on {host}",
            "Correct the node's gpus, the queue's node, or how GPUs are asked for (gpu.resource).",
            profile=1,
            live=0,
            key=("gpu",),
        )


def _submits(site: Site, answer: dict[str, str], host: str) -> Iterator[Finding]:
    verdict, _, said = answer.get("submit", "skipped").partition(" ")
    if verdict == "skipped":
        return
    subject, may, key = "submitting from a job", verdict == "yes", ("compute_may_submit",)
    words = f"works on {host}" if may else f"does not work on {host}: {said or 'no reason given'}"
    if may == site.compute_may_submit:
        yield ok(subject, words, profile=site.compute_may_submit, live=may, key=key)
    else:
        value = "true" if may else "false"
        remedy = f"Set `compute_may_submit: {value}`."
        yield differs(subject, words, remedy, profile=site.compute_may_submit, live=may, key=key)
