"""The run directory: the only channel between the login node and the compute nodes.

``directory`` knows every file's name, ``plan`` is the record of what was decided, ``journal`` the events, ``curves``
the measured numbers, ``state`` computes where a run stands, ``find`` finds runs by name. Nothing here imports torch,
numpy or pydantic.
"""
