"""What LoadLeveler says of steps, classes and machines: llq, llclass, llstatus."""

from __future__ import annotations

import os
import pwd
import sys
import time
from typing import Any

from tests.doubles.engine import Job, Store, advance, fail, free_nodes

NOTHING = "llq: There is currently no job status to report."
_WORDS = {
    "I": "Idle",
    "NQ": "Not Queued",
    "H": "User Hold",
    "ST": "Starting",
    "R": "Running",
    "C": "Completed",
    "RM": "Removed",
    "NR": "Not Run",
}
# What -f and -r can show: title and width.
_COLUMNS = {
    "id": ("Step Id", 24),
    "st": ("ST", 2),
    "o": ("Owner", 11),
    "c": ("Class", 10),
    "jn": ("Job Name", 16),
    "sn": ("Step Name", 16),
    "dq": ("Queue Date", 11),
    "dd": ("Disp. Date", 11),
    "h": ("Running On", 14),
    "nh": ("NM", 4),
    "a": ("Account", 11),
    "cc": ("CC", 5),
    "p": ("PRI", 3),
}


def status(job: Job) -> str:
    """The state as llq abbreviates it."""
    if job["state"] == "done":
        return (
            "C"
            if job["started"] and not job["deleted"]
            else "RM"
            if job["started"] or not job["data"]["needs"]
            else "NR"
        )
    return {"queued": "I", "held": "H", "waiting": "NQ", "running": "R"}[job["state"]]


def listed(store: Store) -> list[Job]:
    """Steps that llq still knows: an ended one is gone (at once, or after the double's ``keep_completed``)."""
    until = time.time() - store.config["keep_completed"]
    return [job for job in store.jobs.values() if job["state"] != "done" or (job["ended"] or 0) > until]


def matches(store: Store, job: Job, word: str) -> bool:
    """Whether ``host.N``, ``host.N.S``, ``host.domain.N``, ``N`` or ``N.S`` names this step."""
    full = store.config["host"]
    names = []
    for host in (full, full.partition(".")[0]):
        names += [f"{host}.{job['seq']}", f"{host}.{job['seq']}.{job['data']['number']}"]
    return word in (*names, str(job["seq"]), f"{job['seq']}.{job['data']['number']}")


def _date(moment: float | None) -> str:
    return time.strftime("%m/%d %H:%M", time.localtime(moment)) if moment else ""


def _value(job: Job, column: str) -> str:
    user = pwd.getpwuid(os.getuid()).pw_name
    values: dict[str, str] = {
        "id": job["id"],
        "st": status(job),
        "o": user,
        "c": job["queue"],
        "jn": job["data"]["job_name"],
        "sn": job["name"],
        "dq": _date(job["submitted"]),
        "dd": _date(job["started"]),
        "h": job["assigned"][0] if job["assigned"] else "",
        "nh": str(len(job["chunks"])),
        "a": job["data"]["account"],
        "cc": "" if job["exit"] is None else str(job["exit"]),
        "p": "50",
    }
    return values[column]


def llq(store: Store, argv: list[str]) -> int:
    """Steps in the queue: a table, chosen columns (-f, -r) or everything (-l)."""
    columns: list[str] = []
    operands: list[str] = []
    users: list[str] = []
    classes: list[str] = []
    form = "table"
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in ("-f", "-r") or word.startswith(("-f%", "-r%")):
            form = word[:2]
            columns += [one for one in [word[2:]] if one]
            while words and words[0].startswith("%"):
                columns.append(words.pop(0))
        elif word in ("-l", "-x", "-s", "-w"):
            form = word if word == "-l" else form
        elif word in ("-u", "-c", "-h", "-j"):
            while words and not words[0].startswith("-"):
                {"-u": users, "-c": classes, "-h": [], "-j": operands}[word].append(words.pop(0))
        elif word.startswith("-"):
            raise fail(f'llq: The option "{word}" is not valid.', 1)
        else:
            operands.append(word)
    columns = [one.strip("%").strip() for word in columns for one in word.split() if one]
    for column in columns:
        if column not in _COLUMNS:
            raise fail(f'llq: The category "%{column}" is not valid.', 1)
    with store:
        advance(store)
    steps = [
        job
        for job in listed(store)
        if (not operands or any(matches(store, job, word) for word in operands))
        and (not users or pwd.getpwuid(os.getuid()).pw_name in users)
        and (not classes or job["queue"] in classes)
    ]
    if not steps:
        print(NOTHING)
        return 0
    if form == "-r":
        for job in steps:
            print("!".join(_value(job, column) for column in columns))
        return 0
    if form == "-l":
        for job in steps:
            print(_long(store, job))
    elif form == "-f":
        print(" ".join(f"{_COLUMNS[one][0]:<{_COLUMNS[one][1]}}" for one in columns))
        print(" ".join("-" * _COLUMNS[one][1] for one in columns))
        for job in steps:
            print(" ".join(f"{_value(job, one)[: _COLUMNS[one][1]]:<{_COLUMNS[one][1]}}" for one in columns))
    else:
        print("Id                       Owner      Submitted   ST PRI Class        Running On ")
        print("------------------------ ---------- ----------- -- --- ------------ -----------")
        for job in steps:
            print(
                f"{job['id'][:24]:<24} {_value(job, 'o')[:10]:<10} {_date(job['submitted']):<11} {status(job):<2} 50  "
                f"{job['queue'][:12]:<12} {_value(job, 'h')[:11]:<11}"
            )
    count = [status(job) for job in steps]
    where = "query" if operands or users or classes else "queue"
    print(
        f"\n{len(steps)} job step(s) in {where}, {count.count('I')} waiting, 0 pending, {count.count('R')} running, "
        f"{count.count('H') + count.count('NQ')} held, 0 preempted"
    )
    return 0


