"""Energy and use of the machine, with counters that are made up."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from dlhpc.train import system
from dlhpc.train.system import Gpu, Meter, Nothing, Processors, meter_for, over_ranks


def zone(folder: Path, name: str, microjoules: int) -> Path:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text("1000000000\n")
    return folder / name


def test_the_energy_of_all_processors_of_a_node_with_counters_that_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_RAPL", tmp_path)
    zone(tmp_path, "intel-rapl:0", 999_000_000)
    zone(tmp_path, "intel-rapl:1", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", 1)  # the cores of processor 0, which are in its sum already
    meter = Meter(torch.device("cpu"), local_rank=0)
    assert not meter.silent
    zone(tmp_path, "intel-rapl:0", 35_000_000)  # 36 joules on
    zone(tmp_path, "intel-rapl:1", 5_000_000)
    assert meter.epoch() == pytest.approx({"energy_kwh": 1e-5})
    assert meter.epoch() == {"energy_kwh": 0.0}


def test_one_rank_of_a_node_looks_and_a_counter_that_may_not_be_read_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_RAPL", tmp_path)
    path = zone(tmp_path, "intel-rapl:0", 5)
    assert isinstance(meter_for(torch.device("cpu"), 0), Processors)
    assert isinstance(meter_for(torch.device("cpu"), 1), Nothing)
    (path / "energy_uj").unlink()
    assert isinstance(meter_for(torch.device("cpu"), 0), Nothing)
    assert Meter(torch.device("cpu"), 0).epoch() == {}


class FakeNvml(types.ModuleType):
    """A GPU that draws 100 W, is half used, and whose memory fills."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules, self.used, self.old = 0, 1e9, False

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
        if self.old:
            raise self.NVMLError("not supported")
        self.millijoules += 3_600_000
        return self.millijoules

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> object:
        return types.SimpleNamespace(gpu=50)

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> object:
        self.used += 1e9
        return types.SimpleNamespace(used=self.used)


def gpu_meter(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> Meter:
    gpu = Gpu(nvml, None)
    monkeypatch.setattr(system, "_INTERVAL_S", 0.001)
    monkeypatch.setattr(system, "meter_for", lambda device, rank: gpu)
    gpu.watch()
    return Meter(torch.device("cpu"), 0)


def test_energy_use_and_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = gpu_meter(monkeypatch, FakeNvml())
    found: dict[str, float] = {}
    while "gpu_memory" not in found:
        found = meter.epoch()
    meter.close()
    assert found["energy_kwh"] == pytest.approx(0.001)
    assert found["gpu_utilisation"] == 0.5
    assert found["gpu_memory"] >= 2e9


def test_an_old_gpu_without_an_energy_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    nvml.old = True
    meter = gpu_meter(monkeypatch, nvml)
    found = meter.epoch()
    meter.close()
    assert "energy_kwh" not in found


def test_a_gpu_without_nvml_trains_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert isinstance(meter_for(torch.device("cuda"), 0), Nothing)


def test_energy_is_summed_over_ranks_use_is_averaged_and_memory_the_greatest() -> None:
    one = {"energy_kwh": 0.25, "gpu_utilisation": 0.5, "gpu_memory": 4e9}
    two = {"energy_kwh": 0.5, "gpu_utilisation": 1.0, "gpu_memory": 3e9}
    assert over_ranks([one, two]) == {"energy_kwh": 0.75, "gpu_utilisation": 0.75, "gpu_memory": 4e9}
    assert over_ranks([{}, {}]) == {}
