"""``llsubmit``: job command files of LoadLeveler, read as its manual says.

Of the messages, ``The job "…" has been submitted.``, ``Processed command file through Submit Filter`` and ``2512-051
This job has not been submitted to LoadLeveler.`` are the product's own. The sentence before a 2512-051 says what is
wrong in our words: the wording of the real ones, and their numbers, were not to be had.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from typing import Any

from tests.doubles.engine import Job, Store, advance, inside_a_job, new_job

Keywords = dict[str, str]

# Keywords of the manual's chapter on job command files; a name that is not here is refused.
_KNOWN = """
    account_no arguments as_limit bg_block bg_connection bg_size blocking bulkxfer checkpoint ckpt_dir ckpt_file
    ckpt_time_limit class cluster_input_file cluster_list cluster_option cluster_output_file comment core_limit
    coschedule cpu_limit data_limit dependency dstg_environment energy_policy_tag env_copy environment error
    executable file_limit first_node_tasks group hold host_file image_size initialdir input island_count
    job_cpu_limit job_name job_type large_page ll_res_id locks_limit mcm_affinity_options memlock_limit
    metacluster_job min_processors max_processors max_perf_decrease_allowed network.lapi network.mpi
    network.mpi_lapi network.shmem node node_resources node_topology node_usage nofile_limit notification
    notify_user nproc_limit output parallel_threads parallel_path preferences recurring requirements resources
    restart restart_from_ckpt restart_on_same_nodes rset rset_support shell smt stack_limit startdate step_name
    step_resources task_affinity task_geometry tasks_per_node total_tasks trace user_priority wall_clock_limit
    rss_limit perf_monitor