def _long(store: Store, job: Job) -> str:
    data = job["data"]
    full = f"{store.config['host']}.{job['seq']}.{data['number']}"

    def long_date(moment: float | None) -> str:
        return time.strftime("%a %b %e %H:%M:%S %Z %Y", time.localtime(moment)) if moment else ""

    def limit(seconds: int | None) -> str:
        if seconds is None:
            return "undefined"
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02} ({seconds} seconds)"

    lines: list[tuple[str, Any]] = [
        ("Job Step Id", full),
        ("Job Name", data["job_name"]),
        ("Step Name", job["name"]),
        ("Structure Version", 10),
        ("Owner", pwd.getpwuid(os.getuid()).pw_name),
        ("Queue Date", long_date(job["submitted"])),
        ("Status", _WORDS[status(job)]),
        ("Reservation ID", ""),
        ("Dispatch Time", long_date(job["started"])),
        ("Completion Date", long_date(job["ended"])),
        ("Completion Code", "" if job["exit"] is None else job["exit"]),
        ("User Priority", 50),
        ("Notifications", data["notification"].capitalize()),
        ("Restart", "yes" if job["rerunnable"] else "no"),
        ("Cmd", data["executable"]),
        ("Args", data["arguments"]),
        ("In", data["input"]),
        ("Out", data["output"]),
        ("Err", data["error"]),
        ("Initial Working Dir", data["initialdir"]),
        ("Dependency", ""),
        ("Step Type", "General Parallel" if data["job_type"].lower() == "parallel" else "Serial"),
        ("Node Usage", "not_shared" if job["excl"] else "shared"),
        ("Notify User", data["notify_user"]),
        ("LoadLeveler Group", "No_Group"),
        ("Class", job["queue"]),
        ("Wall Clk Hard Limit", limit(job["walltime"])),
        ("Wall Clk Soft Limit", limit(job["soft"] or job["walltime"])),
        ("Comment", data["comment"]),
        ("Account", data["account"]),
        ("Allocated Hosts", " ".join(f"{node}:{{}}" for node in job["assigned"])),
        ("Number of Nodes", len(job["chunks"])),
        ("Number of Tasks", sum(chunk["mpiprocs"] for chunk in job["chunks"])),
    ]
    head = f"=============== Job Step {full} ==============="
    return head + "".join(f"\n{name:>19}: {value}" for name, value in lines) + "\n"


def _days(seconds: int | None) -> str:
    if seconds is None:
        return "undefined"
    days, rest = divmod(seconds, 86400)
    text = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}+{text}" if days else text


