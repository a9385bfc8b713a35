"""What runs inside a job: ``python -m dlhpc.train RUN``, once per rank.

``loop`` is the training, read from top to bottom; ``collective`` how ranks talk, ``gradients`` how gradients are
summed, ``models``, ``optimisers`` and ``schedule`` what is trained and how, ``evaluate`` how it is measured,
``checkpoint`` how it survives, ``stop`` when it must leave early, ``failures`` what it leaves behind when it cannot go
on, ``provenance`` and ``progress`` what it tells.
"""
