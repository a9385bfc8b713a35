"""A PBS job on its node: its environment, its output, its end."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
from dataclasses import dataclass

from tests.doubles.engine import Job, Store
from tests.doubles.processes import send

WALLTIME_KILLED = -29
"""``JOB_EXEC_KILL_WALLTIME``."""


@dataclass
class Launch:
    """How a job's script is started; the streams are open descriptors."""

    words: list[str]
    environment: dict[str, str]
    directory: str
    stdin: int
    stdout: int
    stderr: int
    umask: int
    staged: list[tuple[str, str]]
    """Files to deliver at the end, and where."""
    kept: tuple[str, ...] = ()


def shell_words(config: dict[str, object], script: str) -> list[str]:
    """The words that run a script. The first line decides; the double's own ``shell`` stands in for ``/bin/sh``."""
    with open(script, "rb") as file:
        first = file.readline(4096)
    words = os.fsdecode(first[2:]).split(maxsplit=1) if first.startswith(b"#!") else []
    words = [word.rstrip("\r\n ") for word in words]
    if not words or words[0] == "/bin/sh":
        words = [str(config["shell"]), *words[1:]]
    return [*words, script]


def login_environment(config: dict[str, object]) -> dict[str, str]:
    """What a login shell gives on a compute node, and no more."""
    user = pwd.getpwuid(os.getuid()).pw_name
    given = config["login_environment"]
    assert isinstance(given, dict)
    return {
        "HOME": str(config["home"]),
        "LOGNAME": user,
        "USER": user,
        "SHELL": "/bin/sh",
        "PATH": str(config["path"]),
        **given,
    }


def _tag(job: Job) -> str:
    """``98`` or, for a task, ``98.2``: the tail of an output file's name."""
    return str(job["seq"]) if job["index"] is None else f"{job['seq']}.{job['index']}"


def output_paths(config: dict[str, object], job: Job) -> tuple[str, str]:
    """Where the two streams go in the end; the placeholder for the array's index is filled in, a shell's is not."""
    found = []
    for given, letter, ending in ((job["data"]["out"], "o", "OU"), (job["data"]["err"], "e", "ER")):
        if given is None:
            tag = _tag(job)
            if config["dialect"] == "torque":
                tag = tag.replace(".", "-")
            path = f"{job['name']}.{letter}{tag}"
        else:
            path = given.rpartition(":")[2] if re.match(r"[\w.-]+:", given) else given
            path = path.replace("^array_index^", str(job["index"]))
        path = os.path.join(job["data"]["workdir"], path)
        if os.path.isdir(path):
            path = os.path.join(path, f"{job['id']}.{ending}")
        found.append(path)
    return found[0], found[1]


def _open(path: str, again: bool) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if again else os.O_TRUNC)
    return os.open(path, flags, 0o600)


def _streams(store: Store, job: Job, launch: Launch) -> None:
    data = job["data"]
    finals = output_paths(store.config, job)
    opened: dict[str, int] = {}
    for letter, final, ending in (("o", finals[0], "OU"), ("e", finals[1], "ER")):
        keeps = letter in data["keep"].replace("n", "")
        path = store.path("spool", f"{job['id']}.{ending}")
        if keeps and "d" in data["keep"]:
            path = final
        elif keeps:
            path = os.path.join(str(store.config["home"]), f"{job['name']}.{letter}{_tag(job)}")
        elif not (data["join"] == "oe" and letter == "e") and not (data["join"] == "eo" and letter == "o"):
            launch.staged.append((path, final))
        joined = {"oe": "o", "eo": "e"}.get(data["join"])
        if joined is not None and letter != joined:
            continue
        try:
            opened[letter] = _open(path, job["runs"] > 1)
        except OSError:  # a folder that is not there: what the job prints is lost
            opened[letter] = os.open(os.devnull, os.O_WRONLY)
    launch.stdout = opened.get("o", opened.get("e", -1))
    launch.stderr = opened.get("e", opened.get("o", -1))


