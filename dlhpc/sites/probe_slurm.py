"""What Slurm says of its machine: `scontrol show config`, `show partition`, `show node`, and sacctmgr's associations.

The one-line form of scontrol is a list of ``Key=value`` joined by blanks; a few values hold blanks themselves, so that
a value ends where the next ``Key=`` begins.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from datetime import timedelta

from dlhpc.sites.probe import LiveNode, LiveQueue, Machine, Questions, clock, whole

_FIELD = re.compile(r"(?:^|(?<=\s))([A-Za-z][A-Za-z0-9_:]*)=")
_SETTING = re.compile(r"^(\S[^=]*?)\s*=\s?(.*)$", re.MULTILINE)
_NOT_UP = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "ERROR", "UNKNOWN", "FUTURE", "NOT_RESPONDING"}


def fields(line: str) -> dict[str, str]:
    """One line of ``scontrol show … --oneliner`` as key → value."""
    marks = list(_FIELD.finditer(line))
    ends = [mark.start() for mark in marks[1:]] + [len(line)]
    return {mark[1]: line[mark.end() : end].strip() for mark, end in zip(marks, ends)}


def parse_config(text: str) -> dict[str, str]:
    """``scontrol show config``: ``Key = value`` lines."""
    return {found[1].strip(): found[2].strip() for found in _SETTING.finditer(text)}


def parse_gres(text: str) -> dict[str, int]:
    """``gpu:a100:4(S:0-1),gpu:v100:2,shard:8`` → ``{gpu: 6, gpu:a100: 4, gpu:v100: 2, shard: 8}``."""
    counts: dict[str, int] = {}
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        words = part.strip().split(":")
        if not words[0]:
            continue
        last = whole(words[-1]) if len(words) > 1 else 1
        names = words[: -1 if len(words) > 1 and last is not None else None]
        for name in {names[0], ":".join(names)}:
            counts[name] = counts.get(name, 0) + (1 if last is None else last)
    return counts


def parse_nodes(text: str) -> tuple[LiveNode, ...]:
    """``scontrol show node --oneliner``."""
    nodes = []
    for line in text.splitlines():
        row = fields(line)
        if "NodeName" not in row:
            continue
        resources = parse_gres("" if row.get("Gres") == "(null)" else row.get("Gres", ""))
        state = row.get("State", "")
        flags = set(re.sub(r"[*~#!%$@^-]+$", "", state).upper().split("+"))
        megabytes = whole(row.get("RealMemory"))
        nodes.append(
            LiveNode(
                row["NodeName"],
                cores=whole(row.get("CPUEfctv")) or whole(row.get("CPUTot")),
                memory_bytes=None if megabytes is None else megabytes * 2**20,
                gpus=resources.get("gpu", 0),
                resources=resources,
                features=tuple(_words(row.get("AvailableFeatures"))),
                queues=tuple(_words(row.get("Partitions"))),
                state=state,
                up=not flags & _NOT_UP and "*" not in state,
            )
        )
    return tuple(nodes)


def parse_partitions(text: str) -> tuple[LiveQueue, ...]:
    """``scontrol show partition --oneliner``; an unlimited MaxTime is None."""
    queues = []
    for line in text.splitlines():
        row = fields(line)
        if "PartitionName" not in row:
            continue
        state = row.get("State", "UP")
        queues.append(
            LiveQueue(
                row["PartitionName"],
                is_default=row.get("Default") == "YES",
                max_walltime=clock(row.get("MaxTime", "")),
                min_nodes=whole(row.get("MinNodes")) or None,
                max_nodes=whole(row.get("MaxNodes")),
                closed=None if state == "UP" else f"State={state}",
            )
        )
    return tuple(queues)


def _words(text: str | None) -> list[str]:
    return [] if text in (None, "", "(null)") else [word for word in str(text).split(",") if word]


def _accounts(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.strip("|") for line in text.splitlines() if line.strip("|")))


def _seconds(text: str | None) -> timedelta | None:
    found = re.match(r"(\d+)\s*sec", text or "")
    return timedelta(seconds=int(found[1])) if found else None


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user whom only the network knows, and it does not answer
        return str(os.getuid())


def probe_slurm() -> Machine:
    """Ask Slurm's controller, and its accounting where it enforces associations."""
    questions = Questions()
    config: Mapping[str, str] = questions.answer(["scontrol", "show", "config"], parse_config) or {}
    largest = whole(config.get("MaxArraySize"))
    accounts = None
    if "associations" in config.get("AccountingStorageEnforce", "").lower():
        argv = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={_user()}", "format=Account"]
        accounts = questions.answer(argv, _accounts)
    return Machine(
        "slurm",
        name=config.get("ClusterName", ""),
        version=config.get("SLURM_VERSION", ""),
        queues=questions.answer(["scontrol", "--oneliner", "show", "partition"], parse_partitions),
        nodes=questions.answer(["scontrol", "--oneliner", "show", "node"], parse_nodes),
        max_array=largest - 1 if largest else None,
        kill_grace=_seconds(config.get("KillWait")),
        accounts=accounts,
        silent=tuple(questions.silent),
    )
