"""Spec × site → plan: every number of a run is decided here, and nowhere later."""

from __future__ import annotations

import dataclasses
import math
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dlhpc import __version__
from dlhpc.data.catalog import Catalog, make_catalog
from dlhpc.envs.record import EnvironmentRecord, read_record
from dlhpc.errors import ErrorList, UserError
from dlhpc.jobs.estimate import estimate, needed_walltime, save_margin, work_of
from dlhpc.jobs.experience import Experience
from dlhpc.jobs.header import header_of
from dlhpc.jobs.launch import decide_launch, rank_exports, uses_ddp
from dlhpc.jobs.limits import account_faults, left_out, limits, too_large
from dlhpc.jobs.render import comment
from dlhpc.jobs.sources import check_code, fit_to_packed, make_paths_absolute, summary
from dlhpc.runs.directory import placeholder_run
from dlhpc.runs.find import find_run
from dlhpc.runs.plan import Plan
from dlhpc.schedulers.base import get_scheduler
from dlhpc.schedulers.local_queue import offered_cores, offered_gpus
from dlhpc.sites.load import find_site, load_site
from dlhpc.sites.models import Queue, Site
from dlhpc.spec.base import format_duration
from dlhpc.spec.load import Document, override, read_document, validate
from dlhpc.spec.models import Spec

SHORT_WALLTIME_S = 120
"""Below this much of an attempt is lost to its start."""

DEFAULT_WALLTIME_S = 3600.0
"""Asked for where neither the user nor experience says more."""


@dataclass(frozen=True)
class Planned:
    """A plan with what it was made of."""

    plan: Plan
    spec: Spec
    catalog: Catalog
    document: Document
    """The user's YAML with overrides applied and paths made absolute."""


def make_plan(
    spec_file: Path,
    *,
    runs: Path,
    site: str | None = None,
    settings: Sequence[str] = (),
    experience: Experience | None = None,
) -> Planned:
    """Decide everything for one run; raises :class:`UserError` (or a list of them) for what cannot work.

    ``experience`` is that of ``runs`` and the site, where the caller has it already.
    """
    base = spec_file.absolute().parent
    document = read_document(spec_file)
    override(document, settings)
    make_paths_absolute(document.root, base, runs, document.place)
    spec = validate(document, Spec)
    profile = load_site(site)
    catalog = make_catalog(spec.data, base, spec.task)
    spec = fit_to_packed(spec, catalog)
    plan = decide(
        spec,
        profile,
        catalog,
        runs,
        template=own_template(find_site(site)),
        experience=experience or Experience(runs, kinds_of_nodes(profile)),
    )
    return Planned(plan, spec, catalog, document)


def own_template(profile: Path) -> str | None:
    """The job template of the site's own: `NAME.sh.j2` beside its profile `NAME.yaml`."""
    template = profile.absolute().with_suffix(".sh.j2")
    return str(template) if template.exists() else None


def kinds_of_nodes(site: Site) -> dict[str, str]:
    """Queue → kind of node by its name in the profile, empty where all are of one kind."""
    return {queue.name: queue.node or "" for queue in site.queues}


