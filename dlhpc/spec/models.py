"""The spec: everything a user can ask of a training, with its defaults.

Field docstrings become the descriptions in the JSON schema and in messages about missing keys, so they are written for
the person who edits the YAML. The parts are in ``data``, ``network``, ``training`` and ``sweep``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dlhpc.spec.base import Duration, MemoryBytes, Model, OneOrMore, SchedulerWord
from dlhpc.spec.data import Augment, Data, Folders, Kitti, Lists, Split, Table
from dlhpc.spec.network import DETECTORS, SMALLEST_INPUT, Detection, Network, NetworkName
from dlhpc.spec.sweep import Sweep
from dlhpc.spec.training import Distributed, EarlyStopping, LearningRate, Optimizer, Training

__all__ = [
    "DETECTORS", "SMALLEST_INPUT", "Augment", "Data", "Detection", "Distributed", "EarlyStopping", "Folders", "Job",
    "Kitti", "LearningRate", "Lists", "Network", "NetworkName", "Optimizer", "Spec", "Split", "Sweep", "Table",
    "TaskName", "Training",
]  # fmt: skip

Positive = Annotated[int, Field(ge=1)]
TaskName = Literal["classification", "detection", "regression"]


class Job(Model):
    """What to ask of the batch system."""

    nodes: Positive = 1
    ranks_per_node: Positive = 1
    """Training processes on each node; one per GPU where there are GPUs."""
    cores_per_rank: Positive | None = None
    """CPU cores for each rank; the node's cores shared out evenly if absent."""
    gpus_per_rank: Annotated[int, Field(ge=0, le=1)] | None = None
    """1 or 0; 1 where the site's nodes have enough GPUs if absent."""
    memory: MemoryBytes | None = None
    """Memory of a node, for example 16GB."""
    walltime: Duration | None = None
    """Longest time of one attempt; a longer training goes on in the next attempt by itself. If absent: what earlier
    runs of the same network and data say is needed, else an hour, and never more than the queue allows."""
    queue: SchedulerWord | None = None
    """The site's default queue if absent."""
    account: SchedulerWord | None = None
    """Project to charge; the site's default if absent."""
    mail: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$")] | None = None
    """Address that the batch system writes to."""
    mail_on: Annotated[tuple[Literal["begin", "end", "fail"], ...], Field(min_length=1), OneOrMore] = ("end", "fail")
    """When it writes."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    reservation: SchedulerWord | None = None
    """Run inside this reservation."""
    qos: SchedulerWord | None = None
    """Quality of service, where the site has several."""
    after: Annotated[tuple[str, ...], OneOrMore] = ()
    """Runs (name, beginning of one, path, or `last`) that must finish before this one starts."""
    hold: bool = False
    """Wait in the queue until `dlhpc release`."""
    directives: Annotated[tuple[Annotated[str, Field(pattern=r"^[ -~]+$")], ...], OneOrMore] = ()
    """Further directives as the batch system has them, without the leading `#SBATCH`, `#PBS` or `# @`."""
    environment: str | None = None
    """Name of one of the site's software environments; its default if absent."""
    crash_retries: Annotated[int, Field(ge=0, le=100)] = 2
    """How often a crashed attempt is started again from its last checkpoint."""
    max_attempts: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Never more attempts than this, however they end."""
    attempts_ahead: Annotated[int, Field(ge=1, le=50)] = 3
    """Where a job may not submit the next attempt itself, so many are queued, each waiting for the one before."""


def _run_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", name):
        raise ValueError("must begin with a letter and hold at most 40 letters, digits, `-` or `_`")
    return name


class Spec(Model):
    """One training, as a user asks for it."""

    name: Annotated[str, AfterValidator(_run_name)]
    """Short name; runs are called NAME-DATE-TIME-xxxx."""
    notes: str = ""
    """Free text for the report."""
    task: TaskName = "classification"
    """`classification`: which class (or classes); `detection`: where the objects are, as boxes; `regression`: one or
    several numbers."""
    task_file: str | None = None
    """Your own losses and measures for this task: a Python file; see the user guide."""
    data: Data
    augment: Augment = Augment()
    network: Network = Network()
    detection: Detection = Detection()
    optimizer: Optimizer = Optimizer()
    learning_rate: LearningRate = LearningRate()
    training: Training = Training()
    distributed: Distributed = Distributed()
    job: Job = Job()
    sweep: Sweep | None = None
    """Many trainings that differ in some settings."""

    @model_validator(mode="before")
    @classmethod
    def _network_of_the_task(cls, value: Any) -> Any:
        """The network that a task has if none is named."""
        if not isinstance(value, dict) or not isinstance(network := value.get("network") or {}, dict):
            return value
        if "name" in network:
            return value
        data = value.get("data")
        if isinstance(data, dict) and data.get("packed") is not None:
            return value  # what it holds says which network, when the plan is made
        table = data.get("table") if isinstance(data, dict) else None
        rows = isinstance(table, dict) and table.get("pictures") is None
        return {**value, "network": {**network, "name": usual_network(str(value.get("task")), table=rows)}}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.augment.resized_crop is not None and self.augment.crop is None:
            raise ValueError("augment.resized_crop needs augment.crop: the size that the part is brought to")
        if self.data.packed is None:  # else the data itself says what it is, when the plan is made
            _check_task(self)
            check_network(self, table=self.data.is_table)
            check_sizes(self)
        return self

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the network sees, after the crop."""
        return self.augment.crop_size or (self.data.height, self.data.width)


