"""`dlhpc logs` and `dlhpc status` as people meet them, without a scheduler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlhpc.cli.status import logs, print_log, status
from dlhpc.errors import StorageError
from dlhpc.runs.directory import RunDirectory, create_run
from dlhpc.runs.find import find_run
from dlhpc.runs.journal import Event, record


def new_run(runs: Path) -> RunDirectory:
    return create_run(runs, "cars", lambda hidden, _: record(hidden, Event.CREATED))


def test_a_letter_that_is_written_in_two_halves_is_followed_whole(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    log = tmp_path / "1.out"
    log.write_bytes(b"epoch 1 " + first)
    reached = print_log(log, 0)
    with log.open("ab") as file:
        file.write(second + b"\n")
    assert print_log(log, reached) == len("epoch 1 é\n".encode())
    assert capsysbinary.readouterr().out.decode() == "epoch 1 é\n"


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.log(1).write_text("one\ntwo\nthree\n")
    assert CliRunner().invoke(logs, [str(run.path), "-n", "2"]).output == "two\nthree\n"
    assert CliRunner().invoke(logs, [str(run.path), "-n", "0"]).output == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_colleagues_private_folder_does_not_hide_the_runs_beside_it(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    private = tmp_path / "private-20260101-120000-ab12"
    private.mkdir(mode=0o000)
    assert run.name in CliRunner().invoke(status, ["--runs", str(tmp_path)]).output
    with pytest.raises(StorageError, match="whether you may read it"):
        find_run(str(private), tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_disk_that_is_full_is_not_called_a_fault_of_dlhpc(tmp_path: Path) -> None:
    new_run(tmp_path)
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dlhpc", "status", "--runs", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "cannot write the output: No space left on device" in done.stderr
    assert "fault" not in done.stderr
