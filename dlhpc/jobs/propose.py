"""Which settings a search tries next, by how those before did. Pure: the same results give the same proposals."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlhpc.errors import UserError
from dlhpc.spec.sweep import Choice, Genetic, Range, Search, Settings, Tpe, draw, full_keys

TOURNAMENT = 3
"""Members of whom the best becomes a parent."""

SPREAD = 0.15
"""σ of a mutation, on a scale where the whole range is 1."""

BLEND = 0.3
"""A child's value lies between its parents' or so far outside, as a part of their distance (BLX-α of Eshelman and
Schaffer 1993)."""


@dataclass(frozen=True)
class Tried:
    """A member that is over."""

    settings: Settings
    """Keys in full."""
    merit: float | None
    """The higher, the better; None if it failed."""


def propose(search: Search, tried: Sequence[Tried], generation: int, known: Sequence[str]) -> list[Settings]:
    """The settings of ``generation`` (from 1; the first, 0, is drawn at random); empty when the search is over.

    ``known`` are the keys of the spec. Raises :class:`UserError` if Optuna is needed and not installed.
    """
    count = min(search.size, search.total - len(tried))
    if count <= 0:
        return []
    over = dict(zip(full_keys(search.over, known), search.over.values()))
    if isinstance(search, Genetic):
        return _children(search, over, tried, generation, count)
    return _by_optuna(search, over, tried, generation, count)


def without_gain(search: Search, tried: Sequence[Tried]) -> int:
    """Generations since the best so far was found."""
    best, found = -math.inf, 0
    for index, one in enumerate(tried):
        if one.merit is not None and one.merit > best:
            best, found = one.merit, index // search.size
    return (len(tried) - 1) // search.size - found if tried else 0


# --- Genetic ----------------------------------------------------------------------------------------------------


def _children(
    search: Genetic, over: dict[str, Choice], tried: Sequence[Tried], generation: int, count: int
) -> list[Settings]:
    """Children of the best members so far, none of which is tried twice as long as others are to be had."""
    source = random.Random(f"{search.seed}/{generation}")
    ranked = sorted((one for one in tried if one.merit is not None), key=lambda one: -(one.merit or 0.0))
    parents = [one.settings for one in ranked[: search.population]]
    seen = {_text(one.settings) for one in tried}
    children: list[Settings] = []
    for _ in range(count):
        for attempt in range(50):
            # What was tried already is passed over; where hardly anything is left, chance finds it.
            bred = len(parents) >= 2 and attempt < 25
            child = (
                _child(search, over, parents, source) if bred else {key: draw(one, source) for key, one in over.items()}
            )
            if _text(child) not in seen:
                break
        seen.add(_text(child))
        children.append(child)
    return children


def _child(search: Genetic, over: dict[str, Choice], parents: list[Settings], source: random.Random) -> Settings:
    first, second = _chosen(parents, source), _chosen(parents, source)
    both = source.random() < search.crossover
    often = 1 / len(over) if search.mutation is None else search.mutation
    child: Settings = {}
    for key, choice in over.items():
        if isinstance(choice, Range):
            gene, other = to_unit(choice, first[key]), to_unit(choice, second[key])
            if both:
                low, high = sorted((gene, other))
                reach = BLEND * (high - low)
                gene = source.uniform(low - reach, high + reach)
            if source.random() < often:
                gene += source.gauss(0, SPREAD)
            child[key] = from_unit(choice, gene)
        else:
            value = source.choice((first, second))[key] if both else first[key]
            child[key] = source.choice(choice) if source.random() < often else value
    return child


def _chosen(ranked: list[Settings], source: random.Random) -> Settings:
    """The best of some, drawn from the best first."""
    return ranked[min(source.randrange(len(ranked)) for _ in range(TOURNAMENT))]


def to_unit(choice: Range, value: float) -> float:
    """Where ``value`` lies in its range, from 0 to 1."""
    low, high = (math.log(end) if choice.log else float(end) for end in (choice.low, choice.high))
    return ((math.log(value) if choice.log else value) - low) / (high - low)


def from_unit(choice: Range, gene: float) -> int | float:
    """The reverse; what lies outside is mirrored at the end."""
    gene = abs(gene) % 2
    gene = 2 - gene if gene > 1 else gene
    low, high = (math.log(end) if choice.log else float(end) for end in (choice.low, choice.high))
    value = low + gene * (high - low)
    value = math.exp(value) if choice.log else value
    if isinstance(choice.low, int) and isinstance(choice.high, int):
        return int(min(max(round(value), choice.low), choice.high))
    return float(min(max(float(f"{value:.6g}"), choice.low), choice.high))


def _text(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


# --- Parzen estimator -------------------------------------------------------------------------------------------


def _by_optuna(
    search: Tpe, over: dict[str, Choice], tried: Sequence[Tried], generation: int, count: int
) -> list[Settings]:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "`sweep.tpe` needs the package optuna, which is not installed here",
            remedy="Install it (`pip install 'dlhpc[search]'`), or use `sweep.genetic`, which needs nothing.",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    scales: dict[str, Any] = {key: _scale(optuna.distributions, choice) for key, choice in over.items()}
    # Several are asked for at once: the constant liar keeps them apart.
    sampler = optuna.samplers.TPESampler(
        seed=search.seed * 1_000_003 + generation, constant_liar=True, n_startup_trials=min(10, search.size)
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for one in tried:
        values = {key: _to_optuna(choice, one.settings[key]) for key, choice in over.items()}
        state = optuna.trial.TrialState.FAIL if one.merit is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(optuna.trial.create_trial(state=state, params=values, distributions=scales, value=one.merit))
    asked = [study.ask(scales).params for _ in range(count)]
    return [{key: _from_optuna(choice, params[key]) for key, choice in over.items()} for params in asked]


def _scale(distributions: Any, choice: Choice) -> Any:
    if not isinstance(choice, Range):
        return distributions.CategoricalDistribution(list(range(len(choice))))  # values may be of any kind
    if isinstance(choice.low, int) and isinstance(choice.high, int):
        return distributions.IntDistribution(choice.low, choice.high, log=choice.log)
    return distributions.FloatDistribution(choice.low, choice.high, log=choice.log)


def _to_optuna(choice: Choice, value: Any) -> Any:
    return value if isinstance(choice, Range) else choice.index(value)


def _from_optuna(choice: Choice, value: Any) -> Any:
    if not isinstance(choice, Range):
        return choice[value]
    return value if isinstance(value, int) else min(max(float(f"{value:.6g}"), choice.low), choice.high)
