"""What a user may do to PBS jobs: qdel, qhold, qrls, qsig, qalter, qrerun."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable

from tests.doubles.engine import Job, Store, advance, ask_runner, end_without_running, fail, settle_array, tasks_of
from tests.doubles.pbs_qsub import full_id, parse_dependencies
from tests.doubles.pbs_resources import Refused, clock, seconds
from tests.doubles.pbs_show import FINISHED_JOB, UNKNOWN_JOB, find, is_history

BAD_STATE, NOT_ALLOWED, BAD_SIGNAL, BAD_REQUEST = 168, 159, 165, 156


def _each(store: Store, command: str, ids: list[str], act: Callable[[Job], tuple[str, int] | None]) -> int:
    """Do it to every job named; the last trouble gives the exit code."""
    code = 0
    if not ids:
        raise fail(f"usage: {command} job_identifier...", 2)
    torque = store.config["dialect"] == "torque"
    with store:
        for word in ids:
            if not re.fullmatch(r"\d+(\[[\d,-]*\])?(\.[\w.-]+)?(@[\w.-]+)?", word):
                sys.stderr.write(f"{command}: illegally formed job identifier: {word}\n")
                code = 1
                continue
            job_id = full_id(word, store.config["server"])
            job = find(store, job_id)
            trouble: tuple[str, int] | None
            if job is None:
                trouble = ("Unknown Job Id Error" if torque else "Unknown Job Id", UNKNOWN_JOB)
            elif job["state"] == "done":
                if torque:
                    trouble = ("Request invalid for state of job MSG=invalid state for job - COMPLETE", 170)
                else:
                    trouble = ("Job has finished", FINISHED_JOB)
            else:
                trouble = act(job)
            if trouble:
                sys.stderr.write(f"{command}: {trouble[0]} {job_id}\n")
                code = trouble[1]
        advance(store)
    return code


def _delete(store: Store, job: Job, force: bool) -> None:
    job["deleted"] = True
    if job["kind"] == "array":
        for task in tasks_of(store.state, job):
            if task["state"] != "done":
                _delete(store, task, force)
        settle_array(store.state, job)
    elif job["state"] == "running":
        ask_runner(job, "kill" if force else "cancel")
    else:
        end_without_running(store, job, "Job was deleted before it ran")


def qdel(store: Store, argv: list[str]) -> int:
    """Remove jobs. A valid and an unknown id in one call crash the server of OpenPBS."""
    force, purge, ids = False, False, []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "-x":
            purge = True
        elif word in ("-W", "-m") and words:
            force = words.pop(0) == "force" or force
        elif word == "-Wforce" or (word == "-p" and store.config["dialect"] == "torque"):
            force = True
        elif word.startswith("-"):
            raise fail(
                f"qdel: invalid option -- '{word[1:]}'\nusage: qdel [-W force|suppress_email=X] [-x] job_identifier...",
                2,
            )
        else:
            ids.append(word)
    if store.config["dialect"] == "openpbs":
        with store:
            known = {find(store, full_id(word, store.config["server"])) is not None for word in ids}
            if known == {True, False}:
                store.state["crashed"] = True
                sys.stderr.write("qdel: End of File\n")
                raise SystemExit(255)
    if purge:
        with store:
            for word in ids:
                job = find(store, full_id(word, store.config["server"]))
                if job is not None and is_history(store, job):
                    for one in (job, *(tasks_of(store.state, job) if job["kind"] == "array" else [])):
                        store.jobs.pop(one["id"], None)
                    ids = [other for other in ids if other != word]
        if not ids:
            return 0

    def act(job: Job) -> None:
        _delete(store, job, force)

    return _each(store, "qdel", ids, act)


def qhold(store: Store, argv: list[str]) -> int:
    """User hold. A running job goes on; it is held if it ever waits again.

    OpenPBS refuses a hold of one task of an array, and its release (`req_holdjob.c`).
    """
    kinds, ids = _hold_words("qhold", argv)

    def act(job: Job) -> tuple[str, int] | None:
        if job["kind"] == "task" and store.config["dialect"] == "openpbs":
            return ("Invalid request", BAD_REQUEST)
        if kinds != "u":
            return ("Unauthorized Request ", NOT_ALLOWED)
        job["holds"] = "u"
        if job["state"] == "queued":
            job["state"] = "held"
        return None

    return _each(store, "qhold", ids, act)


def qrls(store: Store, argv: list[str]) -> int:
    """Release a user hold."""
    kinds, ids = _hold_words("qrls", argv)

    def act(job: Job) -> tuple[str, int] | None:
        if job["kind"] == "task" and store.config["dialect"] == "openpbs":
            return ("Invalid request", BAD_REQUEST)
        if kinds != "u":
            return ("Unauthorized Request ", NOT_ALLOWED)
        job["holds"] = ""
        if job["state"] == "held":
            job["state"] = "queued"
        return None

    return _each(store, "qrls", ids, act)


def _hold_words(command: str, argv: list[str]) -> tuple[str, list[str]]:
    kinds, ids = "u", []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "-h" and words:
            kinds = words.pop(0)
        elif word.startswith("-h"):
            kinds = word[2:]
        elif word.startswith("-"):
            raise fail(f"usage: {command} [-h hold_list] job_identifier...", 2)
        else:
            ids.append(word)
    if not re.fullmatch("[uosnp]+", kinds):
        raise fail(f"{command}: illegal -h value", 2)
    return kinds, ids


def qsig(store: Store, argv: list[str]) -> int:
    """A signal to every process of a running job."""
    words = list(argv)
    name, ids = "SIGTERM", []
    while words:
        word = words.pop(0)
        if word == "-s" and words:
            name = words.pop(0)
        elif word.startswith("-"):
            raise fail("usage: qsig [-s signal] job_identifier...", 2)
        else:
            ids.append(word)

    def act(job: Job) -> tuple[str, int] | None:
        if job["state"] != "running":
            return ("Request invalid for state of job", BAD_STATE)
        bare = name.removeprefix("SIG")
        number = int(bare) if bare.isdecimal() else getattr(signal, f"SIG{bare}", None)
        if number is None:
            return ("Unknown/illegal signal name", BAD_SIGNAL)
        ask_runner(job, "signal", int(number))
        return None

    return _each(store, "qsig", ids, act)


def qrerun(store: Store, argv: list[str]) -> int:
    """Only operators may."""

    def act(_job: Job) -> tuple[str, int]:
        return ("Unauthorized Request ", NOT_ALLOWED)

    return _each(store, "qrerun", [word for word in argv if not word.startswith("-")], act)


def qalter(store: Store, argv: list[str]) -> int:
    """Change a waiting job: -N, -l walltime=…, -W depend=…, -m, -M, -A, -p, -o, -e, -h."""
    changes: dict[str, str] = {}
    ids = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word[:2] in ("-N", "-l", "-W", "-m", "-M", "-A", "-p", "-o", "-e", "-r"):
            value = word[2:] or (words.pop(0) if words else "")
            changes[word[1]] = value
        elif word.startswith("-"):
            raise fail(f"qalter: invalid option -- '{word[1:]}'", 2)
        else:
            ids.append(word)

    def act(job: Job) -> tuple[str, int] | None:
        if job["kind"] == "task":
            return ("Request invalid for state of job", BAD_STATE)
        if job["state"] == "running":
            return ("Cannot modify attribute while job running ", 167)
        try:
            return _alter(store, job, changes)
        except Refused as error:
            return (error.sentence, error.code)

    return _each(store, "qalter", ids, act)


def _alter(store: Store, job: Job, changes: dict[str, str]) -> tuple[str, int] | None:
    data = job["data"]
    if "l" in changes:
        name, _, value = changes["l"].partition("=")
        if name != "walltime":
            return (f"Cannot modify attribute while job running Resource_List.{name}", 167)
        job["walltime"] = seconds(value)
        data["resources"]["walltime"] = clock(job["walltime"])
    if "W" in changes:
        name, _, value = changes["W"].partition("=")
        if name != "depend":
            return ("illegal -W value", 2)
        job["depend"] = [
            [kind if find(store, other) else "unknown", other]
            for kind, other in parse_dependencies(value, store.config["server"])
        ]
        data["depend"] = value
        if job["state"] == "queued":
            job["state"] = "waiting"
    if "N" in changes:
        if not re.fullmatch(r"[A-Za-z0-9\-_+.]{1,230}", changes["N"]):
            return ("illegal -N value", 2)
        job["name"] = changes["N"]
    for key, field in (
        ("m", "mail_on"),
        ("M", "mail_to"),
        ("A", "account"),
        ("p", "priority"),
        ("o", "out"),
        ("e", "err"),
    ):
        if key in changes:
            data[field] = changes[key]
    if "r" in changes:
        job["rerunnable"] = changes["r"] == "y"
    return None
