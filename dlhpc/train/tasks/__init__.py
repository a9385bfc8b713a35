"""The tasks: what is learnt, by which losses, and how it is measured. ``base`` says what the loop asks of one.

``make_task`` gives the task of a spec, its network freshly initialised; each task is a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlhpc.train.tasks.base import Task

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed
    from dlhpc.spec.models import Spec


def make_task(spec: Spec, packed: Packed) -> Task:
    """The task of ``spec`` for these data. The caller seeds torch's generator, which decides the weights."""
    from dlhpc.train.models import Classifier, build_network, preprocess_for

    height, width = spec.input_size
    image = packed.mean_image if spec.data.normalize == "image" else None
    preprocess = preprocess_for(spec.data.normalize, packed.mean, packed.std, image, height, width)
    network = build_network(spec.network.name, packed.channels, len(packed.classes), height, width)
    match spec.task:
        case "classification":
            from dlhpc.train.tasks.classification import Classification

            return Classification(Classifier(preprocess, network), packed.classes)
        case _:
            raise NotImplementedError(spec.task)