def _check_task(spec: Spec) -> None:
    """Task, data and network must be of one kind."""
    task, data = spec.task, spec.data
    if (task == "detection") != (data.kitti is not None):
        raise ValueError(
            "task detection needs boxes: data.kitti (or a packed dataset with boxes)"
            if task == "detection"
            else "data.kitti holds boxes, which are for task detection"
        )
    if task == "regression" and data.table is None and data.lists is None:
        raise ValueError("task regression needs numbers to learn: data.table, or data.lists with numbers")
    if data.several_labels and (task != "classification" or (data.lists is None and data.table is None)):
        raise ValueError("data.several_labels is for task classification with data.lists or data.table")


def usual_network(task: str, *, table: bool) -> NetworkName:
    """The network of a task where none is named; ``table`` for rows of numbers."""
    if table:
        return "mlp"
    usual: dict[str, NetworkName] = {"detection": "detectnet", "regression": "smallnet"}
    return usual.get(task, "alexnet")


def check_network(spec: Spec, *, table: bool) -> None:
    """:class:`ValueError` if network or augmentation are not for such samples; ``table`` for rows of numbers."""
    task, network = spec.task, spec.network
    if network.file is None:
        if (task == "detection") != (network.name in DETECTORS):
            kind = ", ".join(DETECTORS)
            raise ValueError(
                f"network.name is {network.name}; the networks for detection are {kind}, for no other task"
            )
        if (network.name == "mlp") != table:
            raise ValueError(
                f"network.name is {network.name}; rows of a table need mlp, and mlp needs rows of a table, not pictures"
            )
    if spec.augment.mixup and task == "detection":
        raise ValueError("augment.mixup mixes whole pictures, which is not for task detection")
    if table and spec.augment != Augment(mixup=spec.augment.mixup):
        raise ValueError("augment varies pictures; for rows of a table only augment.mixup can be used")


def check_sizes(spec: Spec) -> None:
    """:class:`ValueError` if the network or ``augment`` cannot work with pictures of ``data.width`` and ``height``."""
    data, crop = spec.data, spec.augment.crop_size
    if crop is not None and spec.augment.resized_crop is None and (crop[0] > data.height or crop[1] > data.width):
        raise ValueError(f"augment.crop is {crop[1]}×{crop[0]}, larger than the picture of {data.width}×{data.height}")
    if spec.augment.quarter_turns and len({data.height, data.width}) > 1:
        raise ValueError("augment.quarter_turns needs square pictures: data.width and data.height are not the same")
    smallest = SMALLEST_INPUT[spec.network.name]
    if spec.network.file is None and min(spec.input_size) < smallest:
        raise ValueError(
            f"{spec.network.name} needs pictures of at least {smallest}×{smallest}; "
            f"data and augment.crop give {spec.input_size[1]}×{spec.input_size[0]}"
        )
