"""The real Slurm as pytest fixtures: import them where they are wanted (or in a conftest.py)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm_cluster import CLIENT_VARIABLES, SlurmCluster, temporary_cluster


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[SlurmCluster]:
    """One cluster for many tests; take :func:`slurm`, which leaves it as it was."""
    with temporary_cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_session: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """A real Slurm of two nodes with nothing on it, and an environment in which its commands find it."""
    _enter(slurm_session, monkeypatch)
    yield slurm_session
    slurm_session.reset()


@pytest.fixture(scope="session")
def slurm_accounting_session() -> Iterator[SlurmCluster]:
    """As :func:`slurm_session`, with slurmdbd."""
    with temporary_cluster(accounting=True) as cluster:
        yield cluster


@pytest.fixture
def slurm_accounting(slurm_accounting_session: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """As :func:`slurm`, with `sacct`."""
    _enter(slurm_accounting_session, monkeypatch)
    yield slurm_accounting_session
    slurm_accounting_session.reset()


def _enter(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(CLIENT_VARIABLES)]:
        monkeypatch.delenv(name)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