def llclass(store: Store, argv: list[str]) -> int:
    """Classes: the table of the manual, or with -l one block each."""
    names = [word for word in argv if not word.startswith("-")]
    chosen = {name: one for name, one in store.config["queues"].items() if not names or name in names}
    for name in names:
        if name not in chosen:
            sys.stderr.write(f"llclass: There is no class {name}.\n")
    if not chosen:
        print("llclass: There is currently no class information to report.")
        return 0
    state = store.peek()
    slots = sum(node["ncpus"] for node in store.config["nodes"].values())
    if "-l" not in argv:
        print(f"{'Name':<20} {'MaxJobCPU':>13} {'MaxProcCPU':>13} {'Free':>5} {'Max':>5} Description")
        print(f"{'':<20} {'d+hh:mm:ss':>13} {'d+hh:mm:ss':>13} {'Slots':>5} {'Slots':>5}")
        print()
    for name, one in chosen.items():
        used = sum(
            chunk["mpiprocs"]
            for job in state["jobs"].values()
            if job["state"] == "running" and job["queue"] == name
            for chunk in job["chunks"]
        )
        comment = one.get("comment", "")
        if "-l" not in argv:
            print(f"{name:<20} {'undefined':>13} {'undefined':>13} {slots - used:>5} {slots:>5} {comment}")
            continue
        hard = one.get("max_walltime")
        limit = (
            "undefined, undefined" if hard is None else f"{_days(hard)}, {_days(hard)} ({hard} seconds, {hard} seconds)"
        )
        lines = [
            ("Name", name),
            ("Priority", 50),
            ("Exclude_Users", ""),
            ("Include_Users", ""),
            ("Admin", ""),
            ("Max_processors", -1),
            ("Max_jobs", one.get("max_run", -1)),
            ("Class_comment", comment),
            ("Wall_clock_limit", limit),
            ("Job_cpu_limit", "undefined, undefined"),
            ("Free_slots", slots - used),
            ("Maximum_slots", slots),
        ]
        print(f"=============== Class {name} ===============")
        print("\n".join(f"{key:>20}: {value}" for key, value in lines))
        print("-" * 80)
    return 0


def llstatus(store: Store, argv: list[str]) -> int:
    """Machines: the table of the manual, or with -l one block each; -R what is consumed."""
    names = [word for word in argv if not word.startswith("-")]
    config = store.config
    state = store.peek()
    free, used, _taken = free_nodes(config, state)
    chosen = {name: one for name, one in config["nodes"].items() if not names or name in names}
    running = {
        name: sum(name in job["assigned"] for job in state["jobs"].values() if job["state"] == "running")
        for name in chosen
    }
    if "-R" in argv or "-l" in argv:
        for name, one in chosen.items():
            left = free.get(name, one)
            megabytes = 1024**2
            resources = (
                f"ConsumableCpus({left['ncpus']},{one['ncpus']}) "
                f"ConsumableMemory({left['mem'] // megabytes}.000 mb,{one['mem'] // megabytes}.000 mb)"
            )
            if one["ngpus"]:
                resources += f" {config['gpu_resource']}({left['ngpus']},{one['ngpus']})"
            if "-R" in argv:
                print(f"{name:<25} {resources}")
                continue
            print(f"===============================================================================\nName = {name}")
            print(f"Machine = {name}\nArch = {config['arch']}\nOpSys = {config['opsys']}")
            print(f"Feature = {' '.join(one.get('features', []))}\nCpus = {one['ncpus']}")
            print(f"Memory = {one['mem'] // megabytes} mb\nConsumableResources = {resources}")
            classes = " ".join(f"{queue}({one['ncpus']})" for queue in config["queues"])
            print(f"ConfiguredClasses = {classes}")
            print(f"LoadL_startd Status = {'Down' if name not in free else 'Busy' if running[name] else 'Idle'}")
        return 0
    print("Name                      Schedd InQ  Act Startd Run LdAvg Idle Arch      OpSys    ")
    for name in chosen:
        startd = "Down" if name not in free else "Run" if running[name] else "Idle"
        schedd = "Avail" if name in free else "Down"
        counts = f"{0:>3} {running[name]:>4} {startd:<6} {running[name]:>3}"
        print(f"{name:<25} {schedd:<6} {counts} 0.00  9999 {config['arch']:<9} {config['opsys']:<9}")
    total = len(chosen)
    print(
        f"\n{config['arch']}/{config['opsys']}            {total} machines  "
        f"{sum(job['state'] != 'done' for job in state['jobs'].values())} jobs  {len(used)} running tasks"
    )
    print(
        f"Total Machines           {total} machines  "
        f"{sum(job['state'] != 'done' for job in state['jobs'].values())} jobs  {len(used)} running tasks\n"
    )
    print(f"The Central Manager is defined on {config['host']}\n")
    print("The BACKFILL scheduler is in use\n")
    print(
        "All machines on the machine_list are present."
        if all(name in free for name in chosen)
        else "Some machines are absent."
    )
    return 0
