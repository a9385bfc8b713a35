"""What a PBS job may ask of the machine: ``-l`` of OpenPBS and of Torque, read as strictly as the servers do.

Exit codes are the server's error numbers modulo 256, as in OpenPBS' ``pbs_error.h``.
"""

from __future__ import annotations

import re
from typing import Any

BAD_VALUE, UNKNOWN_RESOURCE, BAD_NODES, BAD_IN_SELECT = 166, 187, 241, 4
NOT_WITH_SELECT, NODES_WITH_SELECT, PLACE_ALONE = 5, 6, 7

_TIME = re.compile(r"(\d+:){0,2}\d+(\.\d+)?")
_SIZE = re.compile(r"(\d+)([kmgtp]?)([bw]?)", re.IGNORECASE)
_CHUNK = {"ncpus", "ngpus", "mem", "mpiprocs", "ompthreads", "vmem"}
_CHUNK_WORDS = {"host", "vnode", "arch"}
_JOB_WIDE = {"walltime", "cput", "pcput", "pmem", "pvmem", "file", "nice", "software", "min_walltime", "max_walltime"}
_TIMES = {"walltime", "cput", "pcput", "min_walltime", "max_walltime"}
_SIZES = {"mem", "vmem", "pmem", "pvmem", "file"}


class Refused(Exception):
    """The server (or qsub) does not take it: a sentence and an exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code


def bad_value(name: str) -> Refused:
    """The answer to a value in the wrong format."""
    return Refused(f"Illegal attribute or resource value Resource_List.{name}", BAD_VALUE)


def unknown(name: str) -> Refused:
    """The answer to a resource that the server does not have."""
    return Refused(f"Unknown resource Resource_List.{name}", UNKNOWN_RESOURCE)


def seconds(text: str, name: str = "walltime") -> int:
    """``90``, ``00:90:00`` or ``1:30:00`` in seconds; days and units are refused."""
    if not _TIME.fullmatch(text):
        raise bad_value(name)
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return int(total)


def size(text: str, name: str = "mem") -> int:
    """``4gb`` in bytes; ``4GiB`` and ``1.5gb`` are refused."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise bad_value(name)
    unit: int = 1024 ** " kmgtp".index(found[2].lower() or " ")
    return int(found[1]) * unit * (8 if found[3].lower() == "w" else 1)


def clock(total: float) -> str:
    """Seconds as PBS prints them."""
    return f"{int(total) // 3600:02}:{int(total) // 60 % 60:02}:{int(total) % 60:02}"


def split_list(text: str) -> list[tuple[str, str]]:
    """The ``name=value`` pairs of one ``-l``."""
    pairs = []
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not name.strip() or not equals or not value:
            raise Refused("illegal -l value", 2)
        pairs.append((name.strip(), value))
    return pairs


def _count(text: str, name: str) -> int:
    if not text.isdecimal():
        raise bad_value(name)
    return int(text)


def parse_select(text: str, custom: set[str]) -> list[dict[str, Any]]:
    """The chunks of ``2:ncpus=8:ngpus=4+1:ncpus=1``, one dictionary each."""
    chunks = []
    for group in text.split("+"):
        words = group.split(":")
        many = 1
        if words[0].isdecimal():
            many = int(words.pop(0))
        chunk: dict[str, Any] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or not value or name in chunk:
                raise bad_value("select")
            if name in _JOB_WIDE:
                raise Refused(f'Resource invalid in "select" specification: {name}', BAD_IN_SELECT)
            if name in _SIZES & _CHUNK:
                chunk[name] = size(value, "select")
            elif name in _CHUNK:
                chunk[name] = _count(value, "select")
            elif name in _CHUNK_WORDS or name in custom:
                chunk["host" if name == "vnode" else name] = value
            else:
                raise unknown(name)
        if many < 1:
            raise bad_value("select")
        chunk.setdefault("ncpus", 1)
        chunks += [dict(chunk) for _ in range(many)]
    return chunks


def parse_place(text: str) -> tuple[str, bool]:
    """The arrangement, and whether nodes are for this job alone."""
    arrangement, exclusive = "free", False
    for word in text.split(":"):
        if word in ("free", "pack", "scatter", "vscatter"):
            arrangement = "scatter" if word == "vscatter" else word
        elif word in ("excl", "exclhost"):
            exclusive = True
        elif word != "shared" and not word.startswith("group="):
            raise bad_value("place")
    return arrangement, exclusive


def _nodes_as_select(text: str) -> str:
    """``nodes=N:ppn=M`` as OpenPBS rewrites it; anything else in it is taken for an unknown node property."""
    chunks = []
    for group in text.split("+"):
        words = group.split(":")
        if not words[0].isdecimal():
            raise Refused("node(s) specification error", BAD_NODES)
        ppn = 1
        for word in words[1:]:
            name, equals, value = word.partition("=")
            if name not in ("ppn", "cpp", "ncpus") or not equals or not value.isdecimal():
                raise Refused("node(s) specification error", BAD_NODES)
            ppn = int(value)
        chunks.append(f"{words[0]}:ncpus={ppn}:mpiprocs={ppn}")
    return "+".join(chunks)


