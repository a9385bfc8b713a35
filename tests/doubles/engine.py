"""What the doubles of all batch systems share: jobs in a folder, a queue, nodes, and who may start.

A double has no daemon. Its folder holds ``config.json`` (the machine), ``faults.json`` (what is broken just now) and
``state.json`` (the jobs); every command takes the lock, changes the state and starts what can start. A running job has
one detached process (:mod:`tests.doubles.runner`). The doubles are written from what the real systems do and import
nothing of dlhpc.

A job is a dictionary. Its ``state`` is ``queued``, ``held`` (by a person), ``waiting`` (for another job), ``running``
or ``done``; the dialects turn that into their own letters. An array is one record with ``kind`` ``array``, and a small
record for each task, which inherits the rest (:func:`whole`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from typing import Any

from tests.doubles.processes import birth, parent_of

Job = dict[str, Any]


class Store:
    """The folder of a double. Use as a context manager to change its state; the lock is held inside.

    ``state`` has the keys ``next`` (the next job's number), ``jobs`` (id → record, in order of submission) and
    ``crashed``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.config: dict[str, Any] = self._read("config.json", {})
        self.state: dict[str, Any] = {}
        self._lock = -1
        self._before = ""

    def path(self, *names: str) -> str:
        """A path inside the double's folder."""
        return os.path.join(self.folder, *names)

    def faults(self) -> dict[str, Any]:
        """What is broken just now."""
        found: dict[str, Any] = self._read("faults.json", {})
        return found

    def set_faults(self, faults: dict[str, Any]) -> None:
        """Replace what is broken."""
        self._write("faults.json", faults)

    def peek(self) -> dict[str, Any]:
        """The state as it was last written, without the lock."""
        found: dict[str, Any] = self._read("state.json", {"next": 1, "jobs": {}, "crashed": False})
        return found

    def __enter__(self) -> Store:
        self._lock = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.state = self.peek()
        self._before = json.dumps(self.state)
        return self

    def __exit__(self, *_error: object) -> None:
        if (_error[0] is None or _error[0] is SystemExit) and json.dumps(self.state) != self._before:
            self._write("state.json", self.state)
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        self._lock = -1

    @property
    def jobs(self) -> dict[str, Job]:
        """All records, by id."""
        found: dict[str, Job] = self.state["jobs"]
        return found

    @property
    def refuses(self) -> bool:
        """Whether the server is down: nothing is answered and nothing started."""
        faults = self.faults()
        return bool(self.state.get("crashed")) or (bool(faults.get("down")) and "commands" not in faults)

    def _read(self, name: str, default: Any) -> Any:
        try:
            with open(self.path(name), encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return default

    def _write(self, name: str, value: Any) -> None:
        beside = self.path(f"{name}.{os.getpid()}")
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(beside, self.path(name))

    def forget_lock(self) -> None:
        """In a forked child: the lock stays the parent's."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def whole(state: dict[str, Any], job: Job) -> Job:
    """A task of an array with all that it inherits; every other job as it is."""
    parent = state["jobs"].get(job.get("parent"))
    return {**parent, **job} if parent else job


def tasks_of(state: dict[str, Any], array: Job) -> list[Job]:
    """The task records of an array."""
    return [state["jobs"][task] for task in array["tasks"] if task in state["jobs"]]


def new_job(**given: Any) -> Job:
    """A record with every common field."""
    job: Job = {
        "kind": "job",
        "parent": None,
        "index": None,
        "state": "queued",
        "holds": "",
        "depend": [],
        "chunks": [],
        "place": "free",
        "excl": False,
        "assigned": [],
        "walltime": None,
        "soft": None,
        "submitted": time.time(),
        "started": None,
        "ended": None,
        "exit": None,
        "comment": None,
        "rerunnable": True,
        "runs": 0,
        "runner": None,
        "asks": [],
        "deleted": False,
    }
    return job | given


def new_task(array: Job, task_id: str, index: int) -> Job:
    """One task of an array: only what can change."""
    return {
        "id": task_id,
        "kind": "task",
        "parent": array["id"],
        "index": index,
        "state": "queued",
        "holds": "",
        "assigned": [],
        "started": None,
        "ended": None,
        "exit": None,
        "comment": None,
        "runs": 0,
        "runner": None,
        "asks": [],
        "deleted": False,
    }


# --- A job and its runner -------------------------------------------------------------------------------------------


def inside_a_job(store: Store) -> Job | None:
    """The job whose process called us, found among our ancestors; None on the login node."""
    runners: dict[int, Job] = {job["runner"]: job for job in store.peek()["jobs"].values() if job["runner"]}
    pid = os.getpid()
    while pid > 1:
        pid = parent_of(pid)
        if pid in runners:
            return runners[pid]
    return None


def ask_runner(job: Job, how: str, number: int = 0) -> None:
    """Tell a running job's process what to do. The lock must be held; it acts as soon as it is free."""
    job["asks"].append([how, number])
    if job["runner"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(job["runner"], signal.SIGUSR1)


# --- Who may start -----------------------------------------------------------------------------------------------

COUNTED = ("ncpus", "ngpus", "mem")


def node_names(config: dict[str, Any]) -> list[str]:
    """The nodes that are switched on."""
    return [name for name, node in config["nodes"].items() if node.get("state", "free") == "free"]


def _empty(config: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {name: {what: config["nodes"][name][what] for what in COUNTED} for name in node_names(config)}


def free_nodes(config: dict[str, Any], state: dict[str, Any]) -> tuple[dict[str, dict[str, int]], set[str], set[str]]:
    """What every node still has, which nodes somebody uses, and which somebody has for himself."""
    free = _empty(config)
    used: set[str] = set()
    taken: set[str] = set()
    for job in state["jobs"].values():
        if job["state"] != "running":
            continue
        full = whole(state, job)
        for name, chunk in zip(job["assigned"], full["chunks"]):
            used.add(name)
            if full["excl"]:
                taken.add(name)
            if name in free:
                for what in COUNTED:
                    free[name][what] -= chunk.get(what, 0)
    return free, used, taken


def place(
    job: Job, free: dict[str, dict[str, int]], used: set[str], taken: set[str], features: dict[str, list[str]]
) -> list[str] | None:
    """A node for every chunk, or None if there is no room. ``free`` is not changed."""
    left = {name: dict(node) for name, node in free.items() if name not in taken and not (job["excl"] and name in used)}
    chosen: list[str] = []
    for chunk in job["chunks"]:
        for name, node in left.items():
            if job["place"] == "scatter" and name in chosen:
                continue
            if job["place"] == "pack" and chosen and name != chosen[0]:
                continue
            if chunk.get("host") not in (None, name):
                continue
            if any(feature not in features.get(name, []) for feature in chunk.get("features", [])):
                continue
            if all(chunk.get(what, 0) <= node[what] for what in COUNTED):
                chosen.append(name)
                for what in COUNTED:
                    node[what] -= chunk.get(what, 0)
                break
        else:
            return None
    return chosen


def can_never_run(job: Job, config: dict[str, Any]) -> str | None:
    """The resource that the whole machine does not have, or None."""
    features = {name: node.get("features", []) for name, node in config["nodes"].items()}
    every = {name: {what: node[what] for what in COUNTED} for name, node in config["nodes"].items()}
    if place(job, every, set(), set(), features) is not None:
        return None
    for what in COUNTED:
        asked = sum(chunk.get(what, 0) for chunk in job["chunks"])
        there = sum(node[what] for node in every.values())
        if asked > there or any(chunk.get(what, 0) > max(n[what] for n in every.values()) for chunk in job["chunks"]):
            return f"{what} (R: {asked} A: {there} T: {there})"
    return "ncpus"


def _dependency(store: Store, job: Job) -> str:
    """``go``, ``wait`` or ``never``, by what has become of the jobs before."""
    if store.config["system"] == "loadleveler":
        from tests.doubles import ll_job

        return ll_job.dependency(store.jobs, job)
    answer = "go"
    for kind, other_id in job["depend"]:
        other = store.jobs.get(other_id)
        if other is None or kind == "unknown":
            return "never"
        if kind == "after":
            met = other["started"] is not None
            if not met and other["state"] == "done":
                return "never"
        elif other["state"] != "done":
            met = False
        elif kind == "afterany":
            met = True
        else:
            met = (other["exit"] == 0) == (kind == "afterok") and other["started"] is not None
            if not met:
                return "never"
        if not met:
            answer = "wait"
    return answer


def end_without_running(store: Store, job: Job, comment: str) -> None:
    """A job that is removed before it began. The lock must be held."""
    job["state"] = "done"
    job["ended"] = time.time()
    job["comment"] = comment
    job["deleted"] = True
    if job["kind"] == "array":
        for task in tasks_of(store.state, job):
            if task["state"] not in ("done", "running"):
                end_without_running(store, task, comment)


def settle_array(state: dict[str, Any], array: Job) -> None:
    """An array begins with its first task and ends with its last one, whose exit status it takes."""
    tasks = tasks_of(state, array)
    begun = [task["started"] for task in tasks if task["started"]]
    if begun and not array["started"]:
        array["started"] = min(begun)
    if array["state"] != "done" and all(task["state"] == "done" for task in tasks):
        last = max(tasks, key=lambda task: task["ended"])
        array.update(state="done", ended=last["ended"], exit=last["exit"])


def startable(store: Store) -> list[Job]:
    """Jobs and tasks that wait for nothing but room, in order."""
    found = []
    running: dict[str, int] = {}
    for job in store.jobs.values():
        if job["state"] == "running" and job["parent"]:
            running[job["parent"]] = running.get(job["parent"], 0) + 1
    for job in store.jobs.values():
        if job["kind"] == "array" or job["state"] != "queued":
            continue
        array = store.jobs.get(job["parent"])
        if array is not None and (
            array["state"] != "queued" or running.get(array["id"], 0) >= (array["limit"] or len(array["tasks"]))
        ):
            continue
        if job.get("not_before", 0) > time.time():
            continue
        found.append(job)
    return found


def advance(store: Store) -> None:
    """Look after the dead, settle dependencies, and start what fits. The lock must be held."""
    from tests.doubles import runner

    for job in list(store.jobs.values()):
        if job["state"] == "running" and job["runner"] and birth(job["runner"]) != job["runner_birth"]:
            job.update(state="done", ended=time.time(), exit=None, comment="its runner was killed from outside")
    for job in store.jobs.values():
        if job["kind"] == "array":
            settle_array(store.state, job)
    if store.refuses or store.config.get("stopped"):
        return
    again = True
    while again:  # a job that can never run may decide over the next one
        again = False
        for job in store.jobs.values():
            if job["state"] == "waiting":
                verdict = _dependency(store, job)
                if verdict == "never":
                    end_without_running(store, job, "its dependency can never be satisfied")
                    again = True
                elif verdict == "go":
                    job["state"] = "held" if job["holds"] else "queued"
    features = {name: node.get("features", []) for name, node in store.config["nodes"].items()}
    closed: set[str] = set()  # tasks of one array all ask for the same
    while True:
        free, used, taken = free_nodes(store.config, store.state)
        for job in startable(store):
            full = whole(store.state, job)
            if (job["parent"] or job["id"]) in closed or not _queue_starts(store, full):
                continue
            nodes = place(full, free, used, taken, features)
            if nodes is not None:
                job.update(state="running", assigned=nodes, started=time.time(), ended=None, runs=job["runs"] + 1)
                runner.start(store, job)
                break
            closed.add(job["parent"] or job["id"])
            missing = can_never_run(full, store.config)
            job["comment"] = (
                f"Can Never Run: Insufficient amount of resource: {missing}"
                if missing
                else "Not Running: Insufficient amount of resource: ncpus"
            )
        else:
            break
    for job in store.jobs.values():
        if job["kind"] == "array":
            settle_array(store.state, job)


def _queue_starts(store: Store, job: Job) -> bool:
    queue = store.config["queues"].get(job["queue"], {})
    if not queue.get("started", True):
        return False
    limit = queue.get("max_run")
    return limit is None or limit > sum(
        other["state"] == "running" and whole(store.state, other)["queue"] == job["queue"]
        for other in store.jobs.values()
    )


def fail(sentence: str, code: int) -> SystemExit:
    """What a command says on standard error, and the exit code it leaves with."""
    sys.stderr.write(sentence + "\n")
    return SystemExit(code)
