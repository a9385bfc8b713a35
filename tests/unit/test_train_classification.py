"""What a classification learns from, and what is measured of it, whatever the number of ranks."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from dlhpc.data.packed import open_packed
from dlhpc.errors import AttemptExit, UserError
from dlhpc.runs.checkpoints import best_checkpoint
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import DatasetSummary, read_plan
from dlhpc.spec.models import Spec, Training
from dlhpc.train.checkpoint import load_weights
from dlhpc.train.collective import Collective, SingleCollective
from dlhpc.train.loop import Attempt
from dlhpc.train.loop import Training as WholeTraining
from dlhpc.train.models import Model, Preprocess
from dlhpc.train.stop import StopRequests
from dlhpc.train.tasks import labels as labels_module
from dlhpc.train.tasks import restore_model
from dlhpc.train.tasks.base import DeviceBatch, Evaluation
from dlhpc.train.tasks.classification import Classification, class_weights
from dlhpc.train.tasks.labels import SeveralLabels, average_precision
from tests.training import events, make_run, stripes, write_packed, write_packed_table


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
    assert found.metrics["loss"] == pytest.approx(
        sklearn.metrics.log_loss(targets, scores.double().softmax(dim=1)), rel=1e-5
    )
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


# ---- Whole trainings


def on_packed(folder: Path, packed: Path, counts: tuple[int, int], **spec: Any) -> RunDirectory:
    """A run on a dataset that is packed already; the data itself says what kind it is."""
    dataset = DatasetSummary("key", str(packed), 3, *counts, 0)
    data = {"folder": None, "packed": str(packed)}
    return make_run(folder, spec={"data": data, "optimizer": {"name": "adam"}, **spec}, dataset=dataset)


def train_here(run: RunDirectory, number: int = 1, deadline: float | None = None) -> AttemptExit:
    plan = read_plan(run.plan)
    with open_packed(plan.dataset.packed) as packed:
        attempt = Attempt(run, plan, Spec.model_validate(plan.spec), number)
        stop = StopRequests(run.stop_file(number), deadline)
        return WholeTraining(attempt, packed, SingleCollective(), stop, torch.device("cpu")).run()


def both(folder: Path) -> tuple[Path, tuple[int, int]]:
    """Pictures in which each of three bright stripes is there or not."""

    def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(seed)
        truth = random.integers(0, 2, (count, 3)).astype(np.uint8)
        values = random.integers(0, 100, (count, 1, 16, 16))
        values[:, :, :, :15] += 120 * truth.repeat(5, axis=1)[:, None, None, :]
        return values.astype(np.uint8), truth

    write_packed(folder, {"train": pictures(48, 0), "val": pictures(20, 1)}, CLASSES, several_labels=True).close()
    return folder, (48, 20)


def test_pictures_of_several_classes_are_learnt_and_named_again_by_the_checkpoint(tmp_path: Path) -> None:
    packed, counts = both(tmp_path / "packed")
    training = {"epochs": 12, "batch_size": 8, "best": "val_map", "class_weights": "balanced", "label_smoothing": 0.05}
    run = on_packed(tmp_path / "run", packed, counts, training=training, augment={"mixup": 0.2},
                    learning_rate={"base": 0.003, "policy": "fixed"})  # fmt: skip
    assert train_here(run) is AttemptExit.FINISHED
    found = json.loads(run.evaluation.read_text())
    assert found["map"] > 0.95
    assert [row["name"] for row in found["per_class"]] == CLASSES
    best = best_checkpoint(run)
    assert best is not None
    assert best.metrics["val_map"] == found["map"]
    model = restore_model(best, load_weights(best))
    assert isinstance(model, Model)
    with open_packed(packed) as data:
        values = np.empty((20, 1, 16, 16), dtype=np.uint8)
        data.read("val", np.arange(20), values)
        named = model.probabilities(torch.from_numpy(values)).detach().numpy() > 0.5
        assert (named == data.targets("val")).all(axis=1).mean() == pytest.approx(found["accuracy"])


@pytest.mark.parametrize("several_labels", [False, True])
def test_rows_of_a_table_are_classified_too(tmp_path: Path, several_labels: bool) -> None:
    def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(seed)
        middle = random.integers(0, 3, count)
        values = np.eye(3)[middle] * 5 + random.normal(0, 1, (count, 3)) + [1000, 0, -3]
        return values.astype(np.float32), np.eye(3, dtype=np.uint8)[middle] if several_labels else middle

    splits = {"train": rows(60, 0), "val": rows(30, 1)}
    write_packed_table(
        tmp_path / "packed", splits, task="classification", classes=CLASSES, several_labels=several_labels
    ).close()
    run = on_packed(
        tmp_path / "run", tmp_path / "packed", (60, 30), network={"name": "mlp", "hidden": [16]},
        learning_rate={"base": 0.02, "policy": "fixed"}, training={"epochs": 10, "batch_size": 10},
        augment={"mixup": 0.1},
    )  # fmt: skip
    assert train_here(run) is AttemptExit.FINISHED
    best = best_checkpoint(run)
    assert best is not None
    assert (best.metrics["val_accuracy"] or 0) > 0.9
    model = restore_model(best, load_weights(best))
    assert isinstance(model, Model)
    named = model.probabilities(torch.from_numpy(splits["val"][0])).argmax(dim=1).numpy()
    truth = splits["val"][1].argmax(axis=1) if several_labels else splits["val"][1]
    assert (named == truth).mean() > 0.9


def test_a_network_for_pictures_on_a_table_is_told_before_training(tmp_path: Path) -> None:
    values = {
        "train": (np.zeros((6, 3), np.float32), np.arange(6) % 3),
        "val": (np.zeros((3, 3), np.float32), np.arange(3)),
    }
    write_packed_table(tmp_path / "packed", values, task="classification", classes=CLASSES).close()
    run = on_packed(tmp_path / "run", tmp_path / "packed", (6, 3), network={"name": "lenet"})
    with pytest.raises(UserError, match=r"network\.name is lenet, but the data holds rows of a table"):
        train_here(run)


def test_settings_that_would_have_no_effect_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", spec={"network": {"name": "lenet", "options": {"width": 3}}})
    with pytest.raises(UserError, match=r"network\.options \(width\) mean nothing to lenet"):
        train_here(run)
    file = tmp_path / "mine.py"
    file.write_text("def loss(outputs, targets):\n    return (outputs ** 2).sum(dim=1)\n")
    settings = {"task_file": str(file), "training": {"epochs": 1, "label_smoothing": 0.1}}
    with pytest.raises(UserError, match="has its own loss"):
        train_here(make_run(tmp_path / "two", spec=settings))


def test_a_resumed_run_does_not_begin_with_the_pretrained_weights_again(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", spec={"network": {"name": "smallnet"}})
    train_here(first)
    network = {"name": "smallnet", "pretrained": str(first.path), "freeze": ["0", "1"]}
    second = make_run(tmp_path / "second", spec={"network": network, "training": {"epochs": 2, "batch_size": 48}})
    assert train_here(second, 1, deadline=time.time()) is AttemptExit.CONTINUE
    for path in first.checkpoints.iterdir():
        path.unlink()  # not needed any more
    assert train_here(second, 2) is AttemptExit.FINISHED
    assert events(second).count("resumed") == 1
    gone = make_run(tmp_path / "gone", spec={"network": network})
    with pytest.raises(UserError, match="this run has no checkpoint"):
        train_here(gone)


def test_an_own_network_of_a_run_that_was_moved_is_found_beside_it(tmp_path: Path) -> None:
    (tmp_path / "run/code").mkdir(parents=True)
    file = tmp_path / "run/code/mine.py"
    file.write_text(
        "from torch import nn\n\ndef network(shape, width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(256, width), nn.ReLU(), nn.Linear(width, shape.outputs))\n"
    )
    run = make_run(tmp_path / "run", spec={"network": {"file": str(file), "options": {"width": 9}}})
    train_here(run)
    (tmp_path / "run").rename(tmp_path / "moved")
    best = best_checkpoint(RunDirectory(tmp_path / "moved"))
    assert best is not None
    model = restore_model(best, load_weights(best))
    assert isinstance(model, Model)
    pictures, _ = stripes(2)
    assert model.probabilities(torch.from_numpy(pictures)).sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
