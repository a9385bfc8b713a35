"""Fine-tuning: whose weights a network begins with, which layers stay, which learn slowly."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dlhpc.errors import UserError
from dlhpc.spec.network import Network
from dlhpc.train.models import Model, Preprocess, batch_norms, build_network, running_statistics
from dlhpc.train.pretrained import freeze, load_pretrained, parameter_groups, weight_folders


def model_of(name: str = "smallnet", channels: int = 1, classes: int = 4, seed: int = 0, size: int = 64) -> Model:
    torch.manual_seed(seed)
    network = build_network(name, channels, classes, size, size)
    return Model(Preprocess(torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1)), network)


def fine_tuned(model: Model, path: Path | str) -> list[str]:
    return load_pretrained(model, Network(name="smallnet", pretrained=str(path)))


def weights_of(model: Model) -> dict[str, Tensor]:
    return {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in model.network.state_dict().items()
    }


# ---- Trained weights


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "module.network."])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_file_of_weights_is_taken_with_whatever_its_names_begin(tmp_path: Path, prefix: str, ending: str) -> None:
    trained, model = weights_of(model_of(seed=1)), model_of(seed=2)
    file = tmp_path / f"weights.{ending}"
    named = {prefix + name: value for name, value in trained.items()}
    if ending == "pth":
        torch.save({"epoch": 3, "state_dict": named}, file)
    else:
        save_file({**named, "preprocess.mean": torch.full((1, 1, 1), 7.0)} if "network." in prefix else named, file)
    (note,) = fine_tuned(model, file)
    assert "9 of 9 layers" in note
    assert all(torch.equal(value, trained[name]) for name, value in weights_of(model).items())
    assert model.preprocess.mean.item() == 0  # the data's own normalisation stays


def test_layers_that_do_not_fit_begin_anew_and_are_named(tmp_path: Path) -> None:
    trained, model = model_of(classes=10, seed=1), model_of(classes=4, seed=2)
    fresh = weights_of(model)
    save_file(weights_of(trained), tmp_path / "weights.safetensors")
    notes = fine_tuned(model, tmp_path / "weights.safetensors")
    assert notes[1] == "layers that do not fit those weights begin anew: 19"
    assert torch.equal(weights_of(model)["0.weight"], weights_of(trained)["0.weight"])
    assert torch.equal(weights_of(model)["19.weight"], fresh["19.weight"])


def test_a_grey_picture_gives_the_same_as_its_three_equal_channels_gave(tmp_path: Path) -> None:
    colour, grey = model_of(channels=3, seed=1), model_of(channels=1, seed=2)
    save_file(weights_of(colour), tmp_path / "weights.safetensors")
    notes = fine_tuned(grey, tmp_path / "weights.safetensors")
    assert "0 takes 1 instead of 3 channels" in notes[0]
    assert len(notes) == 1
    picture = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        of_grey, of_colour = (
            model.eval()(x).scores for model, x in ((grey, picture), (colour, picture.expand(-1, 3, -1, -1)))
        )
    assert torch.allclose(of_grey, of_colour, atol=1e-5)


def test_five_channels_share_out_what_three_had(tmp_path: Path) -> None:
    save_file(weights_of(model_of(channels=3, seed=1)), tmp_path / "weights.safetensors")
    model = model_of(channels=5)
    fine_tuned(model, tmp_path / "weights.safetensors")
    first, whole = weights_of(model)["0.weight"], weights_of(model_of(channels=3, seed=1))["0.weight"].sum(dim=1)
    assert torch.allclose(first.sum(dim=1), whole, atol=1e-6)
    assert torch.equal(first[:, 0], first[:, 4])


def test_the_weights_of_a_classifier_serve_as_those_of_a_trunk_and_back(tmp_path: Path) -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.ModuleDict({"body": build_network("smallnet", 1, 4, 32, 32)})
            self.head = nn.Conv2d(128, 6, 1)

    save_file(weights_of(model_of(seed=1)), tmp_path / "classifier.safetensors")
    detector = Model(Preprocess(torch.zeros(1, 1, 1), torch.ones(1, 1, 1)), Detector())
    notes = fine_tuned(detector, tmp_path / "classifier.safetensors")
    assert notes[1].endswith("begin anew: head")
    assert torch.equal(weights_of(detector)["trunk.body.0.weight"], weights_of(model_of(seed=1))["0.weight"])
    save_file(weights_of(detector), tmp_path / "detector.safetensors")
    assert "9 of 9" in fine_tuned(model_of(seed=3), tmp_path / "detector.safetensors")[0]


def test_a_pickle_of_other_things_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    for name, save in (
        ("torch.pth", torch.save),
        ("plain.pt", lambda value, path: path.write_bytes(pickle.dumps(value, 2))),
    ):
        save({"0.weight": Bomb()}, tmp_path / name)
        with pytest.raises(UserError, match="weights") as told:
            fine_tuned(model_of(), tmp_path / name)
        assert name in str(told.value)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UserError, match="more than plain tensors"):
        fine_tuned(model_of(), tmp_path / "module.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_files_that_hold_no_weights_are_told_kindly(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"weights.{ending}"
    for content in (b"", b"no weights at all", bytes(range(256)) * 8):
        file.write_bytes(content)
        with pytest.raises(UserError, match="weights"):
            fine_tuned(model_of(), file)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        fine_tuned(model_of(), tmp_path / "list.pth")
    with pytest.raises(UserError, match="no such file or run"):
        fine_tuned(model_of(), tmp_path / "nothing.pth")
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"no layer of this file fits the network \(it has conv.weight"):
        fine_tuned(model_of(), tmp_path / "other.safetensors")


def test_torchvisions_weights_are_taken_from_the_environment_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    wanted = Network(name="resnet18", pretrained="torchvision")
    model = model_of("resnet18", channels=1, classes=4, size=32)
    with pytest.raises(UserError, match=r"weights of resnet18 are not in this environment") as told:
        load_pretrained(model, wanted)
    assert "resnet18-f37072fd.pth" in str(told.value)
    assert str(tmp_path / "share/dlhpc/weights") in str(told.value)
    imagenet = weights_of(model_of("resnet18", channels=3, classes=1000, seed=5))
    for folder in weight_folders():
        folder.mkdir(parents=True)
        torch.save(imagenet, folder / "resnet18-f37072fd.pth")
        notes = load_pretrained(model, wanted)
        assert str(folder) in notes[0]
        assert "conv1 takes 1 instead of 3 channels" in notes[0]
        assert notes[1].endswith("begin anew: fc")
        (folder / "resnet18-f37072fd.pth").unlink()


def test_a_network_that_torchvision_has_not_trained_is_told_so() -> None:
    with pytest.raises(UserError, match="torchvision has no trained weights of lenet"):
        load_pretrained(model_of(), Network(name="lenet", pretrained="torchvision"))


def test_a_detector_begins_with_the_weights_of_its_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name, options, file in (
        ("detectnet", {}, "googlenet-1378be20.pth"), ("retinanet", {"backbone": "resnet18"}, "resnet18-f37072fd.pth"),
        ("ssdlite", {}, "ssdlite320_mobilenet_v3_large_coco-a79551df.pth"),
    ):  # fmt: skip
        with pytest.raises(UserError) as told:
            load_pretrained(model_of(), Network(name=name, options=options, pretrained="torchvision"))  # type: ignore[arg-type]
        assert file in str(told.value)


def test_without_the_setting_nothing_happens() -> None:
    assert load_pretrained(model_of(), Network(name="smallnet")) == []


# ---- Layers that stay, and layers that learn slowly


def test_frozen_layers_and_their_statistics_stay_as_they_are() -> None:
    model = model_of()
    freeze(model, ["0", "1"])
    before = weights_of(model)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    with running_statistics(batch_norms(model)):  # gives them back to training, but not the frozen one
        pass
    model(torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)).scores.sum().backward()
    optimiser.step()
    after = weights_of(model)
    changed = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed.isdisjoint({"0", "1"})
    assert {"4", "5", "19"} <= changed


def test_numbers_in_names_count_as_a_whole() -> None:
    model = model_of()
    freeze(model, ["1"])
    frozen = {name for name, parameter in model.network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"1.weight", "1.bias"}  # neither 12 nor 19


def test_words_that_fit_no_layer_are_told_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"network.freeze names `feature`[^→]*→ The network has: conv1, bn1, layer1"):
        freeze(model_of("resnet18"), ["feature"])
    with pytest.raises(UserError, match=r"learning_rate\.factors names `head`"):
        parameter_groups(model_of(), {"head": 0.1})
    with pytest.raises(UserError, match="leaves nothing to learn"):
        freeze(model_of("alexnet"), ["features", "classifier"])


def test_the_longest_beginning_says_the_rate() -> None:
    model = model_of("resnet18")
    freeze(model, ["conv1"])
    groups = parameter_groups(model, {"layer": 0.1, "layer4": 0.5, "fc": 2})
    names = {parameter: name for name, parameter in model.network.named_parameters()}
    found = {group["factor"]: {names[p].partition(".")[0] for p in group["params"]} for group in groups}
    assert found == {1.0: {"bn1"}, 0.1: {"layer1", "layer2", "layer3"}, 0.5: {"layer4"}, 2.0: {"fc"}}
    assert sum(len(group["params"]) for group in groups) == len(names) - 1
    (whole,) = parameter_groups(model_of(), {})
    assert whole["factor"] == 1.0
    assert len(whole["params"]) == len(list(model_of().parameters()))
