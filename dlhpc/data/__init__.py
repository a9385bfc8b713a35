"""From the user's pictures to batches: which picture is in which class and split, one packed file, its batches.

``catalog`` (login node, standard library only) lists and splits the pictures, ``starter`` writes a first spec for a
folder of them, ``pictures`` reads one of them, ``pack`` (``python -m dlhpc.data RUN``, before the ranks start) brings
all to one size in one file, ``packed`` reads that file, ``batches`` gives each rank its augmented share. Nothing here
imports torch.
"""
