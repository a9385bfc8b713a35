"""A sweep: one spec tried with many settings. What a user may ask, and which settings that makes.

Everything here is pure: the same sweep always gives the same members in the same order.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import random
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, model_validator

from dlhpc.errors import UserError
from dlhpc.spec.base import Model

MOST_MEMBERS = 100_000


def _no_mapping(value: Any) -> Any:
    if isinstance(value, dict):
        raise ValueError("must be a value, not `key: value` lines; write the keys in full, `network.name`")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not `{value}`")
    return value


Value = Annotated[Any, AfterValidator(_no_mapping)]
Number = Annotated[Any, AfterValidator(_number)]
Settings = dict[str, Value]
"""One member's settings: full dotted key → value."""

ALIASES = {"lr": "learning_rate.base"}
"""Short names beyond a key's own last part."""

SAME_SHAPE = ("environment", "crash_retries", "max_attempts")
"""The keys of ``job`` that may differ between members: they change nothing of what the batch system is asked for."""


class Range(Model):
    """Values drawn evenly between two ends; whole numbers if both ends are."""

    low: Number
    high: Number
    log: bool = False
    """Draw evenly on a logarithmic scale, as suits learning rates."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low}, not below high with {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; a logarithmic scale begins above zero")
        return self

    def draw(self, source: random.Random) -> int | float:
        """One value; real numbers are rounded to six digits, which are enough to repeat a training by hand."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        if not self.log:
            return source.randint(self.low, self.high) if whole else _six(source.uniform(self.low, self.high))
        drawn = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        return min(max(round(drawn), self.low), self.high) if whole else _six(drawn)


Values = Annotated[list[Value], Field(min_length=1)]
Choice = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Values, Tag("choices")],
    Discriminator(lambda value: "choices" if isinstance(value, list) else "range"),
]
Over = Annotated[dict[str, Choice], Field(min_length=1)]
Grid = Annotated[dict[str, Values], Field(min_length=1)]
Listed = Annotated[list[Annotated[Settings, Field(min_length=1)]], Field(min_length=1)]


class Random(Model):
    """Settings drawn at random; a larger `count` begins with the same members."""

    count: Annotated[int, Field(ge=1, le=MOST_MEMBERS)]
    """How many members."""
    seed: int = 1
    over: Over
    """For each key its range, or a list to choose from."""


class Genetic(Model):
    """A genetic algorithm: every generation is one array of jobs, and the best so far have children."""

    population: Annotated[int, Field(ge=2, le=1000)] = 12
    """Members of each generation."""
    generations: Annotated[int, Field(ge=1, le=1000)] = 8
    over: Over
    """For each key its range, or a list to choose from."""
    seed: int = 1
    crossover: Annotated[float, Field(ge=0, le=1)] = 0.9
    """How likely a child has two parents rather than one."""
    mutation: Annotated[float, Field(ge=0, le=1)] | None = None
    """How likely each setting of a child is changed at random; 1 / number of settings if absent."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many generations without a better member."""

    @property
    def size(self) -> int:
        """Members of a generation."""
        return self.population

    @property
    def total(self) -> int:
        """Members at most."""
        return self.population * self.generations


class Tpe(Model):
    """A tree-structured Parzen estimator (Bergstra et al. 2011) by Optuna: settings are drawn where those that did
    well are dense."""

    trials: Annotated[int, Field(ge=2, le=MOST_MEMBERS)] = 48
    """Members in all."""
    batch: Annotated[int, Field(ge=1, le=1000)] = 8
    """So many at a time, as one array of jobs; fewer learn more from each other, more are over sooner."""
    over: Over
    """For each key its range, or a list to choose from."""
    seed: int = 1
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many batches without a better member."""

    @property
    def size(self) -> int:
        """Members of a batch."""
        return self.batch

    @property
    def total(self) -> int:
        """Members at most."""
        return self.trials


Search = Genetic | Tpe
"""What decides on members by how earlier ones did."""


class Sweep(Model):
    """One spec with many settings. Keys are those of the spec, `training.batch_size`, or a last part that only one of
    them has, `batch_size`."""

    grid: Grid | None = None
    """Every combination of these values."""
    list: Listed | None = None
    """These settings, one member each."""
    random: Random | None = None
    """Settings drawn at random."""
    tpe: Tpe | None = None
    """Settings drawn by how earlier members did."""
    genetic: Genetic | None = None
    """Settings bred from those of the best members."""
    cap: Annotated[int, Field(ge=1)] | None = None
    """At most so many members in the queue at a time, waiting and running; the queue's limit if absent."""
    running: Annotated[int, Field(ge=1)] | None = None
    """At most so many members run at a time."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) > 1:
            kinds = ", ".join(f"`{name}`" for name in KINDS)
            raise ValueError(f"give one of {kinds} (given: {', '.join(given)})")
        return self

    @property
    def kind(self) -> str | None:
        """Which of the five it is; None if it names no settings."""
        return next((name for name in KINDS if getattr(self, name) is not None), None)

    @property
    def search(self) -> Search | None:
        """What decides on further members, for the kinds that do."""
        return self.tpe or self.genetic


KINDS = ("grid", "list", "random", "tpe", "genetic")


def _six(value: float) -> float:
    return float(f"{value:.6g}")


# --- Keys -------------------------------------------------------------------------------------------------------


def all_keys(model: type[BaseModel], above: str = "") -> list[str]:
    """The dotted names of everything in ``model`` that holds a value and no further keys; without a sweep's own."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        if name == "sweep":
            continue
        inner = _model_of(field.annotation)
        names += [f"{above}{name}"] if inner is None else all_keys(inner, f"{above}{name}.")
    return names


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return next((found for part in typing.get_args(annotation) if (found := _model_of(part))), None)
    return None