"""
KNOWN = frozenset(_KNOWN.split())
_CHOICES = {
    "job_type": ("serial", "parallel", "bluegene", "mpich", "pvm3"),
    "node_usage": ("shared", "not_shared", "slice_not_shared"),
    "notification": ("always", "error", "start", "never", "complete"),
    "restart": ("yes", "no"),
    "hold": ("user", "system", "usersys"),
    "checkpoint": ("yes", "no", "interval"),
}
_NOT_INHERITED = ("queue", "step_name", "dependency", "hold")


class Wrong(Exception):
    """What is wrong with a job command file, in one sentence."""


def parse(text: str) -> tuple[list[Keywords], bool]:
    """The keywords of every step, and whether lines other than keywords and comments follow (the script).

    A line ends its step with ``# @ queue``; a step takes over what the step before had. A continued line begins with
    ``#`` but not with ``# @``.
    """
    steps: list[Keywords] = []
    current: Keywords = {}
    lines = text.split("\n")
    number = 0
    has_script = False
    while number < len(lines):
        line = lines[number]
        number += 1
        found = re.match(r"#[ \t]*@[ \t]*(.*)", line)
        if not found:
            has_script = has_script or bool(line.strip() and not line.lstrip().startswith("#"))
            continue
        if line.endswith("\r"):
            raise Wrong(f"Syntax error: unexpected character at the end of line {number}")
        statement = found[1].rstrip()
        while statement.endswith("\\"):
            if number >= len(lines) or re.match(r"#[ \t]*@", lines[number]):
                raise Wrong(f"Syntax error: line {number} is continued, the next line is another keyword statement")
            statement = statement[:-1].rstrip() + " " + lines[number].lstrip("#").strip()
            number += 1
        if not statement:
            continue
        if statement.lower() == "queue":
            steps.append(current)
            current = {name: value for name, value in current.items() if name not in _NOT_INHERITED}
            continue
        name, equals, value = statement.partition("=")
        name = name.strip().lower()
        if not equals or not re.fullmatch(r"[a-z_.]+", name):
            raise Wrong(f'Syntax error: "{statement}"')
        if name not in KNOWN:
            raise Wrong(f'The keyword "{name}" is not valid')
        current[name] = value.strip()
    if not steps:
        raise Wrong('The job command file contains no "queue" statement')
    return steps, has_script


def limit_seconds(text: str) -> int:
    """``[[hh:]mm:]ss[.fraction]`` in seconds, rounded."""
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", text):
        raise Wrong(f'The value "{text}" of the "wall_clock_limit" keyword is not valid')
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return round(total)


def _resources(text: str, config: dict[str, Any]) -> dict[str, int]:
    """``ConsumableCpus(4) ConsumableMemory(2 gb) gpus(1)``, per task: cores, bytes and GPUs."""
    found = {"ncpus": 1}
    names = {"consumablecpus": "ncpus", "consumablememory": "mem", config["gpu_resource"].lower(): "ngpus"}
    names |= {"consumablevirtualmemory": "vmem", "consumablelargepagememory": "vmem"}
    rest = text.strip()
    while rest:
        one = re.match(r"([\w.+-]+)\s*\(\s*(\d+)\s*([a-zA-Z]*)\s*\)\s*", rest)
        if not one:
            raise Wrong(f'Syntax error in the "resources" keyword at "{rest}"')
        name, amount, unit = one[1].lower(), int(one[2]), one[3].lower()
        rest = rest[one.end() :]
        if name not in names:
            raise Wrong(f'The resource "{one[1]}" is not defined on this cluster')
        if names[name] in ("mem", "vmem"):
            units = {"b": 1, "w": 8, "kb": 1024, "mb": 1024**2, "": 1024**2, "gb": 1024**3, "tb": 1024**4}
            if unit not in units:
                raise Wrong(f'The unit "{one[3]}" of the resource "{one[1]}" is not valid')
            found[names[name]] = amount * units[unit]
        elif unit:
            raise Wrong(f'The resource "{one[1]}" takes no unit')
        else:
            found[names[name]] = amount
    return found


def _count(keywords: Keywords, name: str, default: str) -> int:
    text = keywords.get(name, default).partition(",")[0].strip()
    if not text.isdecimal() or int(text) < 1:
        raise Wrong(f'The value "{keywords[name]}" of the "{name}" keyword is not valid')
    return int(text)


def _tasks(keywords: Keywords) -> list[int]:
    """How many tasks each node gets."""
    parallel = keywords.get("job_type", "serial").lower() != "serial"
    for name in ("node", "tasks_per_node", "total_tasks"):
        if name in keywords and not parallel:
            raise Wrong(f'The "{name}" keyword is only valid for job_type = parallel')
    if "tasks_per_node" in keywords and "total_tasks" in keywords:
        raise Wrong('The "tasks_per_node" and "total_tasks" keywords may not both be given')
    if "total_tasks" in keywords and "node" not in keywords:
        raise Wrong('The "total_tasks" keyword needs the "node" keyword')
    nodes = _count(keywords, "node", "1")
    if "total_tasks" in keywords:
        total = _count(keywords, "total_tasks", "1")
        if total < nodes:
            raise Wrong('"total_tasks" is smaller than "node"')
        return [total // nodes + (number < total % nodes) for number in range(nodes)]
    return [_count(keywords, "tasks_per_node", "1")] * nodes


def environment(text: str, own: dict[str, str]) -> dict[str, str]:
    """``COPY_ALL; A=1; $B; !C``: what of the submitter's variables the step gets, and new ones."""
    found: dict[str, str] = {}
    removed = set()
    for part in text.split(";"):
        word = part.strip().strip('"').strip()
        if not word:
            continue
        if word.upper() == "COPY_ALL":
            found = own | found
        elif re.fullmatch(r"\$\w+", word):
            if word[1:] in own:
                found[word[1:]] = own[word[1:]]
        elif re.fullmatch(r"!\w+", word):
            removed.add(word[1:])
        elif re.match(r"[A-Za-z_]\w*\s*=", word):
            name, _, value = word.partition("=")
            found[name.strip()] = value.strip()
        else:
            raise Wrong(f'Syntax error in the "environment" keyword at "{word}"')
    return {name: value for name, value in found.items() if name not in removed}


def _dependency(text: str, names: list[str]) -> list[list[Any]]:
    """``(a == 0) && (b > 1)`` as step, comparison, number; steps must stand further up."""
    found = []
    for part in re.split(r"&&|\|\|", text):
        one = re.fullmatch(r"\s*\(?\s*([\w.]+)\s*(==|!=|<=|>=|<|>)\s*(\d+|CC_NOTRUN|CC_REMOVED)\s*\)?\s*", part)
        if not one or one[1] not in names:
            raise Wrong(f'Syntax error in the "dependency" keyword, or no such step: "{part.strip()}"')
        found.append([names.index(one[1]), one[2], one[3]])
    if "||" in text:
        found.append(["any"])
    return found


