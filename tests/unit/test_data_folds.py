"""Sharing samples out: shares, folds and groups that stay together, decided by the seed and the names alone."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlhpc.data.catalog import make_catalog
from dlhpc.data.splits import needed, share_out
from dlhpc.errors import DataError, UserError
from dlhpc.spec.models import Data, Split


def three(train: int, val: int, unseen: int, **more: int) -> Split:
    total = train + val + unseen
    return Split(train=train / total, val=val / total, unseen=unseen / total, **more)


splits = st.builds(three, st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), seed=st.integers(0, 99))


@given(st.sets(st.text(max_size=6), min_size=3, max_size=60), splits, st.randoms())
def test_nobody_is_lost_and_the_order_of_names_does_not_matter(
    names: set[str], split: Split, chance: random.Random
) -> None:
    one = sorted(names)
    other = chance.sample(one, len(one))
    shared = share_out(one, split)
    again = share_out(other, split)
    assert sorted(at for part in shared.values() for at in part) == list(range(len(one)))
    assert {which: {one[at] for at in part} for which, part in shared.items()} == {
        which: {other[at] for at in part} for which, part in again.items()
    }
    assert shared["train"]
    assert shared["val"]
    assert bool(shared["unseen"]) == (split.unseen > 0)


@settings(max_examples=60)
@given(st.integers(2, 12), st.integers(0, 40), st.integers(0, 3), st.booleans())
def test_folds_are_equal_parts_that_measure_everything_once(folds: int, more: int, unseen: int, grouped: bool) -> None:
    count = folds + more + 1
    names = [f"p{number}" for number in range(count)]
    groups = (
        [name if more < 20 else f"g{number % (folds + 1)}" for number, name in enumerate(names)] if grouped else None
    )
    measured: Counter[int] = Counter()
    sizes, kept = [], set()
    for fold in range(1, folds + 1):
        shared = share_out(names, three(6, 3, unseen, folds=folds, fold=fold), groups=groups)
        measured.update(shared["val"])
        sizes.append(len(shared["val"]))
        kept.add(tuple(shared["unseen"]))
        assert not set(shared["train"]) & set(shared["val"])
        assert len(shared["train"]) + len(shared["val"]) + len(shared["unseen"]) == count
    assert set(measured.values()) == {1}
    assert len(kept) == 1, "the same are kept unseen in every fold"
    if groups is None:
        assert max(sizes) - min(sizes) <= 1


def test_larger_folds_are_not_always_the_first_of_every_class() -> None:
    """Eleven pictures in ten folds: somebody gets two, but not the same fold for each of many classes."""
    doubles = set()
    for name in "abcdefgh":
        for fold in range(1, 11):
            names = [str(n) for n in range(11)]
            if len(share_out(names, Split(folds=10, fold=fold), name=name)["val"]) == 2:
                doubles.add(fold)
    assert len(doubles) > 1


@given(st.lists(st.integers(1, 30), min_size=3, max_size=25), splits)
def test_groups_stay_together(sizes: list[int], split: Split) -> None:
    groups = [f"drive {number}" for number, size in enumerate(sizes) for _ in range(size)]
    shared = share_out([f"frame {number}" for number in range(len(groups))], split, groups=groups)
    where = {which: {groups[at] for at in part} for which, part in shared.items()}
    assert sum(map(len, where.values())) == len(sizes)
    assert sum(map(len, shared.values())) == len(groups)
    assert all(where[which] for which in ("train", "val"))


def test_shares_hold_as_well_as_groups_allow() -> None:
    groups = [f"g{number}" for number in range(40) for _ in range(1 + number % 7)]
    shared = share_out([str(number) for number in range(len(groups))], three(6, 2, 2), groups=groups)
    shares = {which: len(part) / len(groups) for which, part in shared.items()}
    assert shares == pytest.approx({"train": 0.6, "val": 0.2, "unseen": 0.2}, abs=0.03)


def test_too_few_are_told() -> None:
    assert needed(Split()) == 2
    assert needed(three(1, 1, 1, folds=5)) == 6
    with pytest.raises(DataError, match="4 samples cannot be shared out to 5 folds"):
        share_out(list("abcd"), Split(folds=5))
    with pytest.raises(DataError, match="1 groups of samples that stay together cannot"):
        share_out(list("abcd"), Split(), groups=["one"] * 4)


def faces(folder: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").touch()
    return folder


def folds_of(data: Data, base: Path) -> list[set[str]]:
    folds = data.split.folds or 0
    chosen = [data.model_copy(update={"split": data.split.model_copy(update={"fold": n + 1})}) for n in range(folds)]
    return [{sample.path for sample in make_catalog(one, base).splits["val"]} for one in chosen]


def test_every_class_is_in_every_fold(tmp_path: Path) -> None:
    faces(tmp_path / "faces", anna=11, ben=7)
    data = Data.model_validate({"folder": "faces", "split": {"folds": 5}})
    folds = folds_of(data, tmp_path)
    assert sum(map(len, folds)) == len(set.union(*folds)) == 18
    for fold in folds:
        assert sum("anna" in path for path in fold) in (2, 3)
        assert sum("ben" in path for path in fold) in (1, 2)


def test_a_class_smaller_than_the_folds_is_told(tmp_path: Path) -> None:
    faces(tmp_path / "faces", anna=11, ben=4)
    data = Data.model_validate({"folder": "faces", "split": {"folds": 5}})
    with pytest.raises(DataError, match="`ben` has 4 pictures; 5 are needed: at least one each for 5 folds"):
        make_catalog(data, tmp_path)


def test_folds_need_one_source(tmp_path: Path) -> None:
    data = Data.model_validate({"folders": {"train": "a", "val": "b"}, "split": {"folds": 5}})
    with pytest.raises(UserError, match="val is given apart"):
        make_catalog(data, tmp_path)
