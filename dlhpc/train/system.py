"""What a rank's part of the machine does: energy of GPU or processor, use and memory of the GPU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_INTERVAL_S = 2.0
_JOULES_PER_KWH = 3.6e6
_RAPL = Path("/sys/class/powercap")


@dataclass
class Gpu:
    """One GPU through NVML (https://docs.nvidia.com/deploy/nvml-api), looked at every two seconds by a thread."""

    nvml: Any
    handle: Any
    _used: list[float] = field(default_factory=list)
    _memory: float = 0.0
    _end: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        threading.Thread(target=self._look, name="nvml", daemon=True).start()

    def _look(self) -> None:
        while not self._end.wait(_INTERVAL_S):
            with contextlib.suppress(self.nvml.NVMLError):
                self._used.append(self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu / 100)
                self._memory = max(self._memory, float(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used))

    def joules(self) -> float | None:
        """Since the driver was loaded; the counter is refreshed every 20 to 100 ms. Older GPUs have none."""
        with contextlib.suppress(self.nvml.NVMLError):
            return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1000
        return None

    def take(self) -> dict[str, float]:
        """Mean use (0 to 1) and greatest memory (bytes) since the last call; nothing if it was too short a time."""
        used, self._used = self._used, []
        memory, self._memory = self._memory, 0.0
        return {"gpu_utilisation": sum(used) / len(used), "gpu_memory": memory} if used else {}

    def close(self) -> None:
        self._end.set()


@dataclass
class Processors:
    """The processors of a node through Linux' powercap (RAPL), where ordinary users may read it."""

    zones: list[Path]
    _last: list[int] = field(default_factory=list)
    _sum: float = 0.0

    def joules(self) -> float | None:
        """Since the first call. The counters are small and begin again; they must be read more than once an hour."""
        try:
            now = [int((zone / "energy_uj").read_text()) for zone in self.zones]
            for zone, before, after in zip(self.zones, self._last or now, now):
                wrapped = int((zone / "max_energy_range_uj").read_text()) if after < before else 0
                self._sum += (after - before + wrapped) / 1e6
        except (OSError, ValueError):
            return None
        self._last = now
        return self._sum

    def take(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


@dataclass
class Nothing:
    """Nothing can be asked here."""

    def joules(self) -> float | None:
        return None

    def take(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


def meter_for(device: torch.device, local_rank: int) -> Gpu | Processors | Nothing:
    """Of this rank's GPU; without one the node's processors, which its first rank looks at."""
    if device.type == "cuda":
        return _gpu(device) or Nothing()
    if local_rank == 0 and (zones := list(_readable_zones())):
        return Processors(zones)
    return Nothing()


def _gpu(device: torch.device) -> Gpu | None:
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return None
    with contextlib.suppress(pynvml.NVMLError, AttributeError):
        pynvml.nvmlInit()
        # By its identity: CUDA_VISIBLE_DEVICES renumbers GPUs for torch, not for NVML.
        identity = str(torch.cuda.get_device_properties(device).uuid)
        gpu = Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}".encode()))
        gpu.watch()
        return gpu
    return None


def _readable_zones() -> Iterator[Path]:
    """``intel-rapl:0`` … are whole processors; those with two colons are parts of one."""
    for zone in sorted(_RAPL.glob("*rapl:*")):
        with contextlib.suppress(OSError, ValueError):
            if zone.name.count(":") == 1 and int((zone / "energy_uj").read_text()) >= 0:
                yield zone


class Meter:
    """What an epoch cost on this rank."""

    def __init__(self, device: torch.device, local_rank: int) -> None:
        self._source = meter_for(device, local_rank)
        self._joules = self._source.joules()
        self.silent = isinstance(self._source, Nothing)
        """This rank will never have anything to say."""

    def epoch(self) -> dict[str, float]:
        """Since the last call: ``energy_kwh``, ``gpu_utilisation``, ``gpu_memory``, as far as they are known."""
        found = self._source.take()
        now = self._source.joules()
        if now is not None and self._joules is not None:
            found["energy_kwh"] = (now - self._joules) / _JOULES_PER_KWH
        self._joules = now
        return found

    def close(self) -> None:
        self._source.close()


def over_ranks(found: list[dict[str, float]]) -> dict[str, float]:
    """Energy of all ranks together, mean use, greatest memory. Energy that a rank cannot tell is not guessed."""
    together: dict[str, float] = {}
    for name, combine in (("energy_kwh", sum), ("gpu_utilisation", _mean), ("gpu_memory", max)):
        values = [one[name] for one in found if name in one]
        if values:
            together[name] = combine(values)
    return together


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
