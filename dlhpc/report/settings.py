"""The settings and surroundings of a run in the short words of the report's last section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlhpc.report.collect import Facts
from dlhpc.runs.plan import Plan


@dataclass(frozen=True)
class Settings:
    """One line of text each; an empty one is not shown."""

    pictures: str
    augment: str
    optimizer: str
    learning_rate: str
    batch: str
    seed: str
    shape: str
    collective: str
    versions: str
    environment: str
    dataset: str


def settings_of(facts: Facts) -> Settings:
    """What was asked for and what it ran with, from the plan and the provenance of the latest attempt."""
    plan, spec = facts.plan, facts.plan.spec
    data, training = _section(spec, "data"), _section(spec, "training")
    latest = _latest(facts.provenance)
    return Settings(
        pictures=_pictures(data),
        augment=_augment(_section(spec, "augment")),
        optimizer=_named(_section(spec, "optimizer")),
        learning_rate=_rate(_section(spec, "learning_rate"), plan),
        batch=_batch(training, plan),
        seed=f"{training.get('seed', '–')} (training), {_section(data, 'split').get('seed', '–')} (split)",
        shape=_shape(plan),
        collective=str(latest.get("collective") or plan.launcher),
        versions=", ".join(f"{name} {version}" for name, version in _section(latest, "versions").items() if version),
        environment=_environment(facts.provenance, plan),
        dataset=_dataset(facts.provenance, plan),
    )


def _section(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _latest(provenance: dict[str, Any]) -> dict[str, Any]:
    attempts = provenance.get("attempts")
    found = [one for one in attempts if isinstance(one, dict)] if isinstance(attempts, list) else []
    return found[-1] if found else {}


def _pictures(data: dict[str, Any]) -> str:
    normalize = data.get("normalize")
    tail = "" if normalize in (None, "none") else f", mean {normalize} subtracted"
    return f"{data.get('width')}×{data.get('height')}, color {data.get('color')}, {data.get('resize')}{tail}"


def _augment(augment: dict[str, Any]) -> str:
    words = []
    if augment.get("flip_horizontal"):
        words.append("horizontal flips")
    if augment.get("flip_vertical"):
        words.append("vertical flips")
    if augment.get("shift_pixels"):
        words.append(f"shifts up to {augment['shift_pixels']} px")
    if augment.get("crop"):
        words.append(f"random crop of {augment['crop']} px")
    return ", ".join(words) or "none"


def _named(optimizer: dict[str, Any]) -> str:
    rest = [
        f"{key.replace('_', ' ')} {value}" for key, value in optimizer.items() if key != "name" and value is not None
    ]
    return ", ".join([str(optimizer.get("name", "")), *rest])


def _rate(rate: dict[str, Any], plan: Plan) -> str:
    policy = rate.get("policy")
    own = {
        "step": ("step", "gamma"),
        "multistep": ("steps", "gamma"),
        "exp": ("gamma",),
        "inv": ("gamma", "power"),
        "poly": ("power",),
        "sigmoid": ("step", "gamma"),
        "cosine": ("final",),
        "linear": ("final",),
    }.get(str(policy), ())
    words = [f"{key} {rate[key]}" for key in own if rate.get(key) is not None]
    if rate.get("warmup_epochs"):
        words.append(f"warm-up {rate['warmup_epochs']:g} epochs")
    return ", ".join([f"{plan.base_rate:g}, {policy}", *words])


def _batch(training: dict[str, Any], plan: Plan) -> str:
    accumulate = training.get("accumulate", 1)
    portions = f" × {accumulate} portions" if accumulate != 1 else ""
    return f"{plan.global_batch} pictures a step ({training.get('batch_size')} × {plan.ranks} ranks{portions})"


def _shape(plan: Plan) -> str:
    def count(number: int, word: str) -> str:
        return f"{number} {word}{'' if number == 1 else 's'}"

    parts = [
        count(plan.nodes, "node"),
        f"{count(plan.ranks_per_node, 'rank')} each",
        f"{count(plan.cores_per_rank, 'core')} a rank",
        f"{count(plan.gpus_per_rank, 'GPU')} a rank" if plan.gpus_per_rank else "no GPU",
    ]
    return ", ".join(parts)


def _environment(provenance: dict[str, Any], plan: Plan) -> str:
    recipe = _section(provenance, "environment").get("recipe_hash")
    return f"{plan.environment}{f', recipe {str(recipe)[:12]}' if recipe else ''} ({plan.environment_prefix})"


def _dataset(provenance: dict[str, Any], plan: Plan) -> str:
    dataset = _section(provenance, "dataset")
    fingerprint, skipped = dataset.get("fingerprint"), dataset.get("skipped")
    words = [f"fingerprint {str(fingerprint)[:16]}" if fingerprint else f"key {plan.dataset.key[:16]}"]
    number = len(skipped) if isinstance(skipped, list) else skipped
    if isinstance(number, int) and number:
        words.append(f"{number} broken pictures skipped")
    return ", ".join(words)
