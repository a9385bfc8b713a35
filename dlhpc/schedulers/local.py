"""The batch system of a machine that has none: a queue, walltime and cancelling, without a daemon.

Jobs take the machine's cores and GPUs first come, first served. All that is known of them lies in a folder
(:mod:`~dlhpc.schedulers.local_spool`); a running job has one small supervisor process
(:mod:`~dlhpc.schedulers.local_supervisor`), a waiting one has none.

Settings: ``DLHPC_LOCAL_SPOOL`` (where jobs are kept), ``DLHPC_LOCAL_CORES`` and ``DLHPC_LOCAL_GPUS`` (how many to
offer).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dlhpc.errors import CommandError, DlhpcError, StorageError, UserError
from dlhpc.files import current_umask, fsync_folder, storage_errors
from dlhpc.schedulers.base import Abilities, Header, JobRequest, JobState, JobStatus, StartEstimate
from dlhpc.schedulers.local_dependencies import obstacle
from dlhpc.schedulers.local_processes import OWN_VARIABLES
from dlhpc.schedulers.local_queue import (
    CANCELLED,
    Capacity,
    View,
    Waiting,
    advance,
    end_unstarted,
    fit,
    holder,
    is_alive,
    look_after,
    offered_cores,
    offered_gpus,
    why_waiting,
)
from dlhpc.schedulers.local_spool import Job, JobFolder, Spool, parse_id

CANCEL_MARGIN_S = 20.0
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY|AUTH", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/\s]*:[^/\s]*@")


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the submitting user's environment the job gets. It waits in a file, so nothing that looks secret."""
    return {
        name: value
        for name, value in environment.items()
        if name not in OWN_VARIABLES and not _SECRET_NAME.search(name) and not _SECRET_VALUE.search(value)
    }


