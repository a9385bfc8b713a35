"""Strict doubles of batch systems that this machine does not have: OpenPBS, Torque and LoadLeveler.

``with PbsDouble(folder, nodes=2, cores=8, gpus=2) as pbs:`` puts ``qsub``, ``qstat`` and so on into a folder on PATH
(``pbs.environment``); they parse, refuse, run, kill and report as the real ones. See :mod:`tests.doubles.machines`.
What OpenPBS does was seen on a real server of version 23.06, as far as the tests of the doubles name it. Torque and
LoadLeveler are built from their manuals and from programs that talk to them; where only the meaning of a message is
known, its wording is ours, and the module says so. None of them imports anything of dlhpc.
The executables import only what they need, so the Python side loads late.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Double", "LoadLevelerDouble", "PbsDouble", "TorqueDouble"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tests.doubles import machines

        return getattr(machines, name)
    raise AttributeError(name)
