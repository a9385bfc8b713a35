"""From the user's pictures to batches: which picture is in which class and split, one packed file, its batches.

On the login node ``catalog`` lists the pictures, ``splits`` shares them out (both need the standard library only),
``starter`` writes a first spec for a folder of them. In the job, before its ranks start, ``pack``
(``python -m dlhpc.data RUN``) brings all to one size in one file, reading each with ``pictures``; ``packed`` reads that
file, ``batches`` gives each rank its augmented share. Nothing here imports torch.
"""
