"""Normalisation and network out of a spec, or out of a checkpoint: what classification and regression share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlhpc.errors import UserError
from dlhpc.spec.network import Network
from dlhpc.train.models import Model, Preprocess, build_network, preprocess_for
from dlhpc.train.own import Shape, own_network
from dlhpc.train.pretrained import freeze

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed
    from dlhpc.runs.checkpoints import CheckpointRecord
    from dlhpc.spec.models import Spec


def make_model(spec: Spec, packed: Packed, outputs: int) -> Model:
    """The network that ``spec`` names with fresh weights and ``outputs`` outputs, behind the data's normalisation.

    Frozen layers are frozen already; pretrained weights come later (:func:`dlhpc.train.pretrained.load_pretrained`),
    as a resumed run does not need them. The caller seeds torch's generator.
    """
    shape = shape_for(spec, packed, outputs)
    if shape.kind == "table":
        preprocess = Preprocess(torch.from_numpy(packed.mean), torch.from_numpy(packed.std))
    else:
        image = packed.mean_image if spec.data.normalize == "image" else None
        preprocess = preprocess_for(spec.data.normalize, packed.mean, packed.std, image, shape.height, shape.width)
    model = Model(preprocess, network_for(spec.network, shape))
    freeze(model, spec.network.freeze)
    return model


def restore_model(record: CheckpointRecord, weights: dict[str, Tensor], outputs: int) -> Model:
    """The trained network of a checkpoint with its normalisation; a user's own file is executed again."""
    settings, shape = _settings(record), shape_in(record, outputs)
    # Weights come from the file; drawing random ones first would only cost time. Users' code may not know `meta`.
    with torch.device("cpu" if settings.file else "meta"):
        network = network_for(settings, shape)
    below = {name.removeprefix("network."): value for name, value in weights.items() if name.startswith("network.")}
    network.load_state_dict(below, assign=True)
    return Model(Preprocess(weights["preprocess.mean"], weights["preprocess.std"]), network)


def network_for(settings: Network, shape: Shape) -> nn.Module:
    """A fresh network; :class:`UserError` if it is not made for data of this kind, or the user's file is at fault."""
    if settings.file is not None:
        return own_network(settings.file, settings.options, shape)
    if settings.options:
        raise UserError(
            f"network.options ({', '.join(settings.options)}) mean nothing to {settings.name}",
            remedy="They are for the function of your own network.file, and for some networks of task detection.",
        )
    if (settings.name == "mlp") != (shape.kind == "table"):
        raise UserError(
            f"network.name is {settings.name}, but the data holds "
            + ("rows of a table" if shape.kind == "table" else "pictures"),
            remedy="Rows of a table need mlp, or your own network.file; pictures need another network.",
        )
    if settings.name == "mlp":
        from dlhpc.train.tables_network import mlp

        return mlp(shape.features, shape.outputs, settings.hidden, settings.dropout)
    return build_network(settings.name, shape.channels, shape.outputs, shape.height, shape.width)


def shape_for(spec: Spec, packed: Packed, outputs: int) -> Shape:
    """What the network of ``spec`` gets and gives."""
    classes = tuple(packed.classes)
    if packed.kind == "table":
        return Shape("table", 0, 0, 0, len(packed.features), outputs, classes)
    height, width = spec.augment.crop_size or (packed.height, packed.width)
    return Shape("pictures", packed.channels, height, width, 0, outputs, classes)


def shape_in(record: CheckpointRecord, outputs: int) -> Shape:
    """The same out of a checkpoint's manifest; raises KeyError if that lacks something."""
    given, classes = record.input, tuple(record.classes)
    if given.get("kind") == "table":
        return Shape("table", 0, 0, 0, len(given["features"]), outputs, classes)
    return Shape("pictures", given["channels"], given["height"], given["width"], 0, outputs, classes)


def _settings(record: CheckpointRecord) -> Network:
    """The spec's section ``network``. A run may have been moved: its own copy of a user's file lies beside it."""
    settings = Network.model_validate(record.settings.get("network") or {"name": record.network})
    if settings.file is not None:
        beside = record.manifest.parent.parent / "code" / Path(settings.file).name
        if beside.is_file():
            return settings.model_copy(update={"file": str(beside)})
    return settings
