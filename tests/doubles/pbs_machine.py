"""What PBS says of queues and nodes: qstat -Q and -q, pbsnodes, qmgr."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from tests.doubles.engine import Store, fail, free_nodes, node_names, whole
from tests.doubles.pbs_resources import clock
from tests.doubles.pbs_show import folded, letter, nested, options


def queues(store: Store, flags: dict[str, str], operands: list[str]) -> int:
    """``qstat -Q`` (with -f: everything) and ``qstat -q``."""
    listed: dict[str, dict[str, Any]] = {}
    for name, queue in store.config["queues"].items():
        if operands and name not in operands:
            continue
        jobs = [
            whole(store.state, job) for job in store.jobs.values() if job["state"] != "done" and job["kind"] != "array"
        ]
        jobs = [job for job in jobs if job["queue"] == name]
        count = {one: sum(letter(store, job) == one for job in jobs) for one in "QHRWE"}
        listed[name] = {
            "queue_type": "Execution",
            "total_jobs": len(jobs),
            "state_count": f"Transit:0 Queued:{count['Q']} Held:{count['H']} Waiting:{count['W']} "
            f"Running:{count['R']} Exiting:0 Begun:0 ",
        }
        for key, resource in (("max_walltime", "resources_max"), ("default_walltime", "resources_default")):
            if queue.get(key) is not None:
                listed[name][f"{resource}.walltime"] = clock(queue[key])
        if queue.get("max_run") is not None:
            listed[name]["max_run"] = f"[u:PBS_GENERIC={queue['max_run']}]"
        listed[name] |= {"enabled": str(queue.get("enabled", True)), "started": str(queue.get("started", True))}
    code = 0
    for word in operands:
        if word not in listed:
            sys.stderr.write(f"qstat: Unknown queue destination {word}\n")
            code = 170
    if "f" in flags and flags.get("F") == "json":
        head = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": store.config["server"]}
        print(json.dumps(head | {"Queue": {name: nested(one) for name, one in listed.items()}}, indent=4))
    elif "f" in flags:
        for name, one in listed.items():
            print(f"Queue: {name}")
            for key, value in one.items():
                print(folded(key, value))
            print()
    elif "q" in flags:
        print(f"\nserver: {store.config['server']}\n")
        print("Queue            Memory CPU Time Walltime Node   Run   Que   Lm  State")
        print("---------------- ------ -------- -------- ---- ----- ----- ----  -----")
        for name, one in listed.items():
            found = dict(part.split(":") for part in one["state_count"].split())
            longest = one.get("resources_max.walltime", "--")
            state = f"{'E' if one['enabled'] == 'True' else 'D'} {'R' if one['started'] == 'True' else 'S'}"
            counts = f"{found['Running']:>5} {found['Queued']:>5}"
            print(f"{name:<16}   --      --    {longest:>8}  --  {counts}   --   {state}")
    else:
        print("Queue              Max   Tot Ena Str   Que   Run   Hld   Wat   Trn   Ext Type")
        print("---------------- ----- ----- --- --- ----- ----- ----- ----- ----- ----- ----")
        for name, one in listed.items():
            found = dict(part.split(":") for part in one["state_count"].split())
            yes = {"True": "yes", "False": "no"}
            print(
                f"{name:<16} {0:>5} {one['total_jobs']:>5} {yes[one['enabled']]:>3} {yes[one['started']]:>3} "
                f"{found['Queued']:>5} {found['Running']:>5} {found['Held']:>5} {found['Waiting']:>5}     0     0 Exec"
            )
    return code


def pbsnodes(store: Store, argv: list[str]) -> int:
    """Nodes with what they have and what is assigned (-a, -av, -F json; -l: only those that are not free)."""
    flags, operands = options(argv, "avlSjLx", "Fs", "pbsnodes")
    free, _used, taken = free_nodes(store.config, store.peek())
    listed: dict[str, dict[str, Any]] = {}
    code = 0
    for name in operands:
        if name not in store.config["nodes"]:
            sys.stderr.write(f"Node: {name},  Error: Unknown node \n")
            code = 1
    for name, node in store.config["nodes"].items():
        if operands and name not in operands:
            continue
        on = name in node_names(store.config)
        busy = on and (name in taken or free[name]["ncpus"] <= 0)
        state = ("job-exclusive" if name in taken else "job-busy") if busy else node.get("state", "free")
        one: dict[str, Any] = {"Mom": node["hostname"], "ntype": "PBS", "state": state, "pcpus": node["ncpus"]}
        one |= {"resources_available.arch": "linux", "resources_available.host": name}
        one["resources_available.mem"] = f"{node['mem'] // 1024}kb"
        one |= {f"resources_available.{what}": node[what] for what in ("ncpus", "ngpus")}
        one["resources_available.vnode"] = name
        one["resources_assigned.mem"] = f"{(node['mem'] - free[name]['mem']) // 1024 if on else 0}kb"
        one |= {f"resources_assigned.{what}": node[what] - free[name][what] if on else 0 for what in ("ncpus", "ngpus")}
        one |= {"resv_enable": "True", "sharing": "default_shared"}
        listed[name] = one
    if store.config["dialect"] == "torque":
        for name, one in listed.items():
            node = store.config["nodes"][name]
            print(
                f"{name}\n     state = {one['state'].replace('job-busy', 'job-exclusive')}\n     np = {node['ncpus']}"
            )
            if node.get("features"):
                print(f"     properties = {','.join(node['features'])}")
            status = f"opsys=linux,ncpus={node['ncpus']},totmem={node['mem'] // 1024}kb,physmem={node['mem'] // 1024}kb"
            print(f"     ntype = cluster\n     status = {status}\n     gpus = {node['ngpus']}\n")
    elif flags.get("F") == "json":
        head = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": store.config["server"]}
        print(json.dumps(head | {"nodes": {name: nested(one) for name, one in listed.items()}}, indent=4))
    else:
        for name, one in listed.items():
            if "l" in flags:
                if one["state"] not in ("free", "job-busy", "job-exclusive"):
                    print(f"{name:<20} {one['state']}")
                continue
            print(name + "".join(f"\n     {key} = {value}" for key, value in one.items()) + "\n")
    return code


def qmgr(store: Store, argv: list[str]) -> int:
    """Only what anybody may: ``-c 'list queue …'``, ``'list server'``, ``'print …'``."""
    flags, _ = options(argv, "aenz", "c", "qmgr")
    words = flags.get("c", "").split()
    if len(words) < 2 or words[0] not in ("list", "print", "l", "p"):
        raise fail("qmgr obj= svr=default: Unauthorized Request ", 1)
    if words[1].startswith("s"):
        print(f"Server {store.config['server']}\n    default_queue = {store.config['default_queue']}")
        print(f"    job_history_enable = {store.config['history']}\n")
        return 0
    names = [word.rstrip(",") for word in words[2:]]
    for name in names:
        if name not in store.config["queues"]:
            raise fail(f"qmgr obj={name} svr=default: Unknown queue ", 1)
    for name, queue in store.config["queues"].items():
        if names and name not in names:
            continue
        print(f"Queue {name}\n    queue_type = Execution")
        if queue.get("max_walltime") is not None:
            print(f"    resources_max.walltime = {clock(queue['max_walltime'])}")
        if queue.get("default_walltime") is not None:
            print(f"    resources_default.walltime = {clock(queue['default_walltime'])}")
        print(f"    enabled = {queue.get('enabled', True)}\n    started = {queue.get('started', True)}\n")
    return 0
