"""The trained network at work. Its weights file holds the normalisation too: nothing else of the training is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from dlhpc.data.packed import Pictures
from dlhpc.errors import DataError, StorageError
from dlhpc.predict.results import Prediction, Result, Unreadable
from dlhpc.predict.sources import Chunk, Loaded
from dlhpc.runs.checkpoints import CheckpointRecord
from dlhpc.train.checkpoint import load_weights
from dlhpc.train.models import Model
from dlhpc.train.tasks import restore_model

CHUNK = 64
"""Pictures that go through the network at once."""


def load_classifier(record: CheckpointRecord, device: torch.device | None = None) -> Model:
    """The network of a checkpoint, ready to name: weights checked by SHA-256, read as safetensors, never unpickled.

    Raises :class:`StorageError` if a file is damaged or does not fit this version of dlhpc.
    """
    try:
        model = restore_model(record, load_weights(record))
    except StorageError as error:
        raise StorageError(
            error.what, where=error.where, remedy=error.remedy or "Take another with --checkpoint last or a step."
        ) from error
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise StorageError(
            f"does not fit the network `{record.network}` of this version of dlhpc: {str(error).splitlines()[0]}",
            where=record.weights.path,
            remedy="Use the version of dlhpc that trained it.",
        ) from error
    assert isinstance(model, Model)
    return model.to(device or best_device())


def best_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def classify(classifier: Model, classes: list[str], chunks: Iterable[Chunk], top: int) -> Iterator[Result]:
    """Name every picture, in order; at most ``top`` names each. Pictures that could not be read pass through."""
    for chunk in chunks:
        loaded = [one for one in chunk if isinstance(one, Loaded)]
        named = iter(_named(classifier, classes, loaded, top) if loaded else ())
        for one in chunk:
            yield one if isinstance(one, Unreadable) else next(named)


@torch.inference_mode()
def _named(classifier: Model, classes: list[str], loaded: list[Loaded], top: int) -> list[Prediction]:
    device = next(classifier.parameters()).device
    batch = torch.from_numpy(_stack([one.values for one in loaded])).to(device)
    shares, indices = classifier.probabilities(batch).topk(min(top, len(classes)), dim=1)
    if not bool(torch.isfinite(shares).all()):
        raise DataError(
            "the network of this checkpoint gives values that are no numbers",
            remedy="Its training diverged: take an earlier checkpoint with --checkpoint, or see `dlhpc report`.",
        )
    return [
        Prediction(one.path, tuple((classes[index], share) for share, index in zip(row, names)), one.truth)
        for one, row, names in zip(loaded, shares.tolist(), indices.tolist())
    ]


def _stack(pictures: list[Pictures]) -> Pictures:
    """N×C×H×W; 8-bit pictures among 16-bit ones are brought to the same full scale, as packing does."""
    if len({picture.dtype for picture in pictures}) > 1:
        pictures = [
            picture.astype(np.uint16) * np.uint16(257) if picture.dtype == np.uint8 else picture for picture in pictures
        ]
    stacked: Pictures = np.stack(pictures)  # type: ignore[assignment]  # all of one type now
    return stacked
