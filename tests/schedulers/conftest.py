"""What tests of several schedulers need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dlhpc.schedulers.local_spool import Spool
from tests.schedulers.desk import ROOT, Desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("DLHPC_LOCAL_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("DLHPC_LOCAL_CORES", "2")
    monkeypatch.setenv("DLHPC_LOCAL_GPUS", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "my runs"
    folder.mkdir()
    desk = Desk(folder)
    yield desk
    for job in [Spool.here().job_id(live) for live in reversed(Spool.here().live())]:
        desk.cancel(job)
