"""A LoadLeveler step on its node: its environment, its output (live), its end."""

from __future__ import annotations

import contextlib
import operator
import os
import shlex
import signal

from tests.doubles.engine import Job, Store
from tests.doubles.pbs_job import Launch, login_environment, shell_words
from tests.doubles.processes import send


def launch(store: Store, job: Job) -> Launch:
    """Everything that the step's script is started with. Output goes straight to its file."""
    config, data = store.config, job["data"]
    os.makedirs(store.path("aux"), exist_ok=True)
    hosts = [
        config["nodes"][node]["hostname"]
        for node, chunk in zip(job["assigned"], job["chunks"])
        for _ in range(chunk["mpiprocs"])
    ]
    hostfile = store.path("aux", f"{job['id']}.hosts")
    with open(hostfile, "w", encoding="utf-8") as file:
        file.writelines(f"{host}\n" for host in hosts)
    environment = login_environment(config) | data["variables"]
    environment |= {
        "LOADLBATCH": "yes",
        "LOADL_ACTIVE": "5.1.0.4",
        "LOADL_HOSTFILE": hostfile,
        "LOADL_JOB_NAME": data["job_name"],
        "LOADL_STEP_ACCT": data["account"],
        "LOADL_STEP_CLASS": job["queue"],
        "LOADL_STEP_COMMAND": data["executable"],
        "LOADL_STEP_ERR": data["error"],
        "LOADL_STEP_ID": job["id"],
        "LOADL_STEP_IN": data["input"],
        "LOADL_STEP_INITDIR": data["initialdir"],
        "LOADL_STEP_NAME": job["name"],
        "LOADL_STEP_OUT": data["output"],
        "LOADL_STEP_OWNER": environment["USER"],
        "LOADL_STEP_TYPE": data["job_type"].upper(),
        "LOADL_TOTAL_TASKS": str(len(hosts)),
    }
    environment.pop("LOADL_PROCESSOR_LIST", None)
    if len(hosts) <= 128:
        environment["LOADL_PROCESSOR_LIST"] = " ".join(hosts) + " "
    words = [data["executable"]]
    with contextlib.suppress(OSError):
        words = shell_words(config, data["executable"])
    streams: dict[str, int] = {}
    for name in ("output", "error"):
        path = os.path.join(data["initialdir"], data[name])
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if job["runs"] > 1 else os.O_TRUNC)
        try:
            streams[name] = (
                streams["output"]
                if name == "error" and data["error"] == data["output"]
                else os.open(path, flags, 0o666)
            )
        except OSError:  # the starter cannot open it: the step does not get to run
            words = ["/nonexistent/output/folder"]
            streams[name] = os.open(os.devnull, os.O_WRONLY)
    try:
        stdin = os.open(os.path.join(data["initialdir"], data["input"]), os.O_RDONLY)
    except OSError:
        stdin = os.open(os.devnull, os.O_RDONLY)
    return Launch(
        words=[*words, *shlex.split(data["arguments"])],
        environment=environment,
        directory=data["initialdir"],
        stdin=stdin,
        stdout=streams["output"],
        stderr=streams["error"],
        umask=0o022,
        staged=[],
    )


_COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
_SPECIAL = {"CC_NOTRUN": 1002, "CC_REMOVED": 1001}


def dependency(jobs: dict[str, Job], job: Job) -> str:
    """``go``, ``wait`` or ``never``, by the completion codes of the steps before."""
    results = []
    needs = job["data"]["needs"]
    for need in needs:
        if need == ["any"]:
            continue
        other = jobs[need[0]]
        if other["state"] != "done":
            return "wait"
        if other["started"] is None:
            code = _SPECIAL["CC_NOTRUN"]
        elif other["deleted"]:
            code = _SPECIAL["CC_REMOVED"]
        else:
            code = other["exit"] if other["exit"] is not None else _SPECIAL["CC_REMOVED"]
            code = code // 256 if code % 256 == 0 else code
        wanted = _SPECIAL[need[2]] if need[2] in _SPECIAL else int(need[2])
        results.append(_COMPARE[need[1]](code, wanted))
    return "go" if (any(results) if ["any"] in needs else all(results)) else "never"


def soft_limit(store: Store, session: list[int], script: int) -> None:
    """XCPU at the soft wall-clock limit."""
    send(session if store.config["soft_limit_reaches"] == "session" else [script], signal.SIGXCPU)


def hard_limit(_store: Store, _job: Job, _session: list[int], _used: float) -> float:
    """At the hard limit everything is killed at once."""
    return 0.0


def exit_status(code: int, _why: str | None) -> int:
    """The completion code: as wait(2) gives it, the signal in the low byte."""
    return code * 256 if code >= 0 else -code


def deliver(store: Store, job: Job, start: Launch) -> None:
    """Nothing to do: output was live."""


def clean(store: Store, job: Job, start: Launch) -> None:
    """What the step had on its node is removed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(store.path("aux", f"{job['id']}.hosts"))
