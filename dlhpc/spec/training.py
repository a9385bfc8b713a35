"""What a user says about training: optimiser, learning rate, portions, precision, and how ranks work together."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from dlhpc.spec.base import Model

Smoothing = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Percent = Annotated[float, Field(gt=0, lt=100)]


class Optimizer(Model):
    """How weights move. Settings that the chosen optimiser does not have must stay unset."""

    name: Literal["sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta", "lars", "lamb"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """sgd, nesterov, lars (0.9 if unset), rmsprop (0 if unset)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0001
    betas: tuple[Smoothing, Smoothing] | None = None
    """adam, adamw, lamb (0.9, 0.999 if unset)."""
    rho: Smoothing | None = None
    """rmsprop's smoothing α (0.99 if unset), adadelta's ρ (0.9 if unset)."""
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """adam, adamw, rmsprop, adagrad, adadelta, lamb; PyTorch's default if unset."""
    trust: Annotated[float, Field(gt=0)] | None = None
    """lars: the trust coefficient (0.001 if unset)."""

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
            "lars": {"momentum", "trust"},
            "lamb": {"betas", "epsilon"},
        }[self.name]
        foreign = [
            field
            for field in ("momentum", "betas", "rho", "epsilon", "trust")
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
    factors: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Discriminative rates: beginning of parameter names → factor on the rate, for example {features: 0.1} for layers
    that are trained already. The longest fitting beginning counts."""
    scale: Literal["none", "linear", "sqrt"] = "none"
    """Multiply `base` by the number of ranks (linear) or its root, as the global batch grows with the ranks."""

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if not steps or sorted(set(steps)) != list(steps):
            raise ValueError("must be one or more rising percents, for example [50, 85]")
        return steps


class EarlyStopping(Model):
    """Stop when validation gets no better."""

    patience: Annotated[float, Field(gt=0)]
    """Epochs without improvement before training ends."""
    metric: str | None = None
    """What must improve, as the curves call it: val_loss, val_accuracy, …; that of `training.best` if absent."""
    min_change: Annotated[float, Field(ge=0)] = 0.0
    """A smaller improvement does not count."""


class Training(Model):
    """How long, in what portions, and what is kept."""

    epochs: Positive = 30
    batch_size: Positive = 32
    """Samples per rank and step; the global batch is this times ranks times `accumulate`."""
    accumulate: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Sum the gradients of so many portions before a step: a large batch in little memory. When memory does not
    suffice, the batch is halved and this doubled, so the result stays the same."""
    validation_interval: Annotated[float, Field(gt=0)] = 1.0
    """Epochs between validations; 0.5 is twice an epoch."""
    snapshot_interval: Annotated[float, Field(gt=0)] = 1.0
    """Epochs between checkpoints."""
    keep_every: Positive | None = None
    """Keep every N-th checkpoint for good, besides the last two and the best."""
    best: str | None = None
    """The measure that says which checkpoint is the best, as the curves call it; if absent val_accuracy
    (classification), val_ap50 (detection) or val_rmse (regression)."""
    early_stopping: EarlyStopping | None = None
    seed: int = 1
    """Of weights, order and augmentation."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Numbers that layers compute with; weights stay fp32. `auto` tries them on the node at the start, together with
    `compile: auto`, and takes the fastest; all attempts of a run keep it."""
    compile: Literal["no", "yes", "auto"] = "no"
    """Let torch.compile make one program of the network; takes minutes at the start and needs a C++ compiler."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Scale gradients down so that their norm is at most this."""
    ema: Smoothing | None = None
    """Measure and save a moving average of the weights, which this much of stays after each step; 0.999 is usual."""
    sync_batch_norm: bool = False
    """Batch normalisation over all ranks' pictures; for batches of a few pictures per rank."""
    label_smoothing: Smoothing = 0.0
    """Classification: this part of the truth is spread over all classes."""
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = "none"
    """Classification: how much mistakes in each class count. `balanced`: the rarer, the more; or class → weight, 1 for
    those not named."""
    loss: Literal["mse", "mae", "huber"] = "mse"
    """Regression: squared, absolute or Huber error of the standardised targets."""


class Distributed(Model):
    """How ranks sum their gradients."""

    strategy: Literal["auto", "horovod", "ddp"] = "auto"
    """`horovod` (over MPI, NCCL or Gloo) or `ddp` (torch.distributed, over NCCL or Gloo); `auto` is Horovod where the
    environment has it."""
    compression: Literal["none", "fp16", "bf16"] = "none"
    """Send gradients in half the bytes; for slow networks."""
    adasum: bool = False
    """Horovod: combine gradients by Adasum instead of their sum (Maleki et al. 2020)."""
    autotune: bool = False
    """Horovod: let it try fusion and cycle times; the last bits of results then vary."""
    timeline: bool = False
    """Horovod: write RUN/timeline.json, to be opened in a Chromium browser at chrome://tracing."""
    bucket_mb: Annotated[float, Field(gt=0)] = 25.0
    """Gradients are sent in portions of this many MiB while the backward pass goes on."""
    fusion_mb: Annotated[float, Field(ge=0)] = 0.0
    """Horovod's own fusion buffer. Above 0 the last bits of results vary; our buckets make it needless."""
    cycle_ms: Annotated[float, Field(gt=0)] = 0.5
    """Horovod: how often its thread looks for gradients to send."""