def launch(store: Store, job: Job) -> Launch:
    """Everything that the job's script is started with."""
    config = store.config
    data = job["data"]
    for folder in ("spool", "aux", "undelivered", "tmp"):
        os.makedirs(store.path(folder), exist_ok=True)
    ncpus = job["chunks"][0]["ncpus"]
    nodefile = store.path("aux", job["id"])
    with open(nodefile, "w", encoding="utf-8") as file:
        for node, chunk in zip(job["assigned"], job["chunks"]):
            file.write(f"{config['nodes'][node]['hostname']}\n" * chunk["mpiprocs"])
    scratch = store.path("tmp", f"pbs.{job['id']}")
    os.makedirs(scratch, exist_ok=True)
    environment = login_environment(config) | data["variables"]
    environment |= {
        "ENVIRONMENT": "BATCH",
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "PBS_JOBID": job["id"],
        "PBS_JOBNAME": job["name"],
        "PBS_QUEUE": job["queue"],
        "PBS_NODEFILE": nodefile,
        "PBS_NODENUM": "0",
        "PBS_TASKNUM": "1",
        "PBS_MOMPORT": "15003",
        "TMPDIR": scratch,
    }
    if config["dialect"] == "openpbs":
        environment["NCPUS"] = str(ncpus)
        environment["OMP_NUM_THREADS"] = str(job["chunks"][0].get("ompthreads", ncpus))
        environment["PBS_JOBDIR"] = str(config["home"])
        if job["index"] is not None:
            environment |= {"PBS_ARRAY_INDEX": str(job["index"]), "PBS_ARRAY_ID": job["parent"]}
    else:
        environment |= {
            "PBS_NUM_NODES": str(len(job["chunks"])),
            "PBS_NUM_PPN": str(ncpus),
            "PBS_NP": str(sum(chunk["ncpus"] for chunk in job["chunks"])),
            "PBS_SERVER": str(config["server"]),
            "PBS_WALLTIME": str(job["walltime"] or 0),
            "PBS_GPUFILE": nodefile + "gpu",
        }
        with open(nodefile + "gpu", "w", encoding="utf-8") as file:
            for node, chunk in zip(job["assigned"], job["chunks"]):
                for gpu in range(chunk.get("ngpus", 0)):
                    file.write(f"{config['nodes'][node]['hostname']}-gpu{gpu}\n")
        if job["index"] is not None:
            environment["PBS_ARRAYID"] = str(job["index"])
    # The manual's default is 077: files of a job are nobody else's unless `-W umask` says so.
    umask = int(data["umask"], 8) if data["umask"] else 0o077
    start = Launch(
        words=shell_words(config, data["script"]),
        environment=environment,
        directory=str(config["home"]),
        stdin=os.open(os.devnull, os.O_RDONLY),
        stdout=-1,
        stderr=-1,
        umask=umask,
        staged=[],
    )
    _streams(store, job, start)
    return start


def soft_limit(_store: Store, _session: list[int], _script: int) -> None:
    """PBS has no soft limit."""


def hard_limit(store: Store, job: Job, session: list[int], used: float) -> float:
    """The walltime is over: TERM to the whole session; gives how long until KILL."""
    out, err = output_paths(store.config, job)
    live = [err, out] if "d" in job["data"]["keep"] else []
    for path in (store.path("spool", f"{job['id']}.ER"), store.path("spool", f"{job['id']}.OU"), *live):
        if os.path.exists(path):
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"=>> PBS: job killed: walltime {int(used)} exceeded limit {job['walltime']}\n")
            break
    send(session, signal.SIGTERM)
    return float(store.config["kill_grace"])


def exit_status(code: int, why: str | None) -> int:
    """``Exit_status``: the script's own code, 256 + the signal that killed it, or -29 after the walltime."""
    if why == "walltime":
        return WALLTIME_KILLED
    return code if code >= 0 else 256 - code


def deliver(store: Store, job: Job, start: Launch) -> None:
    """The staged output to its place, readable to its owner only; a folder that is not there loses it."""
    for staged, final in start.staged:
        if not os.path.exists(staged):
            continue
        mode = 0o666 & ~start.umask
        try:
            if os.path.isdir(os.path.dirname(final)):
                shutil.copyfile(staged, final)
                os.chmod(final, mode)
                os.unlink(staged)
                continue
        except OSError:
            pass
        os.replace(staged, store.path("undelivered", os.path.basename(staged)))


def clean(store: Store, job: Job, start: Launch) -> None:
    """What the job had on its node is removed."""
    shutil.rmtree(store.path("tmp", f"pbs.{job['id']}"), ignore_errors=True)
    for path in (store.path("aux", job["id"]), store.path("aux", job["id"] + "gpu")):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
