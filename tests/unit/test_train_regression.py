"""Regression: standardising inside the model, losses, measures that do not depend on ranks, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlhpc.errors import DataError
from dlhpc.runs.measures import rises
from dlhpc.spec.models import Spec
from dlhpc.train.build import make_model
from dlhpc.train.collective import SingleCollective
from dlhpc.train.models import Model, Preprocess
from dlhpc.train.tables_network import mlp
from dlhpc.train.tasks import make_task, restore_model
from dlhpc.train.tasks.base import DeviceBatch
from dlhpc.train.tasks.regression import PAIRS, Regression, Regressor, keep_last_layer_exact, measure_names
from tests.training import write_packed, write_packed_table


def spec(**more: Any) -> Spec:
    table = {"file": "/x.csv", "targets": ["a", "b"]}
    return Spec.model_validate({"name": "r", "task": "regression", "data": {"table": table}, **more})


def rows(count: int, targets: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs in odd units, and targets that are linear in them, in units as odd."""
    random = np.random.default_rng(seed)
    inputs = (random.normal(size=(count, 3)) * [1, 1000, 1e-3] + [5, -2000, 0]).astype(np.float32)
    plain = (inputs - np.float32([5, -2000, 0])) / np.float32([1, 1000, 1e-3])
    weights = np.array([[1.0, 0.0], [0.5, -1.0], [0.0, 2.0]])
    return inputs, (plain.astype(np.float64) @ weights * [10, 1e-4] + [300, -30000])[:, :targets]


def task_of(values: Tensor, *, targets: Tensor | None = None, loss: str = "mse") -> Regression:
    """A task whose network gives what it gets (T standardised answers), trained on ``targets`` n×T."""
    count = values.shape[1]
    truths = values if targets is None else targets
    still = Preprocess(torch.zeros(count), torch.ones(count))
    regressor = Regressor(Model(still, nn.Identity()), truths.mean(dim=0), truths.std(dim=0, correction=0))
    return Regression(regressor, [f"t{number}" for number in range(count)], loss)


class TwoRanks(SingleCollective):
    """What one of two ranks sees, the other's numbers being known."""

    size = 2

    def __init__(self, other: Any) -> None:
        self.other = other

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor + self.other["sums"]

    def gather_json(self, value: Any) -> list[Any]:
        return [value, self.other["pairs"]]


def test_a_linear_law_is_learnt_in_the_users_units(tmp_path: Path) -> None:
    packed = write_packed_table(tmp_path / "p", {"train": rows(400), "val": rows(100, seed=1)}, target_names=["a", "b"])
    torch.manual_seed(0)
    task = make_task(spec(network={"name": "mlp", "hidden": [32]}), packed)
    inputs, targets = (torch.from_numpy(array) for array in rows(400))
    optimiser = torch.optim.Adam(task.model.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        losses = task.losses(DeviceBatch(inputs, targets))
        (losses.total / len(inputs)).backward()
        optimiser.step()
    task.model.eval()
    measure = task.measure()
    with torch.no_grad():
        new, truths = (torch.from_numpy(array) for array in rows(100, seed=1))
        measure.add(DeviceBatch(new, truths))
        values = task.model(new)
    found = measure.finish(SingleCollective())
    assert values.dtype == torch.float64
    assert found.metrics["r2_a"] > 0.99
    assert found.metrics["r2_b"] > 0.99  # −30000 ± 0.0002: float32 has no digits left for it
    assert found.metrics["rmse_b"] == pytest.approx(float((values - truths)[:, 1].square().mean().sqrt()))
    trained = task.train_metrics(losses.sums.tolist(), len(inputs))
    assert set(trained) == {"loss", "mae", "rmse"}
    assert trained["loss"] == pytest.approx(trained["rmse"] ** 2, rel=1e-4)


@pytest.mark.parametrize(("name", "expected"), [("mse", [4.0, 0.25]), ("mae", [2.0, 0.5]), ("huber", [1.5, 0.125])])
def test_the_losses(name: str, expected: list[float]) -> None:
    task = task_of(torch.zeros(2, 2), targets=torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), loss=name)
    each = task.each_loss(torch.tensor([[2.0, -2.0], [0.5, 0.5]]), torch.zeros(2, 2))
    assert each.tolist() == pytest.approx(expected)
    losses = task.losses(DeviceBatch(torch.tensor([[2.0, -2.0], [0.5, 0.5]]), torch.zeros(2, 2)))
    assert float(losses.total) == pytest.approx(sum(expected))