class LocalScheduler:
    """See :class:`dlhpc.schedulers.base.Scheduler`."""

    abilities = Abilities(dependencies=True, hold=True)

    def directives(self, header: Header) -> list[str]:
        """A comment: this scheduler is told by the call of :meth:`submit`."""
        gpus = f", {header.gpus_per_node} GPUs" if header.gpus_per_node else ""
        wanted = f"{header.ranks_per_node} ranks × {header.cores_per_rank} cores{gpus}"
        return [f"# The local scheduler reads no directives: {wanted}, walltime {header.walltime_seconds} s."]

    def submission(self, request: JobRequest) -> list[str]:
        """There is no command: dlhpc itself starts the script."""
        return ["sh", str(request.script)]

    def submit(self, request: JobRequest) -> list[str]:
        """Queue the job, start it if there is room, and give its id. Twice with one tag gives the same job."""
        spool = Spool.here()
        self._refuse_impossible(request.header)
        job = Job(
            tag=request.tag,
            name=request.header.name,
            script=os.path.abspath(request.script),
            log=os.path.abspath(request.header.output),
            cores=request.header.ranks_per_node * request.header.cores_per_rank,
            gpus=request.header.gpus_per_node,
            walltime_seconds=request.header.walltime_seconds,
            kill_grace_seconds=request.kill_grace_seconds,
            submitted=time.time(),
            token=secrets.token_hex(16),
            umask=current_umask(),
            after=[[dependency.job_id, dependency.kind] for dependency in request.after],
        )
        with storage_errors(job.script, "read"), open(job.script, "rb"):
            pass
        with storage_errors(job.log):
            Path(job.log).parent.mkdir(parents=True, exist_ok=True)
        with spool.lock():
            folder = spool.tagged(request.tag) or spool.add(job, kept_environment(os.environ), held=request.held)
            try:
                spool.prune()
                advance(spool)
            except DlhpcError:
                pass  # the job is safely queued; what is wrong shows in its status
        return [spool.job_id(folder)]

    def member_ids(self, array_id: str, indices: Sequence[int]) -> list[str]:
        """There are no arrays."""
        raise UserError(
            f"the local scheduler has no arrays: {array_id} is one job, without {len(indices)} tasks",
            remedy="Submit the tasks as single jobs.",
        )

    def query(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Where these jobs stand. This also starts what can start, so that a queue goes on after a reboot."""
        spool = Spool.here()
        view = View()
        if not job_ids:
            return {}
        if spool.live():
            try:
                with spool.lock():
                    view = advance(spool)
            except DlhpcError as error:
                view = View(trouble=error)
        kept: dict[str, dict[int, JobFolder]] = {spool.host: spool.kept()}
        answer: dict[str, JobStatus] = {}
        for job_id in job_ids:
            known = parse_id(job_id)
            if known is None:
                answer[job_id] = JobStatus(job_id, JobState.GONE)
                continue
            number, host = known
            if host not in kept:
                kept[host] = Spool.of(host).kept()
            folder = kept[host].get(number)
            if folder is None:
                answer[job_id] = JobStatus(job_id, JobState.GONE)
            elif host == spool.host:
                answer[job_id] = self._status(job_id, folder, view, spool)
            else:
                answer[job_id] = self._status_elsewhere(job_id, folder, host)
        return answer

    def find(self, tag: str) -> list[str]:
        """The id of the job with this tag, also one of another host that shares this home."""
        here = Spool.here()
        others: list[Spool] = []
        if here.folder.parent.is_dir():
            with storage_errors(here.folder.parent, "read"):
                others = [Spool(path) for path in sorted(here.folder.parent.iterdir()) if path != here.folder]
        for spool in [here, *others]:
            if (folder := spool.tagged(tag)) is not None:
                return [spool.job_id(folder)]
        return []

    def hold(self, job_ids: Sequence[str]) -> None:
        """Keep waiting jobs from starting. One that has started is a :class:`UserError`, and the others are held."""
        late: list[str] = []
        spool = Spool.here()
        with spool.lock():
            for job_id, folder in self._own(spool, job_ids):
                if folder.has_started() or folder.has_ended():
                    late.append(job_id)
                    continue
                with storage_errors(folder.hold):
                    folder.hold.touch()
                    fsync_folder(folder.path)
            advance(spool)
        if late:
            raise UserError(
                f"too late to hold {', '.join(late)}: only a job that has not started can be held",
                remedy="Cancel it, if it shall not go on.",
            )

    def release(self, job_ids: Sequence[str]) -> None:
        """Let held jobs start; one that is not held is left as it is."""
        spool = Spool.here()
        with spool.lock():
            for _, folder in self._own(spool, job_ids):
                with storage_errors(folder.hold):
                    folder.hold.unlink(missing_ok=True)
            advance(spool)

    def requeue(self, job_id: str) -> None:
        """Not able."""
        raise UserError(f"the local scheduler cannot requeue job {job_id}", remedy="Submit it again.")

    def estimate_start(self, request: JobRequest) -> StartEstimate:
        """At once if there is room for it now; how long the others take is not known."""
        spool = Spool.here()
        view = View()
        if spool.live():
            with spool.lock():
                view = advance(spool)
        if view.first is not None:
            return StartEstimate(None, f"waits behind job {spool.job_id(view.first.folder)} of this machine's queue")
        header = request.header
        wanted = Waiting(JobFolder(spool.folder), header.ranks_per_node * header.cores_per_rank, header.gpus_per_node)
        if fit(wanted, view.running, Capacity(offered_cores(), offered_gpus() if wanted.gpus else 0)) is None:
            holders = ", ".join(spool.job_id(other.folder) for other in view.running)
            return StartEstimate(None, f"waits for this machine's running jobs: {holders}")
        return StartEstimate(time.time(), "this machine has room for it now")

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End the jobs: TERM to the script, KILL to all processes after its grace. Returns when none is left."""
        for job_id in job_ids:
            self._cancel(job_id)

    @staticmethod
    def _own(spool: Spool, job_ids: Sequence[str]) -> Iterator[tuple[str, JobFolder]]:
        """Those of the jobs that this machine knows; one that waits or runs on another is a :class:`UserError`."""
        for job_id in job_ids:
            known = parse_id(job_id)
            if known is None:
                continue
            number, host = known
            folder = Spool.of(host).folder_of(number)
            if folder is None:
                continue
            if host == spool.host:
                yield job_id, folder
            elif not folder.has_ended():
                raise UserError(f"job {job_id} belongs to the machine {host}", remedy="Repeat the command there.")

    def _cancel(self, job_id: str) -> None:
        spool = Spool.here()
        if not any(self._own(spool, [job_id])):
            return
        with spool.lock():
            folder = next((own for _, own in self._own(spool, [job_id])), None)
            if folder is None or folder.has_ended():
                return
            if end_unstarted(spool, folder, CANCELLED):
                advance(spool)
                return
            found = look_after(folder, CANCELLED)
            if found is None or found.supervisor is None:
                advance(spool)
                return
            with contextlib.suppress(ProcessLookupError):  # it has ended at this moment
                os.kill(found.supervisor, signal.SIGUSR1)
        self._await_end(spool, folder.number, job_id)

    @staticmethod
    def _await_end(spool: Spool, number: int, job_id: str) -> None:
        """Wait for a supervisor that was asked to end its job; it has the job's grace and some more."""
        folder = spool.folder_of(number)
        grace = CANCEL_MARGIN_S
        with contextlib.suppress(StorageError):
            grace += folder.job().kill_grace_seconds if folder is not None else 0
        until = time.monotonic() + grace
        while (folder := spool.folder_of(number)) is not None and not folder.has_ended():
            if holder(folder) is None:
                with spool.lock():
                    look_after(folder, CANCELLED)
                    advance(spool)
                return
            if time.monotonic() > until:
                raise CommandError(
                    f"job {job_id} was told to end, and has not within {grace:.0f} s",
                    remedy="Ask for its status later; a process may be stuck in the file system.",
                )
            time.sleep(0.03)

    @staticmethod
    def _refuse_impossible(header: Header) -> None:
        cores = offered_cores()
        wanted = header.ranks_per_node * header.cores_per_rank
        if wanted > cores:
            raise UserError(
                f"the job asks for {wanted} cores and this machine offers {cores}",
                remedy="Ask for fewer ranks or cores per rank, or submit on a larger machine.",
            )
        if header.gpus_per_node > (gpus := offered_gpus()):
            raise UserError(
                f"the job asks for {header.gpus_per_node} GPUs and this machine offers {gpus}",
                remedy="Ask for fewer GPUs, or submit on a machine that has them.",
            )

    @staticmethod
    def _status(job_id: str, folder: JobFolder, view: View, spool: Spool) -> JobStatus:
        try:
            if folder.has_ended():
                return _ended(job_id, folder)
            if not folder.has_started():
                blocked = obstacle(folder, folder.job())
                state = JobState.HELD if blocked is not None and blocked.held else JobState.QUEUED
                reason = blocked.reason if blocked is not None else why_waiting(folder, view, spool)
                return JobStatus(job_id, state, reason=reason)
            started = folder.started()
            if is_alive(started):
                return JobStatus(job_id, JobState.RUNNING, started=started.started)
            if folder.has_ended():
                return _ended(job_id, folder)
        except StorageError as error:
            if any(running.folder == folder for running in view.running):
                return JobStatus(job_id, JobState.RUNNING, reason=error.what)
            moved = spool.folder_of(folder.number)
            if moved is not None and moved != folder:
                return LocalScheduler._status(job_id, moved, view, spool)
            return JobStatus(job_id, JobState.UNKNOWN, reason=f"{error.where}: {error.what}")
        trouble = "" if view.trouble is None else f": {view.trouble.what}"
        return JobStatus(
            job_id, JobState.UNKNOWN, reason=f"its supervisor is gone, and this cannot be recorded{trouble}"
        )

    @staticmethod
    def _status_elsewhere(job_id: str, folder: JobFolder, host: str) -> JobStatus:
        try:
            if folder.has_ended():
                return _ended(job_id, folder)
        except StorageError as error:
            return JobStatus(job_id, JobState.UNKNOWN, reason=f"{error.where}: {error.what}")
        return JobStatus(job_id, JobState.UNKNOWN, reason=f"it belongs to the machine {host}: ask there")


def _ended(job_id: str, folder: JobFolder) -> JobStatus:
    end = folder.ended()
    return JobStatus(job_id, JobState.ENDED, end.exit_code, end.reason, end.started, end.ended)
