"""The same job in the words of other tools: two nodes, four ranks and four GPUs on each, eight cores a rank.

Each function makes what is needed once, and gives a function from a job's number to its script: what a user of that
tool has to call for each of many jobs, from the description to the text. They are installed by ``make bench``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

Maker = Callable[[int], str]

COMMAND = "srun python -m dlhpc.train /runs/faces"


def submitit(folder: Path) -> Maker:
    """Slurm, with GPUs."""
    from submitit.slurm.slurm import _make_sbatch_string

    return lambda number: _make_sbatch_string(
        COMMAND,
        folder / f"faces-{number}",
        job_name=f"faces-{number}",
        partition="gpu",
        account="materials",
        time=120,
        nodes=2,
        ntasks_per_node=4,
        cpus_per_task=8,
        gpus_per_node=4,
        mem="64GB",
    )


def psij(folder: Path, kind: str) -> Maker:
    """Slurm: with GPUs; PBS Professional: its template drops them."""
    from psij import Job, JobAttributes, JobExecutor, JobSpec, ResourceSpecV1
    from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutorConfig

    executor = JobExecutor.get_instance(kind, config=BatchSchedulerExecutorConfig(work_directory=folder / "psij"))

    def script(number: int) -> str:
        job = Job(
            JobSpec(
                executable="python",
                arguments=["-m", "dlhpc.train", "/runs/faces"],
                directory=folder / f"faces-{number}",
                name=f"faces-{number}",
                resources=ResourceSpecV1(
                    node_count=2, processes_per_node=4, cpu_cores_per_process=8, gpu_cores_per_process=1
                ),
                attributes=JobAttributes(duration=timedelta(hours=2), queue_name="gpu", account="materials"),
            )
        )
        text = io.StringIO()
        executor.generate_submit_script(job, executor._create_script_context(job), text)
        return text.getvalue()

    return script


def qtoolkit(folder: Path, kind: str) -> Maker:
    """Slurm: GPUs of the whole job; PBS: it has none."""
    from qtoolkit.core.data_objects import ProcessPlacement, QResources
    from qtoolkit.io.pbs import PBSIO
    from qtoolkit.io.slurm import SlurmIO

    system = SlurmIO() if kind == "slurm" else PBSIO()

    def script(number: int) -> str:
        resources = QResources(
            queue_name="gpu",
            job_name=f"faces-{number}",
            account="materials",
            process_placement=ProcessPlacement.EVENLY_DISTRIBUTED,
            nodes=2,
            processes_per_node=4,
            threads_per_process=8,
            memory_per_thread=2048,
            gpus_per_job=8 if kind == "slurm" else None,
            time_limit=7200,
            output_filepath=str(folder / f"faces-{number}" / "job.out"),
        )
        return system.get_submission_script([COMMAND], resources)

    return script


def dask_jobqueue(folder: Path, kind: str) -> Maker:
    """Slurm and PBS: nodes and GPUs are lines that the user writes."""
    from dask_jobqueue.pbs import PBSJob
    from dask_jobqueue.slurm import SLURMJob

    def script(number: int) -> str:
        shared = {
            "name": f"faces-{number}",
            "job_name": f"faces-{number}",
            "queue": "gpu",
            "account": "materials",
            "walltime": "02:00:00",
            "cores": 32,
            "processes": 4,
            "memory": "64GiB",
            "log_directory": str(folder),
        }
        if kind == "slurm":
            extra = ["--nodes=2", "--ntasks-per-node=4", "--gres=gpu:4"]
            return SLURMJob("tcp://10.0.0.1:8786", job_extra_directives=extra, **shared).job_script()
        resources = "select=2:ncpus=32:mpiprocs=4:ngpus=4:mem=64gb"
        return PBSJob("tcp://10.0.0.1:8786", resource_spec=resources, **shared).job_script()

    return script


def makers(folder: Path) -> dict[str, dict[str, tuple[Callable[[], Maker], bool]]]:
    """By batch system and tool: how its maker is made, and whether its scripts ask for the GPUs."""
    return {
        "slurm": {
            "submitit": (lambda: submitit(folder), True),
            "PSI/J": (lambda: psij(folder, "slurm"), True),
            "qtoolkit": (lambda: qtoolkit(folder, "slurm"), True),
            "dask-jobqueue": (lambda: dask_jobqueue(folder, "slurm"), True),
        },
        "pbs": {
            "PSI/J": (lambda: psij(folder, "pbs"), False),
            "qtoolkit": (lambda: qtoolkit(folder, "pbs"), False),
            "dask-jobqueue": (lambda: dask_jobqueue(folder, "pbs"), True),
        },
    }
