"""The local scheduler's jobs that are held, and those that wait for others to end."""

from __future__ import annotations

import pytest

from dlhpc.errors import UserError
from dlhpc.schedulers.base import JobState
from dlhpc.schedulers.local_spool import Spool
from tests.schedulers.desk import Desk, until

UNTIL_GO = "until test -f go; do sleep 0.05; done"


# --- Held jobs --------------------------------------------------------------------------------------------------


def test_a_job_submitted_held_starts_when_it_is_released(desk: Desk) -> None:
    job = desk.submit("a", "echo ran", held=True)
    status = desk.status(job)
    assert (status.state, status.reason) == (JobState.HELD, "held until it is released")
    desk.scheduler.release([job])
    assert desk.ended(job).exit_code == 0


def test_a_waiting_job_can_be_held_and_holds_up_nobody(desk: Desk) -> None:
    first = desk.submit("a", UNTIL_GO, cores=2)
    held, next_one = desk.submit("b", "touch b-ran", cores=2), desk.submit("c", "true", cores=2)
    desk.scheduler.hold([held])
    desk.scheduler.hold([held])
    (desk.folder / "go").touch()
    assert desk.ended(next_one).exit_code == 0
    assert desk.status(held).state == JobState.HELD
    assert not desk.has("b-ran")()
    with pytest.raises(UserError, match=f"too late to hold {first}"):
        desk.scheduler.hold([first])
    desk.scheduler.release([held, first])
    assert desk.ended(held).exit_code == 0


def test_a_held_job_can_be_cancelled(desk: Desk) -> None:
    job = desk.submit("a", "touch a-ran", held=True)
    desk.cancel(job)
    desk.scheduler.release([job])
    assert (desk.status(job).state, desk.status(job).reason) == (JobState.ENDED, "cancelled")
    assert sorted(path.name for path in desk.job_folder(job).path.iterdir()) == [
        "ended.json",
        "job.json",
        "started.json",
    ]


# --- Jobs that wait for others ----------------------------------------------------------------------------------


def test_a_job_starts_when_the_one_before_it_has_ended_and_nobody_asks(desk: Desk) -> None:
    first = desk.submit("a", f"{UNTIL_GO}; echo a >> order")
    second = desk.submit("b", "echo b >> order", after={first: "afterok"})
    third = desk.submit("c", "echo c >> order; touch all", after={first: "afterany", second: "afterok"})
    status = desk.scheduler.query([second, third])
    assert [one.state for one in status.values()] == [JobState.QUEUED, JobState.QUEUED]
    assert status[second].reason == f"waits for the end of job {first} (afterok)"
    assert desk.ended(desk.submit("d", "true")).exit_code == 0  # goes past them
    (desk.folder / "go").touch()
    until(desk.has("all"))
    assert (desk.folder / "order").read_text().split() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("code", "kind", "starts"),
    [
        (0, "afterok", True),
        (3, "afterok", False),
        (0, "afternotok", False),
        (3, "afternotok", True),
        (0, "afterany", True),
        (3, "afterany", True),
    ],
)
def test_how_the_first_ended_decides_whether_the_second_starts(desk: Desk, code: int, kind: str, starts: bool) -> None:
    first = desk.submit("a", f"exit {code}")
    desk.ended(first)
    second = desk.submit("b", "touch b-ran", after={first: kind})
    status = desk.ended(second)
    assert desk.has("b-ran")() == starts
    if not starts:
        wanted = "well" if kind == "afterok" else "badly"
        why = f"cannot start any more: job {first}, which had to end {wanted} ({kind}), ended with code {code}"
        assert (status.exit_code, status.reason) == (None, why)


def test_a_chain_that_cannot_go_on_ends_whole_and_with_reasons(desk: Desk) -> None:
    first = desk.submit("a", UNTIL_GO)
    second = desk.submit("b", "true", after={first: "afternotok"})
    third = desk.submit("c", "true", after={second: "afternotok"})
    last = desk.submit("d", "touch d-ran", after={third: "afterany"})
    (desk.folder / "go").touch()
    assert f"job {first}, which had to end badly (afternotok), ended with code 0" in str(desk.ended(second).reason)
    assert f"job {second}, which had to end badly (afternotok), never ran" in str(desk.ended(third).reason)
    assert desk.ended(last).exit_code == 0
    assert [folder.number for folder in Spool.here().live()] == []


def test_a_chain_cancelled_from_its_end_never_starts(desk: Desk) -> None:
    first = desk.submit("a", UNTIL_GO)
    second = desk.submit("b", "touch b-ran", after={first: "afternotok"})
    desk.cancel(second, first)
    assert [desk.status(job).reason for job in (first, second)] == ["cancelled", "cancelled"]
    assert not desk.has("b-ran")()


def test_a_job_that_nobody_knows_any_more_has_ended_but_nobody_knows_how(desk: Desk) -> None:
    assert desk.ended(desk.submit("a", "true", after={"99.gone": "afterany"})).exit_code == 0
    status = desk.ended(desk.submit("b", "true", after={"99.gone": "afterok"}))
    assert "job 99.gone, which had to end well (afterok), is not known any more" in str(status.reason)


def test_how_a_job_ended_is_waited_for_if_it_cannot_be_read(desk: Desk) -> None:
    first = desk.submit("a", "true")
    desk.ended(first)
    record = desk.job_folder(first).path / "ended.json"
    whole = record.read_text()
    record.write_text("{")
    second = desk.submit("b", "true", after={first: "afterok"})
    status = desk.status(second)
    assert status.state == JobState.QUEUED
    assert f"how job {first} ended cannot be read" in str(status.reason)
    record.write_text(whole)
    assert desk.ended(second).exit_code == 0


# --- What the scheduler says before a submission ----------------------------------------------------------------


def test_the_start_is_now_where_there_is_room_and_else_not_known(desk: Desk) -> None:
    assert desk.scheduler.estimate_start(desk.request("x", "", cores=2)).start is not None
    first = desk.submit("a", UNTIL_GO)
    assert desk.scheduler.estimate_start(desk.request("x", "")).how == "this machine has room for it now"
    full = desk.scheduler.estimate_start(desk.request("x", "", cores=2))
    assert (full.start, full.how) == (None, f"waits for this machine's running jobs: {first}")
    second = desk.submit("b", "true", cores=2)
    behind = desk.scheduler.estimate_start(desk.request("x", ""))
    assert (behind.start, behind.how) == (None, f"waits behind job {second} of this machine's queue")


def test_what_it_cannot_do_is_said_kindly(desk: Desk) -> None:
    with pytest.raises(UserError, match="has no arrays"):
        desk.scheduler.member_ids("1.host", [1, 2])
    with pytest.raises(UserError, match="cannot requeue"):
        desk.scheduler.requeue("1.host")