def test_mixup_mixes_targets_as_it_mixes_samples() -> None:
    task = task_of(torch.zeros(2, 1), targets=torch.tensor([[-1.0], [1.0]]))
    inputs = torch.tensor([[1.0], [3.0]])
    batch = DeviceBatch(inputs, inputs.clone(), torch.tensor([1, 0]), torch.tensor([0.25, 1.0]))
    assert float(task.losses(batch).total) == pytest.approx(0.0, abs=1e-10)  # the network gives what it gets
    odd = DeviceBatch(inputs, torch.tensor([[0.0], [0.0]]), torch.tensor([1, 0]), torch.tensor([0.25, 1.0]))
    assert float(task.losses(odd).total) == pytest.approx(2.5**2 + 3**2)


def test_one_target_has_plain_names_and_the_users_units() -> None:
    truths = torch.tensor([[10.0], [20.0], [30.0], [60.0]], dtype=torch.float64)
    task = task_of(truths)
    answers = task.model.from_units(truths + torch.tensor([[1.0], [-1.0], [3.0], [-5.0]]))
    measure = task.measure()
    measure.add(DeviceBatch(answers, truths))
    found = measure.finish(SingleCollective())
    assert found.metrics["mae"] == pytest.approx(2.5, rel=1e-6)
    assert found.metrics["rmse"] == pytest.approx(3.0, rel=1e-6)
    assert found.metrics["r2"] == pytest.approx(1 - 36 / 1400, rel=1e-6)
    assert found.metrics["loss"] == pytest.approx(9 / 350, rel=1e-5)
    (row,) = found.details["targets"]
    assert row["mean_predictor"] == pytest.approx({"mae": 15.0, "rmse": 350**0.5, "r2": 0.0})
    assert found.details["pairs"]["t0"][0] == pytest.approx([10.0, 11.0])
    json.dumps([found.metrics, found.details], allow_nan=False)


def test_several_targets_are_put_together_without_units() -> None:
    truths = torch.tensor([[0.0, 1000.0], [2.0, 3000.0]], dtype=torch.float64)
    task = task_of(truths)
    measure = task.measure()
    measure.add(DeviceBatch(task.model.from_units(truths + torch.tensor([[0.5, 0.0], [0.5, 0.0]])), truths))
    found = measure.finish(SingleCollective()).metrics
    assert found["rmse_t0"] == pytest.approx(0.5)
    assert found["rmse_t1"] == pytest.approx(0.0, abs=1e-3)
    assert found["mae"] == pytest.approx(0.25)
    assert found["rmse"] == pytest.approx((0.25 / 2) ** 0.5)
    assert found["r2"] == pytest.approx((found["r2_t0"] + found["r2_t1"]) / 2)
    assert rises("val_r2_t0")
    assert not rises("val_rmse_t0")


def test_r2_is_left_out_where_the_split_does_not_vary() -> None:
    task = task_of(torch.tensor([[0.1], [0.3]], dtype=torch.float64))
    measure = task.measure()
    measure.add(DeviceBatch(torch.zeros(3, 1), torch.full((3, 1), 0.7, dtype=torch.float64)))
    found = measure.finish(SingleCollective())
    assert "r2" not in found.metrics
    assert found.details["targets"][0]["r2"] is None
    json.dumps(found.details, allow_nan=False)


@pytest.mark.parametrize("samples", [7, 5000])
def test_two_ranks_measure_what_one_does(samples: int) -> None:
    random = torch.Generator().manual_seed(3)
    truths = torch.randn(samples, 2, generator=random, dtype=torch.float64) * 100 + 1e4
    answers = torch.randn(samples, 2, generator=random)
    task = task_of(truths)
    whole = task.measure()
    for first in range(0, samples, 64):
        whole.add(DeviceBatch(answers[first : first + 64], truths[first : first + 64]))
    one = whole.finish(SingleCollective())
    shares = [task.measure(), task.measure()]
    for rank, share in enumerate(shares):
        for first in range(rank, samples, 64):  # batches of 32
            share.add(DeviceBatch(answers[first : first + 64 : 2], truths[first : first + 64 : 2]))
    other: dict[str, Any] = {}

    class Taken(SingleCollective):
        def sum(self, tensor: Tensor) -> Tensor:
            other["sums"] = tensor.clone()
            return tensor

        def gather_json(self, value: Any) -> list[Any]:
            other["pairs"] = value
            return [value]

    shares[1].finish(Taken())
    two = shares[0].finish(TwoRanks(other))
    assert two.metrics == pytest.approx(one.metrics, rel=1e-12)
    for found in (one, two):
        pairs = found.details["pairs"]["t0"]
        assert PAIRS // 2 <= len(pairs) <= PAIRS or len(pairs) == samples
        places = [int((truths[:, 0] == truth).nonzero()) for truth, _ in pairs]
        assert places == sorted(places)
        assert places[-1] >= samples * 0.98 - 1
        assert [said for _, said in pairs] == pytest.approx(
            [float(task.model.in_units(answers[place : place + 1])[0, 0]) for place in places]
        )