def _features(text: str) -> tuple[list[str], str | None]:
    """Features and machine that ``requirements`` names; other terms are taken as met."""
    features = re.findall(r'Feature\s*==\s*"([^"]+)"', text)
    machine = re.search(r'Machine\s*==\s*"([^"]+)"', text)
    if text.count("(") != text.count(")") or text.count('"') % 2 or re.search(r"[^=!<>]=[^=]", text):
        raise Wrong(f'Syntax error in the "requirements" keyword: {text}')
    return features, machine[1] if machine else None


def _step(store: Store, keywords: Keywords, number: int, names: list[str], own: dict[str, str]) -> dict[str, Any]:
    config = store.config
    for name, choices in _CHOICES.items():
        if name in keywords and keywords[name].lower() not in choices:
            raise Wrong(f'The value "{keywords[name]}" of the "{name}" keyword is not valid')
    name = keywords.get("step_name", str(number))
    if "step_name" in keywords and (not re.fullmatch(r"[A-Za-z_][\w.]*", name) or name in names or name in "TF"):
        raise Wrong(f'The value "{name}" of the "step_name" keyword is not valid')
    queue = config["queues"].get(keywords.get("class", config["default_queue"]))
    if queue is None or not queue.get("enabled", True):
        raise Wrong(f'The class "{keywords.get("class")}" is not valid, or you may not use it')
    if config["account_needed"] and not keywords.get("account_no"):
        raise Wrong('The "account_no" keyword is required')
    if "network.mpi" in keywords and len(keywords["network.mpi"].split(",")) > 5:
        raise Wrong('Syntax error in the "network.MPI" keyword')
    hard, _, soft = keywords.get("wall_clock_limit", "").partition(",")
    limit = limit_seconds(hard.strip()) if hard.strip() else queue.get("default_walltime", queue.get("max_walltime"))
    if limit is None:
        raise Wrong('The "wall_clock_limit" keyword is required: the class has none')
    if queue.get("max_walltime") is not None and limit > queue["max_walltime"]:
        raise Wrong(f'The "wall_clock_limit" {hard} exceeds that of the class')
    softly = min(limit_seconds(soft.strip()), limit) if soft.strip() else None
    task = _resources(keywords.get("resources", ""), config)
    features, machine = _features(keywords.get("requirements", ""))
    chunks = []
    for tasks in _tasks(keywords):
        chunk: dict[str, Any] = {what: task[what] * tasks for what in ("ncpus", "ngpus", "mem") if what in task}
        chunks.append(chunk | {"mpiprocs": tasks, "features": features, "host": machine})
    return {
        "name": name,
        "queue": keywords.get("class", config["default_queue"]),
        "chunks": chunks,
        "place": "scatter",
        "excl": keywords.get("node_usage", "shared").lower() == "not_shared",
        "walltime": limit,
        "soft": softly,
        "rerunnable": keywords.get("restart", "yes").lower() == "yes",
        "variables": environment(keywords.get("environment", ""), own),
        "needs": _dependency(keywords["dependency"], names) if "dependency" in keywords else [],
    }


def expand(text: str, values: dict[str, str]) -> str:
    """``$(name)`` in a keyword's value; names that LoadLeveler does not know stay."""
    return re.sub(r"\$\((\w+)\)", lambda one: values.get(one[1].lower(), one[0]), text)


