"""``python -m dlhpc.envs.probe`` under a launcher: do the ranks of a new environment really compute together?

Rank 0 prints one line, ``dlhpc-probe`` and a JSON object; any failure is an exit code other than zero.
"""

from __future__ import annotations

import importlib.util
import json

MARK = "dlhpc-probe "
ELEMENTS = 1_000_000


def main() -> None:
    """Sum a large tensor over all ranks, run one compiled operator of torchvision, and say what was found."""
    import torch

    if importlib.util.find_spec("torchvision") is not None:
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1], [5.0, 5.0, 6.0, 6.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
        if kept.tolist() != [0, 2]:
            raise SystemExit(f"torchvision.ops.nms gives {kept.tolist()} instead of [0, 2]")

    import horovod.torch as hvd

    hvd.init()
    ranks = hvd.size()
    summed = hvd.allreduce(torch.full((ELEMENTS,), float(hvd.rank() + 1)), op=hvd.Sum, name="probe")
    expected = ranks * (ranks + 1) / 2
    if not bool((summed == expected).all()):
        raise SystemExit(f"the sum over {ranks} ranks is {summed[0].item()} instead of {expected}")
    library = ""
    if hvd.mpi_enabled() and importlib.util.find_spec("mpi4py") is not None:
        from mpi4py import MPI

        library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip("\x00 ")
    found = {
        "ranks": ranks,
        "mpi_built": bool(hvd.mpi_built()),
        "gloo_built": bool(hvd.gloo_built()),
        "nccl_built": bool(hvd.nccl_built()),
        "mpi_library": library,
    }
    if hvd.rank() == 0:
        print(MARK + json.dumps(found), flush=True)
    hvd.shutdown()


if __name__ == "__main__":
    main()
