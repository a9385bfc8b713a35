"""A user's own network, losses and measures in a Python file: what works, and what is told when it does not."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from dlhpc.errors import UserError
from dlhpc.train.collective import SingleCollective
from dlhpc.train.models import Model, Preprocess
from dlhpc.train.own import OwnTask, Shape, load_own, own_network, own_task
from dlhpc.train.tasks.base import DeviceBatch
from dlhpc.train.tasks.classification import Classification

PICTURES = Shape("pictures", 1, 16, 24, 0, 3, ("cat", "dog", "owl"))
GOOD = """
    from torch import nn

    def network(shape, width=8):
        return nn.Sequential(
            nn.Conv2d(shape.channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, shape.outputs),
        )
"""


def own(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(text))
    return file


def refused(tmp_path: Path, text: str, **options: object) -> str:
    with pytest.raises(UserError) as told:
        own_network(own(tmp_path, text), dict(options), PICTURES)
    return str(told.value)


# ---- Networks


def test_an_own_network_gets_the_shape_and_the_options_of_the_spec(tmp_path: Path) -> None:
    network = own_network(own(tmp_path, GOOD), {"width": 5}, PICTURES)
    assert network[1].running_mean.abs().sum() == 0  # the trial has left no trace
    assert network[0].out_channels == 5
    assert network.training
    assert network(torch.zeros(2, 1, 16, 24)).shape == (2, 3)


def test_the_trial_does_not_change_the_weights_that_the_seed_decides(tmp_path: Path) -> None:
    file = own(tmp_path, GOOD + "\n    network.tried = True\n")
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        network = own_network(file, {}, PICTURES)
        found.append((network[0].weight.clone(), torch.rand(1)))
    torch.manual_seed(3)
    plain = load_own(file).module.network(PICTURES)
    assert torch.equal(found[0][0], plain[0].weight)
    assert found[0][1] == found[1][1] == torch.rand(1)


def test_a_network_for_rows_of_a_table(tmp_path: Path) -> None:
    file = own(tmp_path, "from torch import nn\ndef network(shape): return nn.Linear(shape.features, shape.outputs)\n")
    assert own_network(file, {}, Shape("table", 0, 0, 0, 7, 2))(torch.zeros(3, 7)).shape == (3, 2)


def test_errors_name_the_line_of_the_users_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    told = refused(tmp_path, "import torch\n\ndef network(shape)\n    return 1\n")
    assert told.startswith(f"{file}:3: line 3 is not Python")
    told = refused(tmp_path, "import torch\n\nimport no_such_package\n")
    assert told.startswith(
        f"{file}:3: cannot be loaded in line 3: ModuleNotFoundError: No module named 'no_such_package'"
    )
    told = refused(tmp_path, "def helper():\n    return 1 / 0\n\ndef network(shape):\n    return helper()\n")
    assert told.startswith(f"{file}:2: network() failed in line 2: ZeroDivisionError: division by zero")
    told = refused(tmp_path, GOOD, widht=3)
    assert told.startswith(f"{file}:4: network() failed in line 4: TypeError")
    assert "widht" in told
    told = refused(tmp_path, "import sys\nsys.exit(3)\n")
    assert told.startswith(f"{file}:2: cannot be loaded in line 2: SystemExit")
    for text in (told, refused(tmp_path, "x = 1\n")):
        assert "Traceback" not in text
        assert "\n  → " in text


def test_what_is_no_network_for_these_data_is_told_before_training(tmp_path: Path) -> None:
    assert "has no function `network`" in refused(tmp_path, "def net(shape): pass\n")
    assert "`network` is no function" in refused(tmp_path, "network = 3\n")
    assert "network() gave nothing" in refused(tmp_path, "def network(shape): pass\n")
    assert "no weights to learn" in refused(tmp_path, "from torch import nn\ndef network(shape): return nn.Flatten()\n")
    told = refused(
        tmp_path,
        "from torch import nn\n\ndef network(shape):\n    return nn.Sequential(nn.Flatten(), nn.Linear(16 * 24, 5))\n",
    )
    assert "mine.py:3: the network gives 2×5 (float32) for 2 samples" in told
    assert "2×3 numbers" in told
    told = refused(
        tmp_path,
        "from torch import nn\n\ndef network(shape):\n    return nn.Sequential(nn.Flatten(), nn.Linear(7, 3))\n",
    )
    assert "the network failed: RuntimeError" in told
    told = refused(
        tmp_path,
        """
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.last = nn.Linear(16 * 24, 3)

            def forward(self, x):
                return self.last(x.flatten()).view(3)

        def network(shape):
            return Net()
        """,
    )
    assert "mine.py:10: the network failed in line 10: RuntimeError" in told  # two pictures do not fit its flatten()


# ---- Whose code it is


def test_somebody_elses_file_is_not_executed_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = own(tmp_path, f"open({str(tmp_path / 'executed')!r}, 'w')\n" + textwrap.dedent(GOOD))
    me = os.getuid()
    monkeypatch.delenv("DLHPC_TRUST", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    if me == 0:  # root's files are trusted by all
        os.chown(file, 12345, -1)
    with pytest.raises(UserError, match="code that would be executed, and it belongs to") as told:
        own_network(file, {}, PICTURES)
    assert "DLHPC_TRUST=1" in str(told.value)
    assert not (tmp_path / "executed").exists()
    monkeypatch.setenv("DLHPC_TRUST", "1")
    own_network(file, {}, PICTURES)
    assert (tmp_path / "executed").exists()


def test_a_file_that_everybody_may_change_is_not_executed_either(tmp_path: Path) -> None:
    file = own(tmp_path, GOOD)
    file.chmod(0o666)
    with pytest.raises(UserError, match="may be changed by everybody"):
        load_own(file)


# ---- Losses and measures


def task_of(tmp_path: Path, text: str) -> OwnTask:
    return own_task(own(tmp_path, text))


OUTPUTS, TARGETS = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])


def test_an_own_loss_is_trained_on_and_measured(tmp_path: Path) -> None:
    mine = task_of(
        tmp_path,
        """
        def loss(outputs, targets):
            return (outputs.softmax(dim=1).gather(1, targets[:, None])[:, 0] - 1) ** 2
        """,
    )
    assert mine.check(OUTPUTS, TARGETS) == ()
    model = Model(Preprocess(torch.zeros(3), torch.ones(3)), nn.Identity())
    task = Classification(model, ["cat", "dog", "owl"], own=mine)
    expected = (OUTPUTS.softmax(dim=1)[torch.arange(5), TARGETS] - 1) ** 2
    found = task.losses(DeviceBatch(OUTPUTS, TARGETS))
    assert found.total.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    assert found.sums[0].item() == pytest.approx(expected.sum().item(), rel=1e-5)
    measure = task.measure()
    measure.add(DeviceBatch(OUTPUTS, TARGETS))
    assert measure.finish(SingleCollective()).metrics["loss"] == pytest.approx(expected.mean().item(), rel=1e-5)


def test_own_measures_are_means_over_all_samples(tmp_path: Path) -> None:
    mine = task_of(
        tmp_path,
        """
        def measures(outputs, targets):
            return {"distance": (outputs.argmax(dim=1) - targets).abs(), "certain": outputs.softmax(dim=1).amax(dim=1)}
        """,
    )
    names = mine.check(OUTPUTS, TARGETS)
    assert names == ("certain", "distance")
    model = Model(Preprocess(torch.zeros(3), torch.ones(3)), nn.Identity())
    task = Classification(model, ["cat", "dog", "owl"], own=mine, own_measures=names)
    measure = task.measure()
    for rows in (slice(0, 1), slice(1, 5)):
        measure.add(DeviceBatch(OUTPUTS[rows], TARGETS[rows]))
    found = measure.finish(SingleCollective()).metrics
    assert found["distance"] == pytest.approx((OUTPUTS.argmax(dim=1) - TARGETS).abs().float().mean().item())
    assert found["certain"] == pytest.approx(OUTPUTS.softmax(dim=1).amax(dim=1).mean().item(), rel=1e-6)
    assert {"loss", "accuracy"} <= set(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def loss(outputs, targets):\n    return outputs.mean()\n", "mine.py:1: loss() gave a single number"),
        ("def loss(outputs, targets):\n    return outputs\n", "loss() gave 5×3 (float32) for 5 samples"),
        ("def loss(outputs, targets):\n    return 1.0\n", "loss() gave a float"),
        ("def loss(outputs, targets):\n    return outputs.detach()[:, 0]\n", "nothing can be learnt"),
        ("def loss(outputs, targets):\n    x = 1\n    return outputs + targets\n", "mine.py:3: loss() failed"),
        ("def loss(outputs):\n    return outputs\n", "mine.py:1: loss() failed in line 1: TypeError"),
        ("def measures(outputs, targets):\n    return outputs\n", "measures() gave 5×3"),
        ("def measures(outputs, targets):\n    return {'a b': outputs[:, 0]}\n", "calls a measure 'a b'"),
        ("def measures(outputs, targets):\n    return {'loss': outputs[:, 0]}\n", "calls a measure 'loss'"),
        ("def measures(outputs, targets):\n    return {'mine': 3}\n", "measures() → mine gave a int"),
    ],
)
def test_wrong_losses_and_measures_are_told_before_training(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as told:
        task_of(tmp_path, text).check(OUTPUTS, TARGETS)
    assert words in str(told.value)


def test_a_task_file_without_either_is_an_error_and_no_file_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a function `loss` nor `measures`"):
        task_of(tmp_path, "def cost(outputs, targets): ...\n")
    assert not own_task(None).has_loss
    assert own_task(None).check(OUTPUTS, TARGETS) == ()


def test_running_out_of_memory_is_left_to_the_trainer(tmp_path: Path) -> None:
    mine = task_of(tmp_path, "import torch\ndef loss(outputs, targets):\n    raise torch.OutOfMemoryError('full')\n")
    with pytest.raises(torch.OutOfMemoryError):
        mine.loss(OUTPUTS, TARGETS)
