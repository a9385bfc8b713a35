"""What a classification learns from, and what is measured of it, whatever the number of ranks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from dlhpc.errors import UserError
from dlhpc.spec.models import Training
from dlhpc.train.collective import Collective, SingleCollective
from dlhpc.train.models import Model, Preprocess
from dlhpc.train.tasks import labels as labels_module
from dlhpc.train.tasks.base import DeviceBatch, Evaluation
from dlhpc.train.tasks.classification import Classification, class_weights
from dlhpc.train.tasks.labels import SeveralLabels, average_precision


class Given(nn.Module):
    """A network that gives its input back: rows of scores."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows


def model_of(count: int) -> Model:
    return Model(Preprocess(torch.zeros(count), torch.ones(count)), Given())


class OneOfMany(SingleCollective):
    """One rank of several in this very process: ``together`` runs them in step, each in its thread."""

    def __init__(self, rank: int, size: int, board: Board) -> None:
        self.rank, self.size, self.board = rank, size, board

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.board.exchange(self.rank, tensor.clone()))

    def sum(self, tensor: Tensor) -> Tensor:
        tensor.copy_(self.gather(tensor).sum(dim=0))
        return tensor


class Board:
    """Where ranks leave what the others read."""

    def __init__(self, size: int) -> None:
        import threading

        self.barrier = threading.Barrier(size)
        self.values: list[Any] = [None] * size

    def exchange(self, rank: int, value: Tensor) -> list[Tensor]:
        self.values[rank] = value
        self.barrier.wait(timeout=20)
        found = list(self.values)
        assert len({(each.shape, each.dtype) for each in found}) == 1, "all ranks must give the same shape and type"
        self.barrier.wait(timeout=20)
        return found


def measured(task: Classification, scores: Tensor, targets: Tensor, ranks: int = 1, batch: int = 3) -> list[Evaluation]:
    """What each of ``ranks`` ranks says that was measured; sample i belongs to rank i mod ranks."""
    from concurrent.futures import ThreadPoolExecutor

    board = Board(ranks)

    def one(rank: int) -> Evaluation:
        measure = task.measure()
        own_scores, own_targets = scores[rank::ranks], targets[rank::ranks]
        with torch.no_grad():
            for first in range(0, len(own_scores), batch):
                rows = slice(first, first + batch)
                measure.add(DeviceBatch(own_scores[rows], own_targets[rows]))
        collective: Collective = OneOfMany(rank, ranks, board) if ranks > 1 else SingleCollective()
        return measure.finish(collective)

    with ThreadPoolExecutor(ranks) as threads:
        return list(threads.map(one, range(ranks)))


CLASSES = ["cat", "dog", "owl"]


def losses_of(task: Classification, scores: Tensor, targets: Tensor, **mixing: Tensor) -> tuple[float, list[float]]:
    found = task.losses(DeviceBatch(scores, targets, **mixing))
    return found.total.item(), found.sums.tolist()


# ---- Class weights


def test_balanced_weights_are_those_of_scikit_learn_and_one_on_average() -> None:
    truth = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(Training(class_weights="balanced"), CLASSES, np.bincount(truth))
    assert weights is not None
    expected = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.arange(3), y=truth)
    assert weights.tolist() == pytest.approx(expected)
    assert float(weights[truth].mean()) == pytest.approx(1.0)


def test_a_class_without_training_pictures_has_the_weight_one() -> None:
    weights = class_weights(Training(class_weights="balanced"), CLASSES, np.array([4, 0, 4]))
    assert weights is not None
    assert weights.tolist() == pytest.approx([2 / 3, 1.0, 2 / 3])


def test_a_class_that_is_spelt_wrong_is_told_with_the_right_one() -> None:
    with pytest.raises(UserError, match=r"class_weights names `dgo`.*\n.*Did you mean `dog`\?"):
        class_weights(Training(class_weights={"dgo": 2.0}), CLASSES, np.array([1, 1, 1]))


def test_a_class_weighs_as_the_spec_says_and_the_curves_show_the_plain_loss() -> None:
    weights = class_weights(Training(class_weights={"owl": 5.0}), CLASSES, np.array([1, 1, 1]))
    scores, targets = torch.randn(4, 3), torch.tensor([0, 2, 2, 1])
    total, (shown, right) = losses_of(Classification(model_of(3), CLASSES, weights=weights), scores, targets)
    each = functional.cross_entropy(scores, targets, reduction="none")
    assert total == pytest.approx(float((each * torch.tensor([1.0, 5.0, 5.0, 1.0])).sum()), rel=1e-5)
    assert shown == pytest.approx(float(each.sum()), rel=1e-5)
    assert right == (scores.argmax(dim=1) == targets).sum()


