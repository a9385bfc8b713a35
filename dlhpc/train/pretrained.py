"""Fine-tuning: beginning with trained weights, keeping layers as they are, a rate of their own for some layers.

Layers are named as the network names them, without the ``network.`` in front that a run's weights file has. The data's
normalisation stays that of the spec: trained first layers expect values of mean 0 and σ 1, and it is the pictures at
hand that must be brought there, not those (ImageNet's, or the other run's) that the weights were learnt from.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for content that it will not execute
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dlhpc.errors import UserError
from dlhpc.files import storage_errors

if TYPE_CHECKING:
    from dlhpc.spec.network import Network

WEIGHTS = Path("share/dlhpc/weights")
"""Folder of an environment where staff place trained weights."""

TORCHVISION: dict[str, tuple[str, ...]] = {
    "alexnet": ("alexnet",), "googlenet": ("googlenet",), "resnet18": ("resnet18",), "resnet50": ("resnet50",),
    "detectnet": ("googlenet",), "retinanet": ("retinanet_{backbone}_fpn_coco", "{backbone}"),
    "fcos": ("fcos_{backbone}_fpn_coco", "{backbone}"), "ssdlite": ("ssdlite320_mobilenet_v3_large_coco",),
}  # fmt: skip
"""Network → beginnings of the names of torchvision's files, best first; detectors may begin with a trained trunk."""

_WRAPPERS = ("module", "network", "model", "_orig_mod", "state_dict")
# Of a batch normalisation, also a fixed one. Other buffers are the network's own matter.
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked", ".weight", ".bias")
_NAMED = 8  # layers that a note names


def network_of(model: nn.Module) -> nn.Module:
    """The network of a task's model, without the normalisation."""
    network = getattr(model, "network", model)
    assert isinstance(network, nn.Module)
    return network


# ---- Layers by the beginning of their names


def begins(name: str, word: str) -> bool:
    """Whether a parameter's name begins with ``word``; numbers count as a whole.

    >>> begins("inception3a.conv.weight", "inception3"), begins("layer10.0.weight", "layer1")
    (True, False)
    """
    if not name.startswith(word):
        return False
    return not (word[-1:].isdigit() and name[len(word) : len(word) + 1].isdigit())


def _demand_known(network: nn.Module, words: Iterable[str], key: str) -> None:
    """:class:`UserError` for a word with which no parameter's name begins."""
    names = [name for name, _ in network.named_parameters()]
    for word in words:
        if not word or not any(begins(name, word) for name in names):
            there = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
            tops = dict.fromkeys(name.partition(".")[0] for name in names)
            raise UserError(
                f"{key} names `{word}`, but no layer of the network begins so",
                remedy=f"The network has: {', '.join(tops if len(there) > 30 else there)}.",
            )


class _Frozen:
    """Mixed into a batch normalisation that must never leave evaluation mode."""

    def train(self, mode: bool = True) -> Any:  # noqa: ARG002
        return super().train(False)  # type: ignore[misc]


def is_frozen_norm(layer: nn.Module) -> bool:
    """Whether this batch normalisation keeps its statistics for good."""
    return isinstance(layer, _Frozen)


def freeze(model: nn.Module, words: Sequence[str]) -> None:
    """Keep the layers whose names begin with one of ``words`` as they are, statistics of batch normalisation included.

    Raises :class:`UserError` for a word that fits nothing, and if nothing is left to learn.
    """
    network = network_of(model)
    _demand_known(network, words, "network.freeze")
    for name, parameter in network.named_parameters():
        if any(begins(name, word) for word in words):
            parameter.requires_grad_(False)
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and not is_frozen_norm(layer) and any(begins(name, word) for word in words):
            # `model.train()` is called in many places; the layer itself knows best.
            layer.__class__ = type(f"Frozen{type(layer).__name__}", (_Frozen, type(layer)), {})
            layer.eval()
    if words and not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(
            "network.freeze leaves nothing to learn",
            remedy="Leave at least the last layers out of it; they must learn your classes or numbers.",
        )


