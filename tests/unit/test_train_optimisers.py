"""LARS and LAMB against their papers' formulas, written out plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dlhpc.spec.models import Optimizer
from dlhpc.train.optimisers import make_optimiser, restore_state, set_rate, state_of

RATE, DECAY, STEPS = 0.3, 0.01, 4


def layer() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, 3)


def gradients() -> list[list[Tensor]]:
    """Of weight and bias, for each step."""
    torch.manual_seed(2)
    return [[torch.randn(3, 5), torch.randn(3)] for _ in range(STEPS)]


def moved(name: str) -> nn.Linear:
    network = layer()
    optimiser = make_optimiser(Optimizer(name=name, weight_decay=DECAY), network.parameters())
    for step in gradients():
        for parameter, gradient in zip(network.parameters(), step):
            parameter.grad = gradient.clone()
        set_rate(optimiser, RATE)
        optimiser.step()
    return network


def test_lars_scales_each_layer_by_the_trust_ratio_but_not_biases() -> None:
    expected, speed = [p.detach().double() for p in layer().parameters()], [0.0, 0.0]
    for weight_gradient, bias_gradient in gradients():
        w, g = expected[0], weight_gradient.double()
        trust = 0.001 * w.norm() / (g.norm() + DECAY * w.norm())
        speed[0] = 0.9 * speed[0] + RATE * trust * (g + DECAY * w)
        speed[1] = 0.9 * speed[1] + RATE * bias_gradient.double()
        expected = [w - speed[0], expected[1] - speed[1]]
    for found, wanted in zip(moved("lars").parameters(), expected):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_lamb_is_adam_with_a_trust_ratio_for_each_layer() -> None:
    expected = [p.detach().double() for p in layer().parameters()]
    first, second = [0.0, 0.0], [0.0, 0.0]
    for number, step in enumerate(gradients(), start=1):
        for index, g in enumerate(gradient.double() for gradient in step):
            first[index] = 0.9 * first[index] + 0.1 * g
            second[index] = 0.999 * second[index] + 0.001 * g * g
            mean, square = first[index] / (1 - 0.9**number), second[index] / (1 - 0.999**number)
            update, trust = mean / (square**0.5 + 1e-6), 1.0
            if index == 0:
                update = update + DECAY * expected[0]
                trust = float(expected[0].norm() / update.norm())
            expected[index] = expected[index] - RATE * trust * update
    for found, wanted in zip(moved("lamb").parameters(), expected):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_weights_of_nothing_but_zeros_can_leave_zero() -> None:
    for name in ("lars", "lamb"):
        weights = nn.Parameter(torch.zeros(2, 2))
        optimiser = make_optimiser(Optimizer(name=name), [weights])
        weights.grad = torch.ones(2, 2)
        set_rate(optimiser, RATE)
        optimiser.step()
        assert weights.abs().min() > 0


def test_groups_have_their_own_rate() -> None:
    slow, fast = (nn.Parameter(torch.ones(3)) for _ in range(2))
    groups = [{"params": [slow], "factor": 0.1}, {"params": [fast], "factor": 1.0}]
    optimiser = make_optimiser(Optimizer(name="sgd", weight_decay=0), groups)
    for parameter in (slow, fast):
        parameter.grad = torch.ones(3)
    set_rate(optimiser, 0.5)
    optimiser.step()
    assert (slow[0].item(), fast[0].item()) == pytest.approx((0.95, 0.5))


def test_taken_up_state_has_the_layout_of_its_parameter() -> None:
    def one() -> tuple[nn.Conv2d, torch.optim.Optimizer]:
        torch.manual_seed(1)
        network = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        return network, make_optimiser(Optimizer(name="sgd"), network.parameters())

    def step(network: nn.Conv2d, optimiser: torch.optim.Optimizer) -> None:
        network(torch.ones(2, 4, 5, 5)).square().sum().backward()
        set_rate(optimiser, 0.01)
        optimiser.step()
        optimiser.zero_grad()

    whole, cut = one(), one()
    step(*whole)
    step(*cut)
    saved = state_of(cut[1])
    for entries in saved["state"].values():
        entries.update({name: value.contiguous() for name, value in entries.items()})  # as a file holds them
    again = one()
    again[0].load_state_dict(cut[0].state_dict())
    restore_state(again[1], saved)
    step(*whole)
    step(*again)
    assert torch.equal(whole[0].weight, again[0].weight)


def test_state_of_other_groups_is_refused() -> None:
    one = make_optimiser(Optimizer(), [nn.Parameter(torch.ones(1))])
    two = make_optimiser(Optimizer(), [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="other groups"):
        restore_state(two, state_of(one))