def test_smoothing_is_that_of_torch_and_leaves_the_shown_loss_alone() -> None:
    scores, targets = torch.randn(4, 3), torch.tensor([0, 2, 2, 1])
    total, (shown, _) = losses_of(Classification(model_of(3), CLASSES, smoothing=0.1), scores, targets)
    assert total == pytest.approx(
        float(functional.cross_entropy(scores, targets, label_smoothing=0.1, reduction="sum")), rel=1e-5
    )
    assert shown == pytest.approx(float(functional.cross_entropy(scores, targets, reduction="sum")), rel=1e-5)


def test_any_shares_of_a_batch_give_the_same_sums() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0])
    task = Classification(model_of(3), CLASSES, weights=weights, smoothing=0.1)
    scores, targets = torch.randn(9, 3), torch.arange(9) % 3
    whole = losses_of(task, scores, targets)
    parts = [losses_of(task, scores[rows], targets[rows]) for rows in (slice(0, 1), slice(1, 7), slice(7, 9))]
    assert sum(total for total, _ in parts) == pytest.approx(whole[0], rel=1e-5)
    assert [sum(values) for values in zip(*(sums for _, sums in parts), strict=True)] == pytest.approx(whole[1])


# ---- MixUp


def test_mixup_mixes_inputs_after_normalisation_and_targets_in_the_same_share() -> None:
    model = Model(Preprocess(torch.full((3,), 2.0), torch.full((3,), 4.0)), Given())
    rows, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    partner, share = torch.tensor([1, 2, 3, 0]), torch.tensor([1.0, 0.75, 0.5, 0.0])
    mixed = share[:, None] * (rows - 2) / 4 + (1 - share[:, None]) * (rows[partner] - 2) / 4
    assert torch.allclose(model(rows, partner, share).scores, mixed, atol=1e-6)
    total, (shown, _) = losses_of(Classification(model, CLASSES), rows, targets, partner=partner, share=share)
    one_hot = torch.eye(3)
    soft = share[:, None] * one_hot[targets] + (1 - share[:, None]) * one_hot[targets[partner]]
    expected = float(functional.cross_entropy(mixed, soft, reduction="sum"))
    assert total == pytest.approx(expected, rel=1e-5)
    assert shown == pytest.approx(expected, rel=1e-5)


def test_pictures_are_mixed_too_and_the_weights_file_does_not_change() -> None:
    model = Model(Preprocess(torch.zeros(1, 1, 1), torch.ones(1, 1, 1)), Given())
    pictures = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    mixed = model(pictures, torch.tensor([1, 0]), torch.tensor([0.25, 1.0])).scores
    assert mixed[:, 0, 0, 0].tolist() == pytest.approx([0.75, 1.0])
    assert set(model.state_dict()) == {"preprocess.mean", "preprocess.std"}


# ---- What is measured


def test_metrics_of_one_class_a_picture_are_those_of_scikit_learn() -> None:
    scores, targets = torch.randn(50, 3), torch.randint(0, 3, (50,))
    (found,) = measured(Classification(model_of(3), CLASSES), scores, targets)
    named = scores.argmax(dim=1)
    assert found.metrics["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(targets, named))
    assert found.metrics["f1_macro"] == pytest.approx(sklearn.metrics.f1_score(targets, named, average="macro"))
    assert found.metrics["loss"] == pytest.approx(sklearn.metrics.log_loss(targets, scores.softmax(dim=1)), rel=1e-5)
    assert found.details["confusion"] == sklearn.metrics.confusion_matrix(targets, named).tolist()


def test_validation_is_measured_without_weights_and_smoothing() -> None:
    scores, targets = torch.randn(9, 3), torch.arange(9) % 3
    plain = measured(Classification(model_of(3), CLASSES), scores, targets)
    weighted = Classification(model_of(3), CLASSES, weights=torch.tensor([9.0, 1.0, 1.0]), smoothing=0.3)
    assert measured(weighted, scores, targets) == plain


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_one_class_a_picture_is_measured_the_same_by_any_number_of_ranks(ranks: int) -> None:
    scores, targets = torch.randn(7, 3), torch.tensor([0, 1, 0, 1, 0, 1, 1])  # no owl: nothing may break
    (alone,) = measured(Classification(model_of(3), CLASSES), scores, targets)
    for found in measured(Classification(model_of(3), CLASSES), scores, targets, ranks):
        assert found.metrics == pytest.approx(alone.metrics)
        assert found.details == alone.details
    assert all(math.isfinite(value) for value in alone.metrics.values())


# ---- Several labels


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_that_of_scikit_learn_also_with_equal_scores(samples: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in samples], dtype=np.float32)
    truth = np.array([label for _, label in samples], dtype=np.uint8)
    expected = sklearn.metrics.average_precision_score(truth, scores) if truth.any() else 0.0
    assert average_precision(scores, truth) == pytest.approx(expected)


def several(count: int, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, (count, classes)).astype(np.uint8)
    scores = (truth + random.normal(0, 1, truth.shape) - 0.5).round(1).astype(np.float32)
    return torch.from_numpy(scores), torch.from_numpy(truth)


