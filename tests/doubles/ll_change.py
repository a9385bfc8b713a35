"""What a user may do to LoadLeveler steps: llcancel, llhold.

Both only send a request to the central manager and say so; what it does with an unknown id is not told to the user.
That the message stays the same for ``llhold -r`` is our assumption.
"""

from __future__ import annotations

from tests.doubles.engine import Job, Store, advance, ask_runner, end_without_running, fail
from tests.doubles.ll_show import listed, matches


def _named(store: Store, command: str, argv: list[str]) -> list[Job]:
    words = [word for word in argv if not word.startswith("-")]
    if not words:
        raise fail(f"{command}: Usage: {command} [-?] [-H] [-v] [-q] [joblist]", 1)
    return [job for job in listed(store) if job["state"] != "done" and any(matches(store, job, word) for word in words)]


def llcancel(store: Store, argv: list[str]) -> int:
    """Remove steps, or all steps of a job."""
    with store:
        for job in _named(store, "llcancel", argv):
            job["deleted"] = True
            if job["state"] == "running":
                ask_runner(job, "cancel")
            else:
                end_without_running(store, job, "removed")
        advance(store)
    if "-q" not in argv:
        print("llcancel: Cancel command has been sent to the central manager.")
    return 0


def llhold(store: Store, argv: list[str]) -> int:
    """User hold, or with -r its release. A running step goes on."""
    with store:
        for job in _named(store, "llhold", argv):
            job["holds"] = "" if "-r" in argv else "u"
            if job["state"] in ("queued", "held"):
                job["state"] = "queued" if "-r" in argv else "held"
        advance(store)
    if "-q" not in argv:
        print("llhold: Hold command has been sent to the central manager.")
    return 0