def decide(
    spec: Spec,
    site: Site,
    catalog: Catalog,
    runs: Path,
    *,
    template: str | None = None,
    experience: Experience | None = None,
) -> Plan:
    """The plan for a spec, a site and the user's files; ``template`` is the site's own, if it has one.

    ``experience`` with earlier runs decides the walltime where the spec leaves it open.
    """
    spec = fit_to_packed(spec, catalog)
    job = spec.job
    queue = _queue(spec, site)
    node = site.node_of(queue)
    node_cores = node.cores or offered_cores()
    node_gpus = node.gpus if node.gpus is not None else offered_gpus() if site.scheduler == "local" else 0
    cores_per_rank = job.cores_per_rank or max(1, node_cores // job.ranks_per_node)
    gpus_per_rank = job.gpus_per_rank if job.gpus_per_rank is not None else int(node_gpus >= job.ranks_per_node)
    account = job.account or site.accounts.default
    walltime = _walltime(spec, queue)
    faults = [
        *too_large(spec, queue, cores_per_rank * job.ranks_per_node, node_cores, "cores"),
        *too_large(spec, queue, gpus_per_rank * job.ranks_per_node, node_gpus, "GPUs"),
        *limits(spec, site, queue, node),
        *account_faults(account, site),
    ]
    if faults:
        raise ErrorList(faults)

    values = spec.model_dump(mode="json")
    warnings = [*catalog.notes, *left_out(spec, site), *check_code(values)]
    if walltime < SHORT_WALLTIME_S and site.scheduler != "local":
        warnings.append(
            f"job.walltime is {format_duration(walltime)}: starting the ranks alone takes 10 to 30 s of every attempt"
        )
    ranks = job.nodes * job.ranks_per_node
    environment, prefix, python, record = _environment(spec, site)
    of_environment = record.environment if record is not None else {}
    exports = {**rank_exports(spec.distributed, cores_per_rank), **of_environment, **site.launcher.environment}
    launch = decide_launch(
        site,
        nodes=job.nodes,
        ranks_per_node=job.ranks_per_node,
        cores_per_rank=cores_per_rank,
        prefix=prefix,
        record=record,
        exports=exports,
        warnings=warnings,
        ddp=uses_ddp(spec.distributed, record),
    )
    if site.scheduler == "local" and not os.access(python, os.X_OK):  # compute nodes may see what this one does not
        raise UserError(
            f"the environment `{environment}` of the site `{site.name}` is not there: {python} cannot be run",
            remedy=f"Build it with `dlhpc env build RECIPE --prefix {prefix}`, or correct its prefix in the profile.",
        )
    exports = {**exports, **launch.environment, **site.launcher.environment}

    dataset = summary(spec, catalog, runs)
    if spec.learning_rate.warmup_epochs > spec.training.epochs:
        warnings.append(
            f"learning_rate.warmup_epochs is {spec.learning_rate.warmup_epochs:g}, longer than the training of "
            f"{spec.training.epochs} epochs: the rate never reaches its full height"
        )
    portion = spec.training.batch_size * spec.training.accumulate
    global_batch = portion * ranks
    if global_batch > dataset.train:
        what = "rows" if dataset.kind == "table" else "pictures"
        warnings.append(
            f"the global batch of {global_batch} ({spec.training.batch_size} × {ranks} ranks"
            f"{f' × {spec.training.accumulate} portions' if spec.training.accumulate > 1 else ''}) is larger than the "
            f"{dataset.train} training {what}: it is capped, and every epoch is a single step"
        )
        global_batch = dataset.train
    steps_per_epoch = math.ceil(dataset.train / global_batch)
    growth = max(1.0, global_batch / portion)
    factor = {"none": 1.0, "linear": growth, "sqrt": math.sqrt(growth)}[spec.learning_rate.scale]
    local = site.scheduler == "local"
    plan = Plan(
        run_id=secrets.token_hex(8),
        dlhpc_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        site=site.name,
        scheduler=site.scheduler,
        dialect=(site.dialect or "select") if site.scheduler == "pbs" else None,
        queue=queue.name,
        nodes=job.nodes,
        ranks=ranks,
        ranks_per_node=job.ranks_per_node,
        cores_per_rank=cores_per_rank,
        gpus_per_rank=gpus_per_rank,
        memory_bytes=job.memory,
        walltime_seconds=walltime,
        save_margin_seconds=save_margin(walltime),
        kill_grace_seconds=round(site.kill_grace.total_seconds()),
        crash_retries=job.crash_retries,
        max_attempts=job.max_attempts,
        launcher=launch.kind,
        launch=launch.argv,
        hostfile_option=launch.hostfile_option,
        python=python,
        environment=environment,
        environment_prefix=str(prefix),
        exports=exports,
        global_batch=global_batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * spec.training.epochs,
        base_rate=spec.learning_rate.base * factor,
        dataset=dataset,
        spec=values,
        account=None if local else account,
        mail=None if local else job.mail,
        mail_on=[] if local or job.mail is None else list(job.mail_on),
        exclusive=job.exclusive and not local,
        reservation=None if local else job.reservation,
        qos=None if local else job.qos,
        hold=job.hold,
        after=[str(find_run(named, runs).path) for named in job.after],
        directives=[] if local else [*site.directives, *job.directives],
        gpu_resource=site.gpu.resource,
        gpu_feature=site.gpu.feature,
        network=site.network,
        modules=list(site.environments[environment].modules),
        module_init=site.paths.module_init,
        scratch=site.paths.scratch,
        attempts_ahead=0 if site.compute_may_submit else job.attempts_ahead,
        template=template,
        node_watts=node.power.busy if node.power is not None else None,
        warnings=warnings,
    )
    if experience is not None:
        plan = _with_experience(plan, spec, queue, experience)
    _check_with_scheduler(plan, runs, spec.name)
    return plan


def _check_with_scheduler(plan: Plan, runs: Path, name: str) -> None:
    """Let the batch system's adapter say now what it cannot say to its system, before anything is written."""
    scheduler = get_scheduler(plan.scheduler, plan.dialect)
    can = scheduler.abilities
    if plan.hold and not can.hold:
        raise UserError(f"the scheduler `{plan.scheduler}` cannot hold a job", remedy="Remove job.hold.")
    if plan.after and not can.dependencies:
        why = "knows dependencies only between the steps of one job" if can.steps else "knows no dependencies"
        raise UserError(
            f"`{plan.scheduler}` {why}, so that job.after cannot be kept",
            remedy="Remove job.after, and submit this run when the other has finished.",
        )
    if plan.attempts_ahead and not (can.dependencies or can.steps):
        raise UserError(
            f"the site `{plan.site}` lets no job submit another one, and `{plan.scheduler}` knows no dependencies",
            remedy="Set compute_may_submit to true in the profile.",
        )
    _refuse_line_ends(plan, runs)
    if clash := sorted(_SCRIPT_VARIABLES & set(plan.exports)):
        raise UserError(
            f"the variable `{clash[0]}` of the launcher or environment is one that the job script itself uses",
            remedy="Remove it from the profile; programs look for variables in capitals.",
        )
    scheduler.directives(header_of(plan, placeholder_run(runs, name)))


_SCRIPT_VARIABLES = {
    "attempt", "begun", "child", "file", "hostfile", "python", "run", "signal", "status", "stopping",
}  # fmt: skip
"""Of jobtemplates/base.sh.j2."""


def _refuse_line_ends(plan: Plan, runs: Path) -> None:
    """Quoting keeps a value from the shell, but a batch system reads lines, and one could look like a directive."""
    values = (
        ("the folder of runs", [str(runs)]),
        ("the environment's prefix", [plan.environment_prefix, plan.python]),
        ("the launcher's command", plan.launch),
        ("a variable of the environment or launcher", list(plan.exports.values())),
        ("paths.module_init", [plan.module_init or ""]),
    )
    for what, words in values:
        for word in words:
            if comment(word) != word:
                raise UserError(
                    f"{what} holds a line end or another control character: {word!r}",
                    remedy="A job script cannot hold it; choose another name.",
                )


def _walltime(spec: Spec, queue: Queue) -> int:
    """Seconds of one attempt, as long as no earlier run says more."""
    if spec.job.walltime is not None:
        return round(spec.job.walltime.total_seconds())
    limit = queue.max_walltime.total_seconds() if queue.max_walltime is not None else DEFAULT_WALLTIME_S
    return round(min(DEFAULT_WALLTIME_S, limit))


def _with_experience(plan: Plan, spec: Spec, queue: Queue, experience: Experience) -> Plan:
    """Ask for the walltime that is needed, or say that the spec asks for far more: short jobs start sooner."""
    expected = estimate(experience.like(plan), work_of(plan))
    if expected is None:
        return plan
    limit = None if queue.max_walltime is None else queue.max_walltime.total_seconds()
    needed = needed_walltime(expected, limit)
    if spec.job.walltime is None:
        return dataclasses.replace(plan, walltime_seconds=needed, save_margin_seconds=save_margin(needed))
    if plan.scheduler != "local" and plan.walltime_seconds > 2 * needed:
        told = (
            f"job.walltime is {format_duration(plan.walltime_seconds)}, and {format_duration(needed)} would do by "
            f"{expected.how}: shorter jobs start sooner"
        )
        return dataclasses.replace(plan, warnings=[*plan.warnings, told])
    return plan


def _queue(spec: Spec, site: Site) -> Queue:
    if spec.job.queue is None:
        return site.queues[0]
    for queue in site.queues:
        if queue.name == spec.job.queue:
            return queue
    known = ", ".join(queue.name for queue in site.queues)
    raise UserError(f"the site `{site.name}` has no queue `{spec.job.queue}`", remedy=f"Its queues: {known}.")


def _environment(spec: Spec, site: Site) -> tuple[str, Path, str, EnvironmentRecord | None]:
    """Name, prefix, interpreter and build record of the environment that the job will use."""
    name = spec.job.environment or next(iter(site.environments))
    if name not in site.environments:
        raise UserError(
            f"the site `{site.name}` has no environment `{name}`", remedy=f"It has: {', '.join(site.environments)}."
        )
    given = site.environments[name].prefix
    prefix = Path(sys.prefix) if given is None else Path(os.path.expandvars(given)).expanduser().absolute()
    python = sys.executable if given is None else str(prefix / "bin" / "python")
    return name, prefix, python, read_record(prefix)
