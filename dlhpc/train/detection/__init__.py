"""Finding objects: the networks, what they are taught in each cell or anchor, and how what they find is measured.

``base`` says what the task asks of a network; ``detectnet`` is NVIDIA's DetectNet with its targets in ``coverage``
and its decoding in ``grouping``; ``library`` holds torchvision's SSDlite, RetinaNet and FCOS; ``networks`` finds them
by name; ``measures`` compares what was found with the true boxes, ``average_precision`` asks pycocotools.
"""

from __future__ import annotations