def parameter_groups(model: nn.Module, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters to learn as an optimiser's groups: ``params`` and ``factor``, by which the rate is multiplied.

    The longest of the words in ``factors`` that a name begins with counts; what fits none has the factor 1.
    Raises :class:`UserError` for a word that fits nothing.
    """
    network = network_of(model)
    _demand_known(network, factors, "learning_rate.factors")
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            fitting = [word for word in factors if begins(name, word)]
            factor = float(factors[max(fitting, key=len)]) if fitting else 1.0
            groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]


# ---- Trained weights


def load_pretrained(model: nn.Module, settings: Network) -> list[str]:
    """Put the weights that ``network.pretrained`` names into the model's network; gives sentences about it.

    A no-op without that setting. Only rank 0 needs to call it if it then sends parameters and buffers to the others.
    Raises :class:`UserError` if there are no such weights, the file holds other things, or nothing fits.
    """
    if settings.pretrained is None:
        return []
    path = find_weights(settings)
    found = _peeled(read_weights(path))
    return put_in(network_of(model), found, path)


def find_weights(settings: Network) -> Path:
    """The file or run directory that ``network.pretrained`` means; nothing is ever downloaded."""
    wanted = str(settings.pretrained)
    if wanted != "torchvision":
        path = Path(wanted)
        if not path.exists():
            raise UserError(
                "network.pretrained: there is no such file or run",
                where=path,
                remedy="Check the path, and that the compute nodes see it.",
            )
        return path
    backbone = str(settings.options.get("backbone", "resnet50"))
    known = TORCHVISION.get(settings.name, ()) if settings.file is None else ()
    stems = [stem.format(backbone=backbone) for stem in known]
    if not stems:
        raise UserError(
            f"torchvision has no trained weights of {'your own network' if settings.file else settings.name}",
            remedy=f"It has those of {', '.join(TORCHVISION)}; for others name a run or a file in network.pretrained.",
        )
    folders = weight_folders()
    for stem in stems:
        for folder in folders:
            for pattern in (f"{stem}.safetensors", f"{stem}.pth", f"{stem}-*.pth"):
                if found := sorted(folder.glob(pattern)):
                    return found[-1]
    raise UserError(
        f"the trained weights of {stems[-1]} are not in this environment",
        remedy=f"Ask the staff of your centre: {_what_to_place(stems[-1])} belongs into {folders[0]} "
        "(compute nodes have no internet, so dlhpc does not fetch it).",
    )


def weight_folders() -> list[Path]:
    """Where torchvision's weights may lie: in the environment, or where torch itself keeps them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    return [Path(sys.prefix) / WEIGHTS, Path(os.environ.get("TORCH_HOME") or cache) / "hub" / "checkpoints"]


def _what_to_place(stem: str) -> str:
    """The file and its address, as the torchvision at hand knows them."""
    try:
        from torchvision.models import get_model_weights

        address = str(get_model_weights(stem.removesuffix("_coco")).DEFAULT.url)
    except (ImportError, ValueError, AttributeError):
        return f"{stem}-….pth"
    return f"{address.rpartition('/')[2]} ({address})"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, out of a run directory (its best checkpoint) or a file; nothing in it is executed."""
    if path.is_dir():
        return _weights_of_run(path)
    from safetensors.torch import load_file

    with storage_errors(path, "read"), path.open("rb"):
        pass  # torch's own errors do not tell a missing permission from a damaged file
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            "holds more than plain tensors, and loading it would execute what it says",
            where=path,
            remedy="Save the weights alone: torch.save(model.state_dict(), …), or as .safetensors.",
        ) from error
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, SafetensorError) as error:
        raise UserError(
            f"cannot be read as weights: {_first_line(error)}",
            where=path,
            remedy="Give a .safetensors file, or a .pt or .pth file that torch.save wrote of a state_dict.",
        ) from error
    return _tensors(content, path)


def _weights_of_run(path: Path) -> dict[str, Tensor]:
    from dlhpc.runs.checkpoints import best_checkpoint, list_checkpoints
    from dlhpc.runs.directory import RunDirectory
    from dlhpc.train.checkpoint import load_weights

    run = RunDirectory(path)
    record = best_checkpoint(run) or next(reversed(list_checkpoints(run)), None)
    if record is None:
        raise UserError(
            "network.pretrained: this run has no checkpoint",
            where=path,
            remedy="Name a run that has trained for a while, its folder, or a file of weights.",
        )
    return load_weights(record)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a loaded file, which may lie one level deeper beside an optimiser's state."""
    if isinstance(content, dict):
        for key in ("state_dict", "model_state_dict", "model", "weights"):
            if isinstance(inner := content.get(key), dict):
                content = inner
                break
        found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if found:
            return found
    raise UserError(
        "holds no tensors by name", where=path, remedy="Save the weights alone: torch.save(model.state_dict(), …)."
    )


def _peeled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers put before every name (``module.``, ``network.``); a run's normalisation is left out."""
    while weights:
        rest = {name: value for name, value in weights.items() if not name.startswith("preprocess.")}
        words = {name.partition(".")[0] for name in rest if "." in name}
        if len(words) != 1 or (word := words.pop()) not in _WRAPPERS or any("." not in name for name in rest):
            return rest
        weights = {name.removeprefix(f"{word}."): value for name, value in rest.items()}
    return weights


def put_in(network: nn.Module, found: dict[str, Tensor], path: Path) -> list[str]:
    """Copy what fits by name and shape, at the place in the network, or from the part of the file, where most fits.

    So the weights of a whole network serve as those of a trunk, and the other way round. The first convolution is
    adapted to the number of channels: the sum over the old ones, shared out evenly, so that a grey picture gives what
    it gave as three equal channels.
    """
    wanted = network.state_dict()
    learnt = dict(network.named_parameters())
    first = next((name for name, parameter in learnt.items() if parameter.dim() == 4), None)
    within, below = _best_place(learnt, found)
    taken: list[str] = []
    adapted = ""
    with torch.no_grad():
        for name, target in wanted.items():
            source = found.get(below + name.removeprefix(within)) if name.startswith(within) else None
            if source is None or not (name in learnt or name.endswith(_STATISTICS)):
                continue
            if source.shape != target.shape and name == first and _other_channels(source, target):
                adapted = f"; {_layer(name)} takes {target.shape[1]} instead of {source.shape[1]} channels"
                source = (source.sum(dim=1, keepdim=True) / target.shape[1]).expand(target.shape)
            if source.shape == target.shape:
                target.copy_(source)
                taken.append(name)
    layers = dict.fromkeys(_layer(name) for name in learnt)
    old = {_layer(name) for name in learnt} - {_layer(name) for name in learnt if name not in taken}
    if not old:
        raise UserError(
            f"network.pretrained: no layer of this file fits the network (it has {', '.join(list(found)[:3])} …, "
            f"the network {', '.join(list(learnt)[:3])} …)",
            where=path,
            remedy="Take weights of the same network: network.name must be that of the training they come from.",
        )
    notes = [f"begins with the weights of {path}: {len(old)} of {len(layers)} layers{adapted}"]
    if anew := [layer for layer in layers if layer not in old]:
        more = f" and {len(anew) - _NAMED} more" if len(anew) > _NAMED else ""
        notes.append(f"layers that do not fit those weights begin anew: {', '.join(anew[:_NAMED])}{more}")
    return notes


def _best_place(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[str, str]:
    """Prefixes in the network and in the file, one of them empty, below which most numbers have a name in common."""
    places = [("", "")]
    places += [(prefix, "") for prefix in _prefixes(wanted)] + [("", prefix) for prefix in _prefixes(found)]

    def common(place: tuple[str, str]) -> int:
        within, below = place
        total = 0
        for name, target in wanted.items():
            source = found.get(below + name[len(within) :]) if name.startswith(within) else None
            total += target.numel() if source is not None and source.shape == target.shape else 0
        return total

    return max(places, key=common)  # the first of equal ones: the plainest


def _prefixes(names: Iterable[str]) -> list[str]:
    """All beginnings that end at a point."""
    return sorted({name[: match.end()] for name in names for match in re.finditer(r"\.", name)})


def _other_channels(source: Tensor, target: Tensor) -> bool:
    return source.dim() == 4 and source.shape[0] == target.shape[0] and source.shape[2:] == target.shape[2:]


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