def full_key(key: str, known: Sequence[str]) -> str:
    """The key that a person means by a last part of it; :class:`UserError` for one that cannot be swept."""
    named = ALIASES.get(key, key)
    ends = [named] if named in known else [full for full in known if full.endswith(f".{named}")]
    # What has a name is meant by its own name: `network=lenet,alexnet`.
    ends = ends or [full for full in known if full == f"{named}.name"]
    if len(ends) > 1:
        raise UserError(f"`{key}` could be any of {', '.join(ends)}", remedy="Write the whole key.")
    if not ends:
        words = {full.rpartition(".")[2]: full for full in known} | {full: full for full in known}
        near = difflib.get_close_matches(key, words, n=1, cutoff=0.5)
        remedy = f"Did you mean `{words[near[0]]}`? " if near else ""
        raise UserError(f"the spec has no key `{key}`", remedy=f"{remedy}`dlhpc init --schema` prints all keys.")
    _refuse(key, ends[0])
    return ends[0]


def _refuse(key: str, full: str) -> None:
    group, _, last = full.partition(".")
    if full in ("name", "notes", "task"):
        raise UserError(f"`{key}` is the same for all members of a sweep", remedy="Submit another spec for another.")
    if group == "job" and last not in SAME_SHAPE:
        raise UserError(
            f"`{key}` cannot be swept: members of a sweep are one array of jobs, and all jobs of an array ask for the "
            "same",
            remedy=f"Submit the spec once for each, with --set {full}=….",
        )


# --- Members ----------------------------------------------------------------------------------------------------


def count_members(sweep: Sweep) -> int:
    """How many members at most; 0 for a sweep that names no settings."""
    if sweep.search is not None:
        return sweep.search.total
    if sweep.list is not None:
        return len(sweep.list)
    if sweep.random is not None:
        return sweep.random.count
    return math.prod(len(values) for values in sweep.grid.values()) if sweep.grid else 0


def expand(sweep: Sweep, known: Sequence[str]) -> list[Settings]:
    """The settings of all members, keys in full; the last key of a grid changes fastest. Of a search those of the first
    generation, which are drawn at random.

    Raises :class:`UserError` for keys that mean nothing or cannot be swept, and for more than
    :data:`MOST_MEMBERS` members.
    """
    number = count_members(sweep)
    if number > MOST_MEMBERS:
        raise UserError(f"the sweep has {number} members; at most {MOST_MEMBERS} are possible", remedy="Try fewer.")
    return list(_members(sweep, known))


def _members(sweep: Sweep, known: Sequence[str]) -> Iterator[Settings]:
    if sweep.grid:
        keys = full_keys(sweep.grid, known)
        for key, values in zip(sweep.grid, sweep.grid.values()):
            _refuse_twice(key, values)
        for combination in itertools.product(*sweep.grid.values()):
            yield dict(zip(keys, combination))
    elif sweep.list is not None:
        for settings in sweep.list:
            yield dict(zip(full_keys(settings, known), settings.values()))
    elif sweep.random is not None:
        yield from _drawn(sweep.random.over, sweep.random.seed, sweep.random.count, known)
    elif (search := sweep.search) is not None:
        yield from _drawn(search.over, search.seed, min(search.size, search.total), known)


def _drawn(over: dict[str, Choice], seed: int, count: int, known: Sequence[str]) -> Iterator[Settings]:
    source = random.Random(seed)
    choices = list(zip(full_keys(over, known), over.values()))
    for _ in range(count):
        yield {key: draw(choice, source) for key, choice in choices}


def draw(choice: Choice, source: random.Random) -> Value:
    """A value of a range, or one of a list."""
    return choice.draw(source) if isinstance(choice, Range) else source.choice(choice)


def full_keys(keys: Iterable[str], known: Sequence[str]) -> list[str]:
    """As :func:`full_key` for several, which must mean different things."""
    given: dict[str, str] = {}
    for key in keys:
        full = full_key(key, known)
        if full in given:
            raise UserError(f"`{given[full]}` and `{key}` are the same key", remedy="Keep one of the two.")
        given[full] = key
    return list(given)


def _refuse_twice(key: str, values: Sequence[Value]) -> None:
    seen: set[str] = set()
    for value in values:
        text = json.dumps(value)
        if text in seen:
            raise UserError(f"`{key}` has the value {text} twice", remedy="Each value makes members of its own.")
        seen.add(text)


def read_axes(given: Sequence[str]) -> dict[str, list[Value]]:
    """``KEY=VALUE,VALUE,…`` as people give them to ``--sweep``: values are read as a YAML list, brackets left out."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    axes: dict[str, list[Value]] = {}
    for text in given:
        key, equals, listed = text.partition("=")
        key = key.strip()
        if not equals or not key or not listed.strip():
            raise UserError(
                f"`--sweep {text}` has no `key=value,value`", remedy="Write for example --sweep lr=0.1,0.01"
            )
        if key in axes:
            raise UserError(f"`--sweep {key}` is given twice", remedy=f"Give all its values at once: {key}=…,…")
        try:
            values = YAML(typ="safe", pure=True).load(f"[{listed}\n]")
        except YAMLError as error:
            raise UserError(f"`--sweep {text}`: the values are not valid YAML", remedy="Quote them.") from error
        if not isinstance(values, list) or not values:
            raise UserError(f"`--sweep {text}` has no values", remedy="Write for example --sweep lr=0.1,0.01")
        axes[key] = values
    return axes


def shown(settings: Settings) -> str:
    """A member's settings in one line: ``learning_rate.base=0.1 training.batch_size=32``."""
    return " ".join(f"{key}={_plain(value)}" for key, value in settings.items())


def _plain(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
