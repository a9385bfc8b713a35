"""Spec × site → plan: every number of a run is decided here, and nowhere later."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dlhpc import __version__
from dlhpc.data.catalog import Catalog, make_catalog
from dlhpc.envs.record import EnvironmentRecord, read_record
from dlhpc.errors import ErrorList, UserError
from dlhpc.runs.plan import DatasetSummary, Plan
from dlhpc.schedulers.local_queue import offered_cores, offered_gpus
from dlhpc.sites.load import load_site
from dlhpc.sites.models import Queue, Site
from dlhpc.spec.base import format_duration
from dlhpc.spec.load import Document, load_spec
from dlhpc.spec.models import Spec

if TYPE_CHECKING:
    from ruamel.yaml.comments import CommentedMap

DATASETS = ".datasets"
"""Folder beside the runs that holds the packed datasets they share."""


_PLACEMENT = {
    # Left alone, Open MPI binds each of two ranks to one core, whatever OMP_NUM_THREADS says, and refuses more ranks
    # than cores.
    "openmpi": ["--bind-to", "none", "--map-by", "slot", "--oversubscribe"],
    "mpich": ["-bind-to", "none"],
}
"""Options that leave the placing of threads to the system, by MPI implementation."""


@dataclass(frozen=True)
class Planned:
    """A plan with what it was made of."""

    plan: Plan
    spec: Spec
    catalog: Catalog
    document: Document
    """The user's YAML with overrides applied and paths made absolute."""


def make_plan(spec_file: Path, *, runs: Path, site: str | None = None, settings: Sequence[str] = ()) -> Planned:
    """Decide everything for one run; raises :class:`UserError` (or a list of them) for what cannot work."""
    spec, document = load_spec(spec_file, settings)
    spec = _with_absolute_paths(spec, document, spec_file.absolute().parent)
    profile = load_site(site)
    catalog = make_catalog(spec.data, spec_file.absolute().parent)
    return Planned(decide(spec, profile, catalog, runs), spec, catalog, document)


