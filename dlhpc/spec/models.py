"""The spec: everything a user can ask of a training, with its defaults.

Field docstrings become the descriptions in the JSON schema and in messages about missing keys, so they are written for
the person who edits the YAML.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from dlhpc.spec.base import Duration, MemoryBytes, Model, OneOrMore, SchedulerWord
from dlhpc.spec.sweep import Sweep

Fraction = Annotated[float, Field(ge=0, le=1)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Percent = Annotated[float, Field(gt=0, lt=100)]


class Split(Model):
    """How the pictures of each class are shared out; the three fractions sum to 1."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Fraction that the network learns from."""
    val: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Fraction that measures it after every validation interval."""
    unseen: Fraction = 0.0
    """Fraction kept aside for a last, honest test."""
    seed: int = 1
    """The same seed gives the same split of the same files."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.val + self.unseen
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + unseen is {total:g}; the fractions must sum to 1")
        return self


class Folders(Model):
    """One folder per split, each holding one folder per class."""

    train: str
    val: str
    unseen: str | None = None


class Lists(Model):
    """Text files with one `PATH LABEL` a line; LABEL is a class name or, with a labels file, its line number from 0."""

    train: str
    val: str
    unseen: str | None = None
    labels: str | None = None
    """File with one class name a line."""
    root: str | None = None
    """Folder that the listed paths are relative to; the list's own folder if absent."""


class Data(Model):
    """Where the pictures are and how they are brought to one size. Paths are relative to the spec file."""

    folder: str | None = None
    """One folder per class inside; shared out by `split`."""
    folders: Folders | None = None
    """Instead of `folder`: separate folders for train, val and unseen."""
    lists: Lists | None = None
    """Instead of `folder`: list files for train, val and unseen."""
    split: Split = Split()
    min_per_class: Positive = 2
    """A class with fewer pictures is an error."""
    max_per_class: Positive | None = None
    """Take at most this many pictures of a class, chosen by the split's seed."""
    color: Literal["auto", "grey", "rgb"] = "auto"
    """`auto` is grey when the first pictures looked at are all grey, else rgb."""
    width: Annotated[int, Field(ge=8, le=8192)] = 256
    height: Annotated[int, Field(ge=8, le=8192)] = 256
    resize: Literal["squash", "crop", "fill", "half_crop"] = "squash"
    """`squash` ignores the aspect ratio, `crop` cuts the longer side, `fill` pads the shorter one, `half_crop` does
    half of each."""
    broken: Literal["skip", "fail"] = "fail"
    """What to do with a picture that is empty, truncated or not a picture. It is named either way."""
    normalize: Literal["pixel", "image", "none"] = "pixel"
    """`pixel`: subtract each channel's mean over the training pictures and divide by its σ; `image`: subtract the mean
    picture, divide by σ; `none`: values from 0 to 1."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("folder", "folders", "lists") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of `folder`, `folders`, `lists` (given: {', '.join(given) if given else 'none'})"
            )
        return self


class Augment(Model):
    """Random changes to training pictures; validation and prediction see the plain (centre-cropped) picture."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    shift_pixels: Annotated[int, Field(ge=0)] = 0
    """Move by up to this many pixels each way; the edge is repeated."""
    crop: Positive | None = None
    """Cut a square of this many pixels: anywhere in training, from the centre otherwise."""


NetworkName = Literal["lenet", "smallnet", "alexnet", "googlenet", "resnet18", "resnet50"]

SMALLEST_INPUT: dict[str, int] = {
    "lenet": 16, "smallnet": 16, "alexnet": 63, "googlenet": 32, "resnet18": 32, "resnet50": 32,
}  # fmt: skip
"""Pixels below which a network's pooling leaves nothing of the picture."""


class Network(Model):
    """The network to train. Input channels and classes are adapted to the data."""

    name: NetworkName = "alexnet"


