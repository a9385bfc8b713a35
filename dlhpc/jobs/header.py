"""Plan → what the head of the job script asks for, and what is submitted with it."""

from __future__ import annotations

from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import Plan
from dlhpc.schedulers.base import Dependency, Header, JobRequest


def header_of(plan: Plan, run: RunDirectory, *, array: tuple[int, ...] = (), running: int | None = None) -> Header:
    """The head of the run's job script; with ``array`` of a script whose tasks are those indices."""
    return Header(
        name=plan.spec["name"],
        output=run.job_log,
        queue=plan.queue,
        nodes=plan.nodes,
        ranks_per_node=plan.ranks_per_node,
        cores_per_rank=plan.cores_per_rank,
        gpus_per_node=plan.ranks_per_node * plan.gpus_per_rank,
        memory_bytes=plan.memory_bytes,
        walltime_seconds=plan.walltime_seconds,
        warning_seconds=plan.save_margin_seconds,
        account=plan.account,
        mail=plan.mail,
        mail_on=tuple(plan.mail_on),
        exclusive=plan.exclusive,
        reservation=plan.reservation,
        qos=plan.qos,
        array=array,
        array_running=running,
        gpu_resource=plan.gpu_resource,
        gpu_feature=plan.gpu_feature,
        network=plan.network,
        extra=tuple(plan.directives),
    )


def tag_of(plan: Plan, submission: int) -> str:
    """The job's name: what the scheduler carries of this submission, and finds it by."""
    return f"{plan.spec['name']}-{plan.run_id}-{submission}"


def request_of(
    plan: Plan, run: RunDirectory, submission: int, *, after: tuple[Dependency, ...] = (), steps: int = 1
) -> JobRequest:
    """What is asked of the scheduler for one submission of the run."""
    return JobRequest(
        tag=tag_of(plan, submission),
        script=run.script,
        header=header_of(plan, run),
        after=after,
        held=plan.hold and submission == 1,
        steps=steps,
        kill_grace_seconds=plan.kill_grace_seconds,
    )