def llsubmit(store: Store, argv: list[str]) -> int:
    """Queue the steps of a job command file."""
    quiet = "-q" in argv
    operands = [word for word in argv if word not in ("-q", "-X")]
    if len(operands) != 1 or (operands[0].startswith("-") and operands[0] != "-"):
        sys.stderr.write("llsubmit: Usage: llsubmit [-?] [-H] [-v] [-q] [-X {cluster_list | any}] [cmdfile | - ]\n")
        return 1
    try:
        if operands[0] == "-":
            text = sys.stdin.read()
        else:
            try:
                with open(operands[0], encoding="utf-8", errors="surrogateescape", newline="") as file:
                    text = file.read()
            except OSError as error:
                raise Wrong(f'Cannot open the file "{operands[0]}": {error.strerror}') from None
        if store.config["banner"]:
            print("\n".join(store.config["banner"]))
            sys.stdout.flush()
            sys.stderr.write('llsubmit: Processed command file through Submit Filter: "/etc/loadl/submit_filter".\n')
        if not store.config["compute_may_submit"] and inside_a_job(store):
            raise Wrong("This machine may not submit jobs")
        full_name = _queue(store, text)
    except Wrong as error:
        sys.stderr.write(f"llsubmit: {error}.\nllsubmit: 2512-051 This job has not been submitted to LoadLeveler.\n")
        return 1
    if not quiet:
        print(f'llsubmit: The job "{full_name}" has been submitted.')
    return 0


def _queue(store: Store, text: str) -> str:
    steps, has_script = parse(text)
    config = store.config
    names: list[str] = []
    made = []
    for number, keywords in enumerate(steps):
        if "executable" not in keywords and not has_script:
            raise Wrong("There is nothing to run: no executable, and no commands in the job command file")
        made.append(_step(store, keywords, number, names, dict(os.environ)))
        names.append(made[-1]["name"])
    with store:
        seq = store.state["next"]
        store.state["next"] += 1
        os.makedirs(store.path("jobs"), exist_ok=True)
        script = store.path("jobs", f"{seq}.cmd")
        with open(script, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
        os.chmod(script, 0o700)
        short = config["host"].partition(".")[0]
        ids = [f"{short}.{seq}.{number}" for number in range(len(steps))]
        for number, (keywords, step) in enumerate(zip(steps, made)):
            store.jobs[ids[number]] = _record(config, seq, number, keywords, step, ids, script)
        advance(store)
    return f"{config['host']}.{seq}"


def _record(
    config: dict[str, Any], seq: int, number: int, keywords: Keywords, step: dict[str, Any], ids: list[str], script: str
) -> Job:
    user = pwd.getpwuid(os.getuid()).pw_name
    short = config["host"].partition(".")[0]
    values = {
        "jobid": str(seq),
        "cluster": str(seq),
        "stepid": str(number),
        "process": str(number),
        "host": short,
        "hostname": short,
        "schedd_host": short,
        "domain": config["host"].partition(".")[2],
        "user": user,
        "home": config["home"],
        "class": step["queue"],
        "step_name": step["name"],
        "job_type": keywords.get("job_type", "serial"),
        "comment": keywords.get("comment", ""),
        "account_no": keywords.get("account_no", ""),
    }
    values["job_name"] = expand(keywords.get("job_name", f"{config['host']}.{seq}"), values)
    directory = expand(keywords.get("initialdir", os.getcwd()), values)
    executable = expand(keywords["executable"], values) if "executable" in keywords else script
    data = {
        "job_name": values["job_name"],
        "initialdir": directory,
        "input": expand(keywords.get("input", os.devnull), values),
        "output": expand(keywords.get("output", os.devnull), values),
        "error": expand(keywords.get("error", os.devnull), values),
        "executable": os.path.join(directory, executable),
        "arguments": keywords.get("arguments", ""),
        "variables": step["variables"],
        "job_type": keywords.get("job_type", "serial"),
        "account": keywords.get("account_no", ""),
        "comment": keywords.get("comment", ""),
        "notification": keywords.get("notification", "complete"),
        "notify_user": keywords.get("notify_user", f"{user}@{short}"),
        "number": number,
        "needs": [[ids[one[0]], *one[1:]] if len(one) > 1 else one for one in step["needs"]],
    }
    held = keywords.get("hold", "").lower()
    holds = "u" if held in ("user", "usersys") else ""
    state = "waiting" if step["needs"] else "held" if holds else "queued"
    common = {name: step[name] for name in ("name", "queue", "chunks", "place", "excl", "walltime", "soft")}
    return new_job(
        id=ids[number],
        seq=seq,
        kind="step",
        state=state,
        holds=holds,
        data=data,
        rerunnable=step["rerunnable"],
        **common,
    )
