"""Networks, normalisation and optimisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from dlhpc.spec.models import SMALLEST_INPUT, Optimizer
from dlhpc.train.collective import SingleCollective
from dlhpc.train.evaluate import RankState
from dlhpc.train.models import (
    Model,
    Outputs,
    batch_norms,
    build_network,
    preprocess_for,
    running_statistics,
    with_auxiliary,
)
from dlhpc.train.optimisers import make_optimiser, set_rate

SIZES = {name: max(size, 64) if name == "googlenet" else size for name, size in SMALLEST_INPUT.items()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["lenet", "smallnet", "alexnet", "googlenet", "resnet18"])
def test_every_network_takes_grey_and_colour_and_any_number_of_classes(name: str, channels: int) -> None:
    size = SIZES[name]
    model = Model(
        preprocess_for("none", np.zeros(channels), np.ones(channels), None, size, size),
        build_network(name, channels, 7, size, size),
    )
    pictures = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)
    labels = torch.tensor([0, 6])
    outputs = model(pictures)
    main, loss = with_auxiliary(outputs, lambda scores: functional.cross_entropy(scores, labels))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert loss >= main > 0
    assert len(outputs.auxiliary) == (2 if name == "googlenet" else 0)
    model.eval()
    with torch.no_grad():
        assert model(pictures[:1]).scores.shape == (1, 7)


def test_resnet50_is_adapted_too() -> None:
    network = build_network("resnet50", 1, 3, 64, 64)
    assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


def test_lenet_takes_pictures_that_are_not_square() -> None:
    assert build_network("lenet", 1, 4, 28, 40)(torch.zeros(2, 1, 28, 40)).shape == (2, 4)


def test_googlenets_side_classifiers_count_three_tenths() -> None:
    scores = torch.randn(3, 5)
    labels = torch.tensor([1, 2, 3])

    def one_loss(scores: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(scores, labels, reduction="sum")

    main, loss = with_auxiliary(Outputs(scores, (scores, scores)), one_loss)
    one = one_loss(scores)
    assert main == one
    assert loss.item() == pytest.approx(1.6 * one.item(), rel=1e-5)


@pytest.mark.parametrize("full", [np.uint8, np.uint16])
def test_pictures_of_both_depths_are_normalised_on_the_same_scale(full: type) -> None:
    limit = np.iinfo(full).max
    pictures = torch.from_numpy(np.full((2, 3, 4, 4), limit, dtype=full))
    layer = preprocess_for("pixel", np.array([0.5, 0.25, 0.0]), np.array([0.25, 0.5, 1.0]), None, 4, 4)
    assert layer(pictures)[0, :, 0, 0].tolist() == pytest.approx([2.0, 1.5, 1.0])
    assert set(layer.state_dict()) == {"mean", "std"}


def test_a_mean_picture_is_cropped_from_its_centre() -> None:
    image = np.arange(36, dtype=np.float32).reshape(1, 6, 6) / 36
    layer = preprocess_for("image", np.array([0.5]), np.array([1.0]), image, 2, 2)
    assert torch.equal(layer.mean[0], torch.from_numpy(image[0, 2:4, 2:4].copy()))


def test_a_single_picture_passes_through_batch_normalisation() -> None:
    network = build_network("resnet18", 1, 2, 32, 32)
    layers = batch_norms(network)
    with running_statistics(layers):
        network(torch.zeros(1, 1, 32, 32)).sum().backward()
    assert all(layer.training for layer in layers)
    assert all(torch.isfinite(buffer).all() for buffer in network.buffers())


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta"])
def test_every_optimiser_goes_downhill(name: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = make_optimiser(Optimizer(name=name), [weight])  # type: ignore[arg-type]
    set_rate(optimiser, 0.01)
    for _ in range(20):
        weight.grad = 2 * weight.detach().clone()
        optimiser.step()
    assert (weight.abs() < torch.tensor([1.0, 2.0])).all()


def test_the_specs_settings_reach_the_optimiser() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    group = make_optimiser(Optimizer(name="rmsprop", rho=0.5, momentum=0.25, epsilon=1e-3), [weight]).param_groups[0]
    assert (group["alpha"], group["momentum"], group["eps"], group["weight_decay"]) == (0.5, 0.25, 1e-3, 0.0001)
    assert make_optimiser(Optimizer(name="sgd"), [weight]).param_groups[0]["momentum"] == 0.9


def test_averaged_statistics_are_for_looking_only() -> None:
    class Two(SingleCollective):
        """As if another rank had zeros everywhere."""

        size = 2

    network = build_network("smallnet", 1, 4, 16, 16)
    network(torch.rand(3, 1, 16, 16))
    state = RankState(network)
    before = state.read()
    with state.averaged(Two()):
        assert torch.allclose(state.read()[0], before[0] / 2)
    after = state.read()
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
