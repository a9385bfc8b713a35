"""What each rank sees of an epoch: every picture once, the same for any number of ranks, the same after a resume."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dlhpc.data.batches import (
    TrainingBatches,
    copy_window,
    epoch_shares,
    evaluation_batches,
    steps_per_epoch,
)
from dlhpc.data.packed import Packed, open_packed
from dlhpc.spec.models import Augment
from tests import training

TRAIN, VAL, HEIGHT, WIDTH = 23, 7, 9, 8


def write_packed(folder: Path, pictures: NDArray[Any]) -> None:
    """A packed dataset of given pictures, the first TRAIN for training and the rest for validation."""
    labels = np.arange(len(pictures)) % 3
    splits = {"train": (pictures[:TRAIN], labels[:TRAIN]), "val": (pictures[TRAIN:], labels[TRAIN:])}
    training.write_packed(folder, splits, ["a", "b", "c"], per_shard=10).close()


@pytest.fixture(params=["uint8", "uint16"])
def pictures(request: pytest.FixtureRequest) -> NDArray[Any]:
    high = np.iinfo(request.param).max
    shape = (TRAIN + VAL, 2, HEIGHT, WIDTH)
    return np.random.default_rng(0).integers(0, high, shape, dtype=request.param, endpoint=True)


@pytest.fixture
def packed(tmp_path: Path, pictures: NDArray[Any]) -> Iterator[Packed]:
    write_packed(tmp_path / "set", pictures)
    with open_packed(tmp_path / "set") as opened:
        yield opened


@given(
    count=st.integers(1, 300), ranks=st.integers(1, 9), accumulate=st.integers(1, 4), batch=st.integers(1, 40),
    seed=st.integers(-5, 2**70), epoch=st.integers(0, 1000),
)  # fmt: skip
def test_every_picture_is_seen_exactly_once_an_epoch(
    count: int, ranks: int, accumulate: int, batch: int, seed: int, epoch: int
) -> None:
    steps = steps_per_epoch(count, batch)
    shares = [epoch_shares(count, seed, epoch, steps, rank, ranks, accumulate) for rank in range(ranks)]
    assert all(len(share) == steps and all(len(step) == accumulate for step in share) for share in shares)
    sizes = [sum(len(portion) for share in shares for portion in share[step]) for step in range(steps)]
    assert max(sizes) - min(sizes) <= 1
    assert 1 <= min(sizes) <= max(sizes) <= batch
    seen = np.concatenate([portion for share in shares for step in share for portion in step])
    assert np.array_equal(np.sort(seen), np.arange(count))


@given(ranks=st.integers(1, 9), epoch=st.integers(0, 50))
def test_a_global_batch_holds_the_same_pictures_for_any_number_of_ranks(ranks: int, epoch: int) -> None:
    alone = epoch_shares(100, 7, epoch, 9, 0, 1)
    together = [epoch_shares(100, 7, epoch, 9, rank, ranks, 2) for rank in range(ranks)]
    for step in range(9):
        got = np.concatenate([portion for share in together for portion in share[step]])
        assert set(got) == set(alone[step][0])


def test_order_depends_on_seed_and_epoch_and_never_changes() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate([step[0] for step in epoch_shares(8, seed, epoch, 2, 0, 1)]).tolist()

    # Written down so that a change of the generator, which would change every resumed run, is noticed.
    assert order(1, 0) == ORDER_OF_SEED_1
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


ORDER_OF_SEED_1 = [2, 0, 1, 4, 5, 6, 7, 3]


AUGMENTS = [
    Augment(),
    Augment(flip_horizontal=True),
    Augment(flip_vertical=True),
    Augment(shift_pixels=3),
    Augment(crop=5),
    Augment(crop=6, shift_pixels=20, flip_horizontal=True, flip_vertical=True),
]


def epoch_pictures(packed: Packed, augment: Augment, ranks: int, accumulate: int, epoch: int, first: int = 0) -> Any:
    """Picture number → what the network would see of it, over all ranks."""
    steps = steps_per_epoch(TRAIN, 6)
    seen: dict[int, NDArray[Any]] = {}
    for rank in range(ranks):
        batches = TrainingBatches(packed, augment, 5, rank, ranks, steps, accumulate)
        for number, step in enumerate(batches.epoch(epoch, first), first):
            assert step.index == number
            assert len(step.portions) == accumulate
            for batch in step.portions:
                assert np.array_equal(batch.targets, packed.labels("train")[batch.indices])
                for index, picture in zip(batch.indices.tolist(), batch.inputs):
                    assert index not in seen
                    seen[index] = picture.copy()
    return seen


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_picture_looks_the_same_for_any_ranks_and_after_a_resume(packed: Packed, augment: Augment) -> None:
    alone = epoch_pictures(packed, augment, 1, 1, 3)
    assert sorted(alone) == list(range(TRAIN))
    for ranks, accumulate, first in ((2, 1, 0), (3, 2, 0), (7, 3, 0), (1, 1, 2), (2, 2, 3)):
        seen = epoch_pictures(packed, augment, ranks, accumulate, 3, first)
        assert first > 0 or len(seen) == TRAIN
        for index, picture in seen.items():
            assert np.array_equal(picture, alone[index])


def test_counts_of_a_step_are_global(packed: Packed) -> None:
    for ranks in (1, 2, 5):
        by_rank = [list(TrainingBatches(packed, Augment(), 1, rank, ranks, 4).epoch(0)) for rank in range(ranks)]
        assert [step.global_count for step in by_rank[0]] == [6, 6, 6, 5]
        shares = [[len(batch.targets) for step in steps for batch in step.portions] for steps in by_rank]
        assert np.sum(shares, axis=0).tolist() == [6, 6, 6, 5]


def test_ranks_without_a_picture_get_empty_batches(packed: Packed) -> None:
    (*_, last) = TrainingBatches(packed, Augment(crop=5), 1, 20, 24, 1, 2).epoch(0)
    assert [batch.inputs.shape for batch in last.portions] == [(1, 2, 5, 5), (0, 2, 5, 5)]
    (*_, last) = TrainingBatches(packed, Augment(), 1, 23, 24, 1).epoch(0)
    assert len(last.portions[0].targets) == 0
    assert list(evaluation_batches(packed, "val", Augment(), 4, rank=7, ranks=8)) == []
    assert list(evaluation_batches(packed, "unseen", Augment(), 4)) == []


def test_a_step_stays_untouched_until_the_next_one_is_asked_for(packed: Packed, pictures: NDArray[Any]) -> None:
    for step in TrainingBatches(packed, Augment(), 1, 0, 1, 8).epoch(0):
        for _ in range(50):  # the next step is being made meanwhile
            assert np.array_equal(step.portions[0].inputs, pictures[step.portions[0].indices])


def test_without_augmentation_pictures_are_as_packed(packed: Packed, pictures: NDArray[Any]) -> None:
    seen = epoch_pictures(packed, Augment(), 1, 1, 0)
    assert all(np.array_equal(seen[index], pictures[index]) for index in range(TRAIN))


def test_flips_happen_to_about_half_and_differ_between_epochs(packed: Packed, pictures: NDArray[Any]) -> None:
    mirrored = []
    for epoch in range(40):
        seen = epoch_pictures(packed, Augment(flip_horizontal=True), 1, 1, epoch)
        for index, picture in seen.items():
            flipped = np.array_equal(picture, pictures[index][:, :, ::-1])
            assert flipped or np.array_equal(picture, pictures[index])
            mirrored.append(flipped)
    assert 0.45 < np.mean(mirrored) < 0.55


def test_shifts_reach_every_offset_and_repeat_the_edge(packed: Packed, pictures: NDArray[Any]) -> None:
    found = set()
    for epoch in range(60):
        for index, picture in epoch_pictures(packed, Augment(shift_pixels=2), 1, 1, epoch).items():
            padded = np.pad(pictures[index], ((0, 0), (2, 2), (2, 2)), mode="edge")
            (offset,) = [
                (y, x)
                for y in range(5)
                for x in range(5)
                if np.array_equal(picture, padded[:, y : y + HEIGHT, x : x + WIDTH])
            ]
            found.add(offset)
    assert len(found) == 25


def test_crops_lie_anywhere_in_training_and_in_the_centre_otherwise(packed: Packed, pictures: NDArray[Any]) -> None:
    found = set()
    for epoch in range(30):
        for index, picture in epoch_pictures(packed, Augment(crop=6), 1, 1, epoch).items():
            found |= {
                (y, x)
                for y in range(HEIGHT - 5)
                for x in range(WIDTH - 5)
                if np.array_equal(picture, pictures[index][:, y : y + 6, x : x + 6])
            }
    assert found == {(y, x) for y in range(4) for x in range(3)}
    centres = [batch.inputs.copy() for batch in evaluation_batches(packed, "val", Augment(crop=6), 3)]
    assert np.array_equal(np.concatenate(centres), pictures[TRAIN:, :, 1:7, 1:7])


@given(ranks=st.integers(1, 10), batch=st.integers(1, 9))
def test_evaluation_takes_each_picture_once(ranks: int, batch: int, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("set")
    write_packed(folder, np.zeros((TRAIN + VAL, 1, 2, 2), np.uint8))
    with open_packed(folder) as opened:
        for split, count in (("train", TRAIN), ("val", VAL)):
            seen = [
                index
                for rank in range(ranks)
                for some in evaluation_batches(opened, split, Augment(), batch, rank, ranks)  # type: ignore[arg-type]
                for index in some.indices.tolist()
                if len(some.targets) <= batch
            ]
            assert sorted(seen) == list(range(count))


@given(
    top=st.integers(-15, 15), left=st.integers(-15, 15), height=st.integers(1, 12), width=st.integers(1, 12),
)  # fmt: skip
def test_a_window_anywhere_repeats_the_edge(top: int, left: int, height: int, width: int) -> None:
    picture = np.arange(2 * 5 * 4, dtype=np.uint8).reshape(2, 5, 4)
    out = np.full((2, height, width), 255, np.uint8)
    copy_window(picture, top, left, out)
    rows, columns = np.clip(np.arange(height) + top, 0, 4), np.clip(np.arange(width) + left, 0, 3)
    assert np.array_equal(out, picture[:, rows][:, :, columns])


def test_an_error_while_reading_ahead_reaches_the_loop(packed: Packed) -> None:
    for shard in packed.folder.glob("pictures-*"):
        os.truncate(shard, 140)
    with pytest.raises(Exception, match="damaged"):
        list(TrainingBatches(packed, Augment(), 1, 0, 1, 4).epoch(0))


def test_a_loop_that_leaves_early_leaves_no_thread_behind(packed: Packed) -> None:
    import threading

    before = threading.active_count()
    steps = TrainingBatches(packed, Augment(), 1, 0, 1, 8).epoch(0)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_16_bits_packed_on_a_big_endian_machine_read_the_same(tmp_path: Path) -> None:
    values = np.arange((TRAIN + VAL) * 4, dtype=np.uint16).reshape(-1, 1, 2, 2)
    folder = tmp_path / "set"
    write_packed(folder, values)
    other = "big" if sys.byteorder == "little" else "little"
    for number in range(3):
        shard = folder / f"pictures-{number:05d}.npy"
        content = shard.read_bytes()
        shard.write_bytes(content[:128] + values[10 * number : 10 * number + 10].byteswap().tobytes())
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "byte_order": other}))
    with open_packed(folder) as opened:
        (batch,) = evaluation_batches(opened, "val", Augment(), 100)
        assert np.array_equal(batch.inputs, values[TRAIN:])