def openpbs(asked: dict[str, str], custom: set[str]) -> dict[str, Any]:
    """What OpenPBS makes of all ``-l``: chunks, place, excl, walltime, and the list that qstat shows."""
    asked = dict(asked)
    for name, value in asked.items():
        if name in _TIMES:
            seconds(value, name)
        elif name in _SIZES:
            size(value, name)
        elif name in _CHUNK:
            _count(value, name)
        elif name not in {"select", "place", "nodes", "nodect"} | _JOB_WIDE | _CHUNK_WORDS | custom:
            raise unknown(name)
    if "nodes" in asked:
        if "select" in asked or "place" in asked:
            raise Refused("Cannot be used with select or place: nodes", NODES_WITH_SELECT)
        asked["select"] = _nodes_as_select(asked["nodes"])
        asked["place"] = "scatter"
    elif "select" in asked:
        for name in asked:
            if name in _CHUNK | _CHUNK_WORDS | custom:
                raise Refused(
                    f'"-lresource=" cannot be used with "select" or "place", resource is: {name}', NOT_WITH_SELECT
                )
    elif "place" in asked:
        raise Refused('"place" cannot be used without "select"', PLACE_ALONE)
    if "select" not in asked:
        words = [f"{name}={asked[name]}" for name in asked if name in _CHUNK | _CHUNK_WORDS | custom]
        asked["select"] = ":".join(["1", *([] if "ncpus" in asked else ["ncpus=1"]), *words])
        asked["place"] = "pack"
    chunks = parse_select(asked["select"], custom)
    asked.setdefault("place", "free")
    arrangement, exclusive = parse_place(asked["place"])
    shown: dict[str, Any] = {name: value for name, value in asked.items() if name in _JOB_WIDE | {"nodes"}}
    for name in ("mem", "mpiprocs", "ncpus", "ngpus"):
        total = sum(chunk.get(name, 0) for chunk in chunks)
        if total:
            shown[name] = f"{total // 1024}kb" if name == "mem" else total
    walltime = seconds(asked["walltime"]) if "walltime" in asked else None
    shown |= {"nodect": len(chunks), "place": asked["place"], "select": asked["select"]}
    if walltime is not None:
        shown["walltime"] = clock(walltime)
    for chunk in chunks:
        # A chunk without mpiprocs has one MPI process in the node file, whatever its ncpus.
        chunk.setdefault("mpiprocs", 1)
    return {
        "chunks": chunks,
        "place": arrangement,
        "excl": exclusive,
        "walltime": walltime,
        "resources": dict(sorted(shown.items())),
    }


_TORQUE_KNOWN = {"nodes", "procs", "walltime", "cput", "pcput", "mem", "pmem", "vmem", "pvmem", "ncpus", "file", "nice"}
_TORQUE_KNOWN |= {"feature", "naccesspolicy", "nodeset", "qos", "software", "arch", "opsys", "host", "other", "gres"}


def torque(asked: dict[str, str], names: list[str]) -> dict[str, Any]:
    """What Torque makes of all ``-l``: ``nodes=N:ppn=M:gpus=G[:property]``. There is no ``select``."""
    walltime = None
    for name, value in asked.items():
        if name not in _TORQUE_KNOWN:
            raise unknown(name)
        if name in _TIMES:
            # Torque's manual also takes days, DD:HH:MM:SS.
            if not re.fullmatch(r"(\d+:){0,3}\d+(\.\d+)?", value):
                raise bad_value(name)
            total = 0.0
            for part, unit in zip(reversed(value.split(":")), (1, 60, 3600, 86400)):
                total += float(part) * unit
            if name == "walltime":
                walltime = int(total)
        elif name in _SIZES:
            size(value, name)
    chunks: list[dict[str, Any]] = []
    for group in asked.get("nodes", "1").split("+"):
        words = group.split(":")
        chunk: dict[str, Any] = {"ncpus": 1}
        many = 1
        if words[0].isdecimal():
            many = int(words[0])
        elif words[0] in names:
            chunk["host"] = words[0]
        else:
            chunk["features"] = [words[0]]
        for word in words[1:]:
            name, equals, value = word.partition("=")
            if not equals:
                # exclusive_process and the like say how GPUs are set up; anything else is a node property.
                if name not in ("exclusive_process", "exclusive_thread", "shared", "default", "reseterr"):
                    chunk.setdefault("features", []).append(name)
            elif name in ("ppn", "gpus") and value.isdecimal():
                chunk["ncpus" if name == "ppn" else "ngpus"] = int(value)
            else:
                raise Refused("Illegal node specification", BAD_VALUE)
        if many < 1:
            raise Refused("Illegal node specification", BAD_VALUE)
        chunks += [dict(chunk) for _ in range(many)]
    if "nodes" not in asked and ("procs" in asked or "ncpus" in asked):
        chunks = [{"ncpus": _count(asked.get("procs", asked.get("ncpus", "1")), "procs")}]
    if "mem" in asked:  # of the whole job
        for chunk in chunks:
            chunk["mem"] = size(asked["mem"]) // len(chunks)
    if "pmem" in asked:  # of each process
        for chunk in chunks:
            chunk["mem"] = size(asked["pmem"]) * chunk["ncpus"]
    for chunk in chunks:
        chunk["mpiprocs"] = chunk["ncpus"]
    shown: dict[str, Any] = dict(asked) | {"nodect": len(chunks)}
    shown.setdefault("nodes", "1")
    if walltime is not None:
        shown["walltime"] = clock(walltime)
    return {
        "chunks": chunks,
        "place": "scatter",
        "excl": asked.get("naccesspolicy", "").lower().startswith("single"),
        "walltime": walltime,
        "resources": dict(sorted(shown.items())),
    }