class Optimizer(Model):
    """How weights move. Settings that the chosen optimiser does not have must stay unset."""

    name: Literal["sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """sgd, nesterov (0.9 if unset), rmsprop (0 if unset)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0001
    betas: tuple[Smoothing, Smoothing] | None = None
    """adam, adamw (0.9, 0.999 if unset)."""
    rho: Smoothing | None = None
    """rmsprop's smoothing α (0.99 if unset), adadelta's ρ (0.9 if unset)."""
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """adam, adamw, rmsprop, adagrad, adadelta; PyTorch's default if unset."""

    @model_validator(mode="after")
    def _only_what_it_has(self) -> Self:
        has = {
            "sgd": {"momentum"},
            "nesterov": {"momentum"},
            "adam": {"betas", "epsilon"},
            "adamw": {"betas", "epsilon"},
            "rmsprop": {"momentum", "rho", "epsilon"},
            "adagrad": {"epsilon"},
            "adadelta": {"rho", "epsilon"},
        }[self.name]
        foreign = [
            field
            for field in ("momentum", "betas", "rho", "epsilon")
            if getattr(self, field) is not None and field not in has
        ]
        if foreign:
            raise ValueError(f"{self.name} has no {', '.join(foreign)}; it has: {', '.join(sorted(has))}, weight_decay")
        if self.name == "nesterov" and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class LearningRate(Model):
    """The learning rate over the training. The policies are those of Caffe, with percents of the whole training."""

    base: Annotated[float, Field(gt=0)] = 0.01
    policy: Literal["fixed", "step", "multistep", "exp", "inv", "poly", "sigmoid", "cosine", "linear"] = "step"
    step: Percent = 33.0
    """step: the rate is multiplied by `gamma` after every so many percent; sigmoid: where the middle of the fall is."""
    steps: tuple[Percent, ...] = (50.0, 85.0)
    """multistep: multiplied by `gamma` at these percents."""
    gamma: Annotated[float, Field(gt=0)] = 0.1
    """step, multistep: factor; exp: base γ^percent; inv, sigmoid: slope per percent."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """inv, poly: exponent."""
    final: Annotated[float, Field(ge=0)] = 0.0
    """cosine, linear: the rate at the end."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Rise linearly from zero during so many epochs."""
    scale: Literal["none", "linear", "sqrt"] = "none"
    """Multiply `base` by the number of ranks (linear) or its root, as the global batch grows with the ranks."""

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if not steps or sorted(set(steps)) != list(steps):
            raise ValueError("must be one or more rising percents, for example [50, 85]")
        return steps


class Training(Model):
    """How long, in what portions, and what is kept."""

    epochs: Positive = 30
    batch_size: Positive = 32
    """Pictures per rank and step; the global batch is this times ranks times `accumulate`."""
    accumulate: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Sum the gradients of so many portions before a step: a large batch in little memory."""
    validation_interval: Annotated[float, Field(gt=0)] = 1.0
    """Epochs between validations; 0.5 is twice an epoch."""
    snapshot_interval: Annotated[float, Field(gt=0)] = 1.0
    """Epochs between checkpoints."""
    keep_every: Positive | None = None
    """Keep every N-th checkpoint for good, besides the last two and the best."""
    seed: int = 1
    """Of weights, order and augmentation."""


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
    task: Literal["classification"] = "classification"
    data: Data
    augment: Augment = Augment()
    network: Network = Network()
    optimizer: Optimizer = Optimizer()
    learning_rate: LearningRate = LearningRate()
    training: Training = Training()
    job: Job = Job()
    sweep: Sweep | None = None
    """Many trainings that differ in some settings."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        crop = self.augment.crop
        if crop is not None and crop > min(self.data.width, self.data.height):
            raise ValueError(f"augment.crop is {crop}, larger than the picture of {self.data.width}×{self.data.height}")
        smallest = SMALLEST_INPUT[self.network.name]
        if min(self.input_size) < smallest:
            raise ValueError(
                f"{self.network.name} needs pictures of at least {smallest}×{smallest}; "
                f"data and augment.crop give {self.input_size[1]}×{self.input_size[0]}"
            )
        return self

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the network sees, after the crop."""
        crop = self.augment.crop
        return (crop, crop) if crop is not None else (self.data.height, self.data.width)