def test_metrics_of_several_labels_are_those_of_scikit_learn() -> None:
    scores, truth = several(60)
    (found,) = measured(SeveralLabels(model_of(3), CLASSES), scores, truth)
    named = scores > 0
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(truth, named),
        "f1_micro": sklearn.metrics.f1_score(truth, named, average="micro"),
        "f1_macro": sklearn.metrics.f1_score(truth, named, average="macro"),
        "map": sklearn.metrics.average_precision_score(truth, scores, average="macro"),
        "loss": float(functional.binary_cross_entropy_with_logits(scores, truth.float())),
    }
    assert found.metrics == pytest.approx(expected, rel=1e-5)
    precision, recall, f1, count = sklearn.metrics.precision_recall_fscore_support(truth, named)
    for index, row in enumerate(found.details["per_class"]):
        assert row["name"] == CLASSES[index]
        assert [row["precision"], row["recall"], row["f1"], row["count"]] == pytest.approx(
            [precision[index], recall[index], f1[index], count[index]]
        )
        assert row["ap"] == pytest.approx(sklearn.metrics.average_precision_score(truth[:, index], scores[:, index]))


@pytest.mark.parametrize(("ranks", "samples"), [(2, 7), (3, 20), (4, 3), (5, 11)])
def test_several_labels_are_measured_the_same_by_any_number_of_ranks(
    ranks: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, truth = several(samples, classes=3, seed=ranks)
    (alone,) = measured(SeveralLabels(model_of(3), CLASSES), scores, truth)
    monkeypatch.setattr(labels_module, "BLOCK_BYTES", 1)  # a class at a time
    for found in measured(SeveralLabels(model_of(3), CLASSES), scores, truth, ranks):
        assert found.metrics == pytest.approx(alone.metrics, rel=1e-6)
        assert found.details == alone.details


def test_classes_that_nobody_has_are_left_out_of_the_means() -> None:
    scores, truth = several(20)
    truth[:, 1] = 0
    scores[:, 1] = -1
    (found,) = measured(SeveralLabels(model_of(3), CLASSES), scores, truth)
    two = [0, 2]
    assert found.metrics["map"] == pytest.approx(
        sklearn.metrics.average_precision_score(truth[:, two], scores[:, two], average="macro")
    )
    assert found.details["per_class"][1] == {
        "name": "dog", "count": 0, "named": 0, "right": 0, "precision": None, "recall": None, "f1": None, "ap": None,
    }  # fmt: skip
    empty = measured(SeveralLabels(model_of(3), CLASSES), scores * 0 - 1, truth * 0)[0].metrics
    assert (empty["accuracy"], empty["map"], empty["f1_micro"], empty["f1_macro"]) == (1.0, 0.0, 0.0, 0.0)


def test_several_labels_with_weights_smoothing_and_mixup() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0])
    task = SeveralLabels(model_of(3), CLASSES, weights=weights, smoothing=0.2)
    scores, truth = several(5)
    partner, share = torch.tensor([1, 2, 3, 4, 0]), torch.full((5,), 0.75)
    mixed = share[:, None] * scores + (1 - share[:, None]) * scores[partner]
    soft = (share[:, None] * truth + (1 - share[:, None]) * truth[partner]) * 0.8 + 0.1
    each = functional.binary_cross_entropy_with_logits(mixed, soft, reduction="none")
    total, (shown, _) = losses_of(task, scores, truth, partner=partner, share=share)
    assert total == pytest.approx(float((each * weights).mean(dim=1).sum()), rel=1e-5)
    plain = functional.binary_cross_entropy_with_logits(mixed, (soft - 0.1) / 0.8, reduction="none")
    assert shown == pytest.approx(float(plain.mean(dim=1).sum()), rel=1e-5)


def test_balanced_weights_of_several_labels_count_how_often_each_occurs() -> None:
    truth = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=np.uint8)
    weights = class_weights(Training(class_weights="balanced"), CLASSES, truth.sum(axis=0, dtype=np.int64))
    assert weights is not None
    assert weights.tolist() == pytest.approx([6 / (3 * n) for n in (4, 1, 1)])


def test_gradients_reach_the_network_from_every_loss() -> None:
    for kind, targets in (
        (Classification, torch.tensor([0, 1])),
        (SeveralLabels, torch.tensor([[1, 0, 1], [0, 0, 0]])),
    ):
        for smoothing, weights in itertools.product((0.0, 0.1), (None, torch.tensor([1.0, 2.0, 3.0]))):
            model = Model(Preprocess(torch.zeros(4), torch.ones(4)), nn.Linear(4, 3))
            task = kind(model, CLASSES, smoothing=smoothing, weights=weights)
            task.losses(DeviceBatch(torch.randn(2, 4), targets)).total.backward()
            assert all(
                parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters()
            )
