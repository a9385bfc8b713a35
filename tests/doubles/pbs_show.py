"""What PBS says of jobs: qstat, qselect."""

from __future__ import annotations

import json
import os
import pwd
import re
import sys
import time
from typing import Any

from tests.doubles.engine import Job, Store, advance, fail, tasks_of, whole
from tests.doubles.pbs_qsub import full_id
from tests.doubles.pbs_resources import clock

UNKNOWN_JOB, FINISHED_JOB = 153, 35


def letter(store: Store, job: Job) -> str:
    """The state as qstat prints it. OpenPBS: B for an array that began, X for its ended tasks; Torque: C at the end."""
    torque = store.config["dialect"] == "torque"
    if job["state"] == "done":
        if torque:
            return "C"
        array = store.jobs.get(job["parent"]) if job["parent"] else None
        return "X" if array is not None and array["state"] != "done" else "F"
    if job["state"] == "running":
        return "R"
    array = store.jobs.get(job["parent"]) if job["parent"] else None
    if job["state"] in ("held", "waiting") or (array is not None and array["state"] in ("held", "waiting")):
        return "H"
    if job["kind"] == "array" and job["started"]:
        return "R" if torque else "B"
    if job.get("not_before", 0) > time.time():
        return "W"
    return "Q"


def is_history(store: Store, job: Job) -> bool:
    """Whether only ``-x`` shows it. A task is history together with its array."""
    array = store.jobs.get(job["parent"]) if job["parent"] else None
    return bool((array or job)["state"] == "done")


def is_forgotten(store: Store, job: Job) -> bool:
    """Whether the server has no record any more: no history, or (Torque) completed long ago."""
    if not is_history(store, job):
        return False
    if store.config["dialect"] == "torque":
        return bool(time.time() > (job["ended"] or 0) + store.config["keep_completed"])
    return not store.config["history"]


def find(store: Store, job_id: str) -> Job | None:
    """The record of an id, if the server still knows it."""
    job = store.jobs.get(job_id)
    return None if job is None or is_forgotten(store, job) else job


def _time(moment: float | None) -> str:
    return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(moment))


def attributes(store: Store, job: Job) -> dict[str, Any]:
    """What ``qstat -f`` lists of one job, in its order."""
    from tests.doubles.pbs_job import output_paths

    config = store.config
    job = whole(store.state, job)
    data = job["data"]
    user = pwd.getpwuid(os.getuid()).pw_name
    torque = config["dialect"] == "torque"
    state = letter(store, job)
    out, err = output_paths(config, job)
    listed: dict[str, Any] = {"Job_Name": job["name"], "Job_Owner": f"{user}@{config['host']}"}
    if job["started"]:
        used = (job["ended"] or time.time()) - job["started"]
        listed |= {"resources_used.cput": "00:00:00", "resources_used.mem": "0kb"}
        listed |= {"resources_used.walltime": clock(used)}
    listed |= {"job_state": state, "queue": job["queue"], "server": config["server"]}
    if data["account"]:
        listed["Account_Name"] = data["account"]
    listed |= {"Checkpoint": "u", "ctime": _time(job["submitted"])}
    if data["depend"]:
        listed["depend"] = data["depend"]
    listed["Error_Path"] = f"{config['host']}:{err}"
    if job["assigned"]:
        count: dict[str, int] = {}
        places = []
        for node, chunk in zip(job["assigned"], job["chunks"]):
            if torque:
                places += [f"{node}/{core}" for core in range(chunk["ncpus"])]
            else:
                places.append(f"{node}/{count.setdefault(node, 0)}*{chunk['ncpus']}")
                count[node] += 1
        listed["exec_host"] = "+".join(places)
        if not torque:
            listed["exec_vnode"] = "+".join(
                f"({node}:" + ":".join(f"{what}={chunk[what]}" for what in ("ncpus", "ngpus") if chunk.get(what)) + ")"
                for node, chunk in zip(job["assigned"], job["chunks"])
            )
    listed["Hold_Types"] = job["holds"] or ("s" if job["state"] == "waiting" else "n")
    listed |= {"Join_Path": data["join"], "Keep_Files": data["keep"], "Mail_Points": data["mail_on"]}
    if data["mail_to"]:
        listed["Mail_Users"] = data["mail_to"]
    listed |= {"mtime": _time(job["ended"] or job["started"] or job["submitted"])}
    listed["Output_Path"] = f"{config['host']}:{out}"
    listed |= {"Priority": data["priority"], "qtime": _time(job["submitted"])}
    listed["Rerunable"] = "True" if job["rerunnable"] else "False"
    listed |= {f"Resource_List.{name}": value for name, value in data["resources"].items()}
    if job["started"]:
        listed |= {"stime": _time(job["started"])}
        if job["runner"]:
            listed["session_id"] = job["runner"]
    if not torque:
        substate = {"Q": 10, "H": 22 if job["state"] == "waiting" else 20, "R": 42, "W": 30, "B": 10}
        listed["substate"] = substate.get(state, 91 if job["deleted"] else 92)
    listed["Variable_List"] = dict(sorted(data["variables"].items()))
    if job["comment"] or job["started"]:
        listed["comment"] = job["comment"] or (
            f"Job run at {time.strftime('%a %b %d at %H:%M', time.localtime(job['started']))} on "
            f"({', '.join(dict.fromkeys(job['assigned']))})"
        )
    listed["etime"] = _time(job["submitted"])
    if job["runs"] and not torque:
        listed["run_count"] = job["runs"]
    if data["umask"]:
        listed["umask"] = data["umask"].lstrip("0")
    if job["exit"] is not None:
        listed["exit_status" if torque else "Exit_status"] = job["exit"]
    if job["kind"] == "array" and not torque:
        states = [letter(store, task) for task in tasks_of(store.state, job)]
        listed |= {"array": "True", "array_indices_submitted": _ranges(job["indices"])}
        left = [task["index"] for task in tasks_of(store.state, job) if task["state"] not in ("running", "done")]
        listed["array_indices_remaining"] = _ranges(left) or "-"
        over = sum(task["state"] == "done" for task in tasks_of(store.state, job))
        listed["array_state_count"] = (
            f"Queued:{states.count('Q')} Running:{states.count('R')} Exiting:0 Expired:{over} "
        )
    if job["index"] is not None:
        listed |= {"job_array_id" if torque else "array_id": job["index"] if torque else job["parent"]}
        if not torque:
            listed["array_index"] = job["index"]
    if torque and job["ended"]:
        listed["comp_time"] = _time(job["ended"])
    listed["submit_args" if torque else "Submit_arguments"] = data["arguments"]
    if not torque:
        listed["project"] = data["project"] or "_pbs_project_default"
        listed["Submit_Host"] = config["host"]
        if is_history(store, job):
            listed["history_timestamp"] = int(job["ended"] or 0)
    return listed