def decide(spec: Spec, site: Site, catalog: Catalog, runs: Path) -> Plan:
    """The plan for a spec, a site and the user's files."""
    job = spec.job
    queue = _queue(spec, site)
    faults: list[UserError] = []
    if job.nodes > 1 and site.scheduler == "local":
        faults.append(
            UserError(
                f"job.nodes is {job.nodes}, but the site `{site.name}` is one machine",
                remedy="Set job.nodes to 1, or choose another site.",
            )
        )
    node_cores = queue.node.cores or offered_cores()
    node_gpus = queue.node.gpus if queue.node.gpus is not None else offered_gpus()
    cores_per_rank = job.cores_per_rank or max(1, node_cores // job.ranks_per_node)
    gpus_per_rank = job.gpus_per_rank if job.gpus_per_rank is not None else int(node_gpus >= job.ranks_per_node)
    for thing, wanted, there in (
        ("cores", cores_per_rank * job.ranks_per_node, node_cores),
        ("GPUs", gpus_per_rank * job.ranks_per_node, node_gpus),
    ):
        if wanted > there:
            faults.append(
                UserError(
                    f"the job asks for {wanted} {thing} on a node, {job.ranks_per_node} ranks together, "
                    f"but a node of queue `{queue.name}` has {there}",
                    remedy=f"Lower job.ranks_per_node or job.{thing.lower()}_per_rank.",
                )
            )
    memory = job.memory
    if memory is not None and queue.node.memory is not None and memory > queue.node.memory:
        faults.append(
            UserError(
                f"job.memory is {memory / 1e9:.1f} GB, but a node of queue `{queue.name}` has "
                f"{queue.node.memory / 1e9:.1f} GB",
                remedy="Lower job.memory.",
            )
        )
    limit = queue.max_walltime
    if limit is not None and job.walltime > limit:
        faults.append(
            UserError(
                f"job.walltime is {format_duration(job.walltime)}, but queue `{queue.name}` allows "
                f"{format_duration(limit)}",
                remedy="Lower it: a longer training goes on in the next attempt by itself.",
            )
        )
    if faults:
        raise ErrorList(faults)

    warnings = list(catalog.notes)
    ranks = job.nodes * job.ranks_per_node
    environment, prefix, python, record = _environment(spec, site)
    launcher, launch, exports = _launcher(site, ranks, prefix, record, warnings)
    if site.scheduler == "local" and not os.access(python, os.X_OK):  # compute nodes may see what this one does not
        raise UserError(
            f"the environment `{environment}` of the site `{site.name}` is not there: {python} cannot be run",
            remedy=f"Build it with `dlhpc env build RECIPE --prefix {prefix}`, or correct its prefix in the profile.",
        )
    of_environment = record.environment if record is not None else {}
    exports = {**_base_exports(cores_per_rank), **of_environment, **exports, **site.launcher.environment}

    summary = DatasetSummary(
        key=(key := catalog.key(spec.data)),
        packed=str(runs / DATASETS / key),
        classes=len(catalog.classes),
        train=len(catalog.splits["train"]),
        val=len(catalog.splits["val"]),
        unseen=len(catalog.splits["unseen"]),
    )
    if spec.learning_rate.warmup_epochs > spec.training.epochs:
        warnings.append(
            f"learning_rate.warmup_epochs is {spec.learning_rate.warmup_epochs:g}, longer than the training of "
            f"{spec.training.epochs} epochs: the rate never reaches its full height"
        )
    portion = spec.training.batch_size * spec.training.accumulate
    global_batch = portion * ranks
    if global_batch > summary.train:
        warnings.append(
            f"the global batch of {global_batch} ({spec.training.batch_size} × {ranks} ranks"
            f"{f' × {spec.training.accumulate} portions' if spec.training.accumulate > 1 else ''}) is larger than the "
            f"{summary.train} training pictures: it is capped, and every epoch is a single step"
        )
        global_batch = summary.train
    steps_per_epoch = math.ceil(summary.train / global_batch)
    growth = max(1.0, global_batch / portion)
    factor = {"none": 1.0, "linear": growth, "sqrt": math.sqrt(growth)}[spec.learning_rate.scale]
    walltime = round(job.walltime.total_seconds())
    return Plan(
        run_id=secrets.token_hex(8),
        dlhpc_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        site=site.name,
        scheduler=site.scheduler,
        queue=queue.name,
        nodes=job.nodes,
        ranks=ranks,
        ranks_per_node=job.ranks_per_node,
        cores_per_rank=cores_per_rank,
        gpus_per_rank=gpus_per_rank,
        memory_bytes=memory,
        walltime_seconds=walltime,
        # Ten per cent of a short attempt, two minutes of a long one.
        save_margin_seconds=min(120, max(1, walltime // 10)),
        kill_grace_seconds=round(site.kill_grace.total_seconds()),
        crash_retries=job.crash_retries,
        max_attempts=job.max_attempts,
        launcher=launcher,
        launch=launch,
        python=python,
        environment=environment,
        environment_prefix=str(prefix),
        exports=exports,
        global_batch=global_batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * spec.training.epochs,
        base_rate=spec.learning_rate.base * factor,
        dataset=summary,
        spec=spec.model_dump(mode="json"),
        warnings=warnings,
    )


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


def _launcher(
    site: Site, ranks: int, prefix: Path, record: EnvironmentRecord | None, warnings: list[str]
) -> tuple[str, list[str], dict[str, str]]:
    """Launcher's name, its argv before the python command, and what it wants in the environment."""
    if ranks == 1:
        return "none", [], {}
    kind = site.launcher.kind
    # The launcher must be of the MPI that Horovod was compiled with; without a record PATH is all there is to go by.
    mpirun = record.mpi.mpirun if record is not None and record.mpi is not None else "mpirun"
    found = shutil.which(mpirun) is not None
    if kind == "auto":
        built_with_mpi = record is None or record.mpi is not None
        if built_with_mpi and not found and record is not None:
            warnings.append(f"the environment has MPI, but `{mpirun}` is not there; Horovod's Gloo starts the ranks")
        kind = "mpirun" if built_with_mpi and found else "gloo"
    if kind == "mpirun":
        if not found:
            raise UserError(
                f"the site `{site.name}` starts ranks with `{mpirun}`, which was not found",
                remedy="Install an MPI, or set `launcher: {kind: auto}` in the profile to go on with Gloo.",
            )
        # Open MPI refuses to run as root unless told twice; that is the rule inside containers.
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
        implementation = record.mpi.implementation if record is not None and record.mpi is not None else "openmpi"
        options = site.launcher.options if site.launcher.options is not None else _PLACEMENT.get(implementation, [])
        return "mpirun", [mpirun, "-np", str(ranks), *options], root
    horovodrun = str(prefix / "bin" / "horovodrun")
    return "gloo", [horovodrun, "--gloo", "-np", str(ranks), "-H", f"localhost:{ranks}"], {}


def _base_exports(cores_per_rank: int) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(cores_per_rank),
        # One allreduce per gradient bucket of ours: Horovod's own fusion depends on timing, and so would the bits.
        "HOROVOD_FUSION_THRESHOLD": "0",
        "HOROVOD_CYCLE_TIME": "0.5",
        "PYTHONUNBUFFERED": "1",
    }


def _with_absolute_paths(spec: Spec, document: Document, base: Path) -> Spec:
    """The spec and its YAML with data paths made absolute, so that the copy in the run directory works from there."""
    data = spec.data
    changed: dict[str, object] = {}
    node: CommentedMap = document.root["data"]

    def absolute(path: str) -> str:
        return os.path.abspath(base / os.path.expanduser(path))

    if data.folder is not None:
        changed["folder"] = node["folder"] = absolute(data.folder)
    for name in ("folders", "lists"):
        source = getattr(data, name)
        if source is None:
            continue
        paths = {key: absolute(path) for key, path in source.model_dump(exclude_none=True).items()}
        node[name].update(paths)
        changed[name] = source.model_copy(update=paths)
    return spec.model_copy(update={"data": data.model_copy(update=changed)})