def test_targets_that_are_no_numbers_never_pass(tmp_path: Path) -> None:
    inputs, targets = rows(6)
    targets[4, 1] = np.nan
    packed = write_packed_table(tmp_path / "p", {"train": rows(20), "val": (inputs, targets)}, target_names=["a", "b"])
    with pytest.raises(DataError, match=r"1 targets in val .* the first `b` of /table.csv:4"):
        make_task(spec(), packed)


def test_a_checkpoint_gives_the_same_values(tmp_path: Path) -> None:
    packed = write_packed_table(tmp_path / "p", {"train": rows(20), "val": rows(5)}, target_names=["a", "b"])
    wanted = spec(network={"name": "mlp", "hidden": [8, 4], "dropout": 0.1})
    model = make_task(wanted, packed).model.eval()
    record: Any = SimpleNamespace(
        task="regression", network="mlp", classes=[], input={"kind": "table", "features": packed.features},
        settings={"network": wanted.network.model_dump(mode="json"), "targets": ["a", "b"]},
    )  # fmt: skip
    again = restore_model(record, dict(model.state_dict()))
    inputs = torch.from_numpy(rows(5)[0])
    assert torch.equal(again(inputs), model(inputs))


def test_pictures_too(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (12, 1, 16, 16)).astype(np.uint8)
    targets = pictures.mean(axis=(1, 2, 3))[:, None].astype(np.float64)
    packed = write_packed(
        tmp_path / "p", {"train": (pictures, targets), "val": (pictures, targets)}, [], task="regression",
        target_names=["brightness"],
    )  # fmt: skip
    wanted = Spec.model_validate(
        {
            "name": "r", "task": "regression", "network": {"name": "smallnet"},
            "data": {"lists": {"train": "/a", "val": "/b"}, "width": 16, "height": 16},
        }
    )  # fmt: skip
    task = make_task(wanted, packed)
    losses = task.losses(DeviceBatch(torch.from_numpy(pictures), torch.from_numpy(targets)))
    losses.total.backward()
    assert task.model(torch.from_numpy(pictures)).shape == (12, 1)


def test_the_last_layer_is_exact_under_autocast(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = mlp(3, 2, [16])
    inputs = torch.randn(4, 3)
    before, names = network(inputs), list(network.state_dict())
    keep_last_layer_exact(network)
    assert list(network.state_dict()) == names
    assert torch.equal(network(inputs), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(inputs).dtype == torch.float32
    packed = write_packed_table(tmp_path / "p", {"train": rows(20), "val": rows(5)}, target_names=["a", "b"])
    bare = make_model(spec(network={"name": "mlp", "hidden": []}), packed, 2)
    keep_last_layer_exact(bare.network)
    assert bare(torch.from_numpy(rows(5)[0])).scores.shape == (5, 2)


def test_own_loss_and_measures_get_values_in_units(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "def loss(outputs, targets):\n    return (outputs - targets).abs().sum(dim=1)\n"
        "def measures(outputs, targets):\n"
        "    return {'within_one': ((outputs - targets).abs() < 1).all(dim=1).float()}\n"
    )
    packed = write_packed_table(tmp_path / "p", {"train": rows(20, 1), "val": rows(5, 1)}, target_names=["a"])
    table = {"file": "/x.csv", "targets": "a"}
    task = make_task(Spec.model_validate(
        {"name": "r", "task": "regression", "task_file": str(own), "data": {"table": table}}), packed)  # fmt: skip
    inputs, targets = (torch.from_numpy(array) for array in rows(20, 1))
    losses = task.losses(DeviceBatch(inputs, targets))
    expected = (task.model(inputs) - targets).detach().abs().sum()
    assert float(losses.total.detach()) == pytest.approx(float(expected), rel=1e-5)
    losses.total.backward()
    measure = task.measure()
    with torch.no_grad():
        measure.add(DeviceBatch(inputs, targets))
    assert 0 <= measure.finish(SingleCollective()).metrics["within_one"] <= 1


def test_names_of_measures() -> None:
    assert measure_names(["E (eV)", "E [eV]", "%", "硬さ"]) == ["E_eV", "E_eV_2", "3", "硬さ"]