def _ranges(indices: list[int]) -> str:
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def folded(name: str, value: object, width: int | None = 79) -> str:
    """One line of ``qstat -f``: cut after a comma, or anywhere, and continued behind a tab. ``width`` None: ``-w``."""
    line = f"    {name} = {value}"
    if width is None:
        return line
    lines = []
    while len(line) > width:
        cut = line.rfind(",", 8, width)
        cut = width - 1 if cut < 0 else cut
        lines.append(line[: cut + 1])
        line = "\t" + line[cut + 1 :]
    return "\n".join([*lines, line])


def _text(value: object) -> object:
    if isinstance(value, dict):
        return ",".join(f"{name}={str(word).replace(',', chr(92) + ',')}" for name, word in value.items())
    return value


def _retyped(value: object) -> object:
    """As OpenPBS writes JSON: what looks like a number becomes one, whatever it was."""
    if isinstance(value, dict):
        return {name: _retyped(word) for name, word in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < 1e15 else number
    return value


def nested(listed: dict[str, Any]) -> dict[str, Any]:
    """``Resource_List.x`` as an object of its own, as in JSON."""
    found: dict[str, Any] = {}
    for name, value in listed.items():
        group, dot, key = name.partition(".")
        if dot:
            found.setdefault(group, {})[key] = _retyped(value)
        else:
            found[name] = _retyped(value)
    return found


def options(argv: list[str], flags: str, valued: str, command: str) -> tuple[dict[str, str], list[str]]:
    """Flags and values of a command; its other words."""
    found: dict[str, str] = {}
    operands = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            operands.append(word)
            continue
        letters = word[1:]
        while letters:
            one, letters = letters[0], letters[1:]
            if one in flags:
                found[one] = "y"
            elif one in valued and (letters or words):
                found[one] = letters or words.pop(0)
                letters = ""
            else:
                raise fail(f"{command}: invalid option -- '{one}'\nusage: {command} ...", 2)
    return found, operands


def qstat(store: Store, argv: list[str]) -> int:
    """Jobs, queues (-Q, -q) or the server (-B)."""
    torque = store.config["dialect"] == "torque"
    flags, operands = options(
        argv, "fxtwanisreqQBGMHTEpc1" + ("" if torque else "J"), "uWF" if not torque else "uW", "qstat"
    )
    with store:
        advance(store)
    if {"Q", "q"} & set(flags):
        from tests.doubles.pbs_machine import queues

        return queues(store, flags, operands)
    if "B" in flags:
        print(f"Server: {store.config['server']}\n    server_state = Active")
        print(f"    default_queue = {store.config['default_queue']}\n    pbs_version = 23.06.06\n")
        return 0
    if flags.get("F", "default") not in ("default", "json", "dsv"):
        raise fail("qstat: invalid argument to -F", 2)
    history = "x" in flags or "H" in flags
    if history and not torque and not store.config["history"]:
        sys.stderr.write("qstat: Job history is not enabled on this server\n")  # the wording is ours
        if not operands:
            return 0
    chosen, code = _chosen(store, flags, operands, history or torque)
    if history and not torque and not store.config["history"]:
        code = 0
    if flags.get("F") == "json" and "f" in flags:
        _as_json(store, chosen)
    elif torque and "x" in flags:
        _as_xml(store, chosen)
    elif "f" in flags:
        width = None if "w" in flags or "1" in flags else 79
        for job in chosen:
            print(f"Job Id: {job['id']}")
            for name, value in attributes(store, job).items():
                if torque and name == "Variable_List":
                    value = {key: word for key, word in value.items() if word}
                print(folded(name, _text(value), width))
            print()
    elif chosen:
        _as_table(store, chosen)
    return code


def _chosen(store: Store, flags: dict[str, str], operands: list[str], history: bool) -> tuple[list[Job], int]:
    chosen: list[Job] = []
    code = 0
    tasks = "t" in flags
    if not operands or all(not re.match(r"\d", word) for word in operands):
        for word in operands:
            if word.partition("@")[0] not in store.config["queues"] and not word.startswith("@"):
                raise fail(f"qstat: Unknown queue destination {word}", 170)
        chosen = [
            job
            for job in store.jobs.values()
            if (
                not is_forgotten(store, job)
                and (job["kind"] != "task" or tasks)
                and (history or not is_history(store, job))
                and ("u" not in flags or pwd.getpwuid(os.getuid()).pw_name in flags["u"].split(","))
                and (not operands or whole(store.state, job)["queue"] in operands)
            )
        ]
        return chosen, 0
    for word in operands:
        if not re.fullmatch(r"\d+(\[\d*\])?(\.[\w.-]+)?(@[\w.-]+)?", word):
            sys.stderr.write(f"qstat: illegally formed job identifier: {word}\n")
            code = 1
            continue
        job_id = full_id(word, store.config["server"])
        job = find(store, job_id)
        if job is None:
            sys.stderr.write(
                f"qstat: Unknown Job Id {'Error ' if store.config['dialect'] == 'torque' else ''}{job_id}\n"
            )
            code = UNKNOWN_JOB
        elif is_history(store, job) and not history:
            sys.stderr.write(f"qstat: {job_id} Job has finished, use -x or -H to obtain historical job information\n")
            code = FINISHED_JOB
        else:
            chosen.append(job)
            if tasks and job["kind"] == "array":
                chosen += tasks_of(store.state, job)
    return chosen, code


def _as_json(store: Store, chosen: list[Job]) -> None:
    answer: dict[str, Any] = {
        "timestamp": int(time.time()),
        "pbs_version": "23.06.06",
        "pbs_server": store.config["server"],
    }
    if chosen:
        answer["Jobs"] = {job["id"]: nested(attributes(store, job)) for job in chosen}
    print(json.dumps(answer, indent=4))


def _as_xml(store: Store, chosen: list[Job]) -> None:
    def escaped(value: object) -> str:
        return str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    jobs = ""
    for job in chosen:
        jobs += f"<Job><Job_Id>{job['id']}</Job_Id>"
        groups: dict[str, str] = {}
        for name, value in attributes(store, job).items():
            group, dot, key = name.partition(".")
            if dot:
                groups[group] = groups.get(group, "") + f"<{key}>{escaped(value)}</{key}>"
            else:
                groups[name] = escaped(_text(value))
        jobs += "".join(f"<{name}>{value}</{name}>" for name, value in groups.items()) + "</Job>"
    print(f"<Data>{jobs}</Data>")


def _as_table(store: Store, chosen: list[Job]) -> None:
    print("Job id            Name             User              Time Use S Queue")
    print("----------------  ---------------- ----------------  -------- - -----")
    user = pwd.getpwuid(os.getuid()).pw_name
    for job in chosen:
        full = whole(store.state, job)
        used = clock((job["ended"] or time.time()) - job["started"]) if job["started"] else "0"
        name = full["name"] if len(full["name"]) <= 16 else full["name"][:15] + "*"
        print(f"{job['id'][:17]:<17} {name:<16} {user[:16]:<16}  {used:>8} {letter(store, job)} {full['queue']:<16}")


def qselect(store: Store, argv: list[str]) -> int:
    """Ids of jobs by name (-N), state (-s), queue (-q); with -x ended ones too."""
    flags, operands = options(argv, "xTzHJ", "NsqualcehmprSptPA", "qselect")
    if operands:
        raise fail("usage: qselect [-N name] [-s states] [-q destination] [-u users] [-x] ...", 2)
    with store:
        advance(store)
    ended_too = "x" in flags or "H" in flags or store.config["dialect"] == "torque"
    for job in store.jobs.values():
        full = whole(store.state, job)
        if job["kind"] == "task" and "T" not in flags:
            continue
        if is_forgotten(store, job) or (is_history(store, job) and not ended_too):
            continue
        if full["name"] != flags.get("N", full["name"]) or full["queue"] != flags.get("q", full["queue"]):
            continue
        if "s" in flags and letter(store, job) not in flags["s"]:
            continue
        print(job["id"])
    return 0
