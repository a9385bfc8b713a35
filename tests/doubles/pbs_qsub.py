"""``qsub`` of OpenPBS and of Torque: directives and options, as strict as theirs."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from typing import Any

from tests.doubles.engine import Store, advance, fail, inside_a_job, new_job, new_task
from tests.doubles.pbs_resources import Refused, openpbs, split_list, torque

USAGE = """usage: qsub [-a date_time] [-A account_string] [-c interval]
\t[-C directive_prefix] [-e path] [-f ] [-h ] [-I [-X]] [-j oe|eo] [-J X-Y[:Z]]
\t[-k keep] [-l resource_list] [-m mail_options] [-M user_list]
\t[-N jobname] [-o path] [-p priority] [-P project] [-q queue] [-r y|n]
\t[-R o|e|oe] [-S path] [-u user_list] [-W otherattributes=value...]
\t[-S path] [-v variable_list] [-V ] [-z] [script | -- command [arg1 ...]]
"""
_WITH_VALUE = {"openpbs": "aAcCejJkNlmMopPqrRSuvW", "torque": "aAbcCdDeFjklLmMNopPqrStTuvwW"}
_WITHOUT = {"openpbs": "fhIVXzG", "torque": "fhIVxXzn"}
_ATTRIBUTES = ("depend", "umask", "group_list", "sandbox", "stagein", "stageout", "x", "release_nodes_on_stageout")
_DEPENDENCIES = ("after", "afterok", "afternotok", "afterany")


class _Usage(Exception):
    """A wrong option: what is said about it, before the usage."""


class _Options:
    """All options of one qsub. Command line before directives; of a repeated one the last, of ``-l`` the first."""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect
        self.values: dict[str, str] = {}
        self.resources: dict[str, str] = {}
        self.attributes: dict[str, str] = {}
        self.operands: list[str] = []
        self._final: set[str] = set()

    def take(self, words: list[str], from_script: bool) -> None:
        """Read options. Those of a script never replace those of the command line."""
        values: dict[str, str] = {}
        attributes: dict[str, str] = {}
        resources: list[tuple[str, str]] = []
        index = 0
        while index < len(words):
            word = words[index]
            index += 1
            if word == "--" and not from_script:
                self.operands += ["--", *words[index:]]
                break
            if not word.startswith("-") or word == "-":
                if from_script:
                    raise _Usage
                self.operands.append(word)
                continue
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter in _WITHOUT[self.dialect]:
                    values[letter] = "y"
                    continue
                if letter not in _WITH_VALUE[self.dialect]:
                    raise _Usage(f"qsub: invalid option -- '{letter}'")
                value = letters
                letters = ""
                if not value:
                    if index >= len(words):
                        raise _Usage(f"qsub: option requires an argument -- '{letter}'")
                    value = words[index]
                    index += 1
                self._check(letter, value)
                if letter == "l":
                    resources += split_list(value)
                elif letter == "W":
                    attributes |= self._attributes(value)
                else:
                    values[letter] = value
        if not from_script:
            self._final = {*values, *(f"W {name}" for name in attributes)}
        self.values |= {name: value for name, value in values.items() if not from_script or name not in self._final}
        self.attributes |= {
            name: value for name, value in attributes.items() if not from_script or f"W {name}" not in self._final
        }
        for name, value in resources:
            self.resources.setdefault(name, value)

    def _check(self, letter: str, value: str) -> None:
        patterns = {
            "N": r"[A-Za-z0-9\-_+.]{1,230}" if self.dialect == "openpbs" else r"[!-~]{1,230}",
            "j": r"oe|eo|n|o|e" if self.dialect == "torque" else r"oe|eo|n",
            "k": r"n|[oe]{1,2}d?|d[oe]{1,2}|[oe]d[oe]" if self.dialect == "openpbs" else r"n|[oe]{1,2}",
            "m": r"n|[abe]{1,3}|[abej]{1,4}",
            "r": r"y|n",
            "J": r"\d+-\d+(:\d+)?(%\d+)?",
            "t": r"\d+(-\d+)?(,\d+(-\d+)?)*(%\d+)?",
            "p": r"[+-]?\d{1,4}",
            "q": r"[^\s@]*(@\S+)?",
            "a": r"\d{4,12}(\.\d\d)?",
        }
        if letter in patterns and not re.fullmatch(patterns[letter], value):
            raise _Usage(f"qsub: illegal -{letter} value")
        if letter == "J" and len(array_indices(value)[0]) < 2:
            raise _Usage("qsub: illegal -J value")

    def _attributes(self, text: str) -> dict[str, str]:
        found: dict[str, str] = {}
        # An attribute's value may hold commas (several dependencies): a new one begins at `,name=`.
        for part in re.split(r",(?=[A-Za-z_]+=)", text):
            name, equals, value = part.partition("=")
            if not equals or not value:
                raise _Usage("qsub: illegal -W value")
            if name not in _ATTRIBUTES:
                raise Refused(f"Undefined attribute  {name}", 154)
            if name == "umask" and not re.fullmatch(r"[0-7]{1,4}", value):
                raise _Usage("qsub: illegal -W value")
            if name == "depend":
                parse_dependencies(value, "")
            found[name] = value
        return found


def array_indices(text: str) -> tuple[list[int], int | None]:
    """``0-9:2%3`` or ``1,4-6%2``: the indices, and how many may run at once."""
    text, _, limit = text.partition("%")
    indices: list[int] = []
    for part in text.split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        indices += range(int(first), int(last or first) + 1, int(step or 1) or 1)
    return sorted(set(indices)), int(limit) if limit else None


def full_id(text: str, server: str) -> str:
    """An id as the server keeps it: ``12`` and ``12.server@host`` are ``12.server``."""
    text = text.partition("@")[0]
    return text if "." in text else f"{text}.{server}"


def parse_dependencies(text: str, server: str) -> list[list[str]]:
    """``afterok:12:13,afterany:14`` as pairs of kind and id."""
    found = []
    for part in text.split(","):
        kind, *ids = part.split(":")
        kind = {"afterokarray": "afterok", "afteranyarray": "afterany", "afternotokarray": "afternotok"}.get(kind, kind)
        if kind not in _DEPENDENCIES or not ids:
            raise _Usage("qsub: illegal -W value")
        for other in ids:
            if not re.fullmatch(r"\d+(\[\d*\])?(\.[\w.-]+)?(@[\w.-]+)?", other):
                raise _Usage("qsub: illegal -W value")
            found.append([kind, full_id(other, server)])
    return found


def directives(text: str, prefix: str = "#PBS") -> list[str]:
    """What stands behind ``#PBS`` before the first command. Other spellings of it are comments."""
    found = []
    for line in text.split("\n"):
        if not line.strip():
            continue
        if not line.startswith("#") and not line.startswith(":"):
            break
        if line.startswith(prefix) and line[len(prefix) :][:1] in (" ", "\t"):
            found.append(line[len(prefix) :])
    return found


def exported(text: str) -> dict[str, str]:
    """The variables of ``-v``. Commas part them; what is neither ``A=value`` nor set here cannot be sent.

    As on the real server, an apostrophe that stands alone and JSON are refused, double quotes get lost and backslashes
    are doubled.
    """
    if "'" in text:
        raise Refused("cannot send environment with the job", 1)
    parts, quoted, part = [], False, ""
    for letter in text:
        if letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            parts.append(part)
            part = ""
        else:
            part += "\\\\" if letter == "\\" else letter
    parts.append(part)
    found = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if value.startswith(("{", "[")) and '"' in text:
            raise Refused("cannot send environment with the job", 1)
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or (not equals and name not in os.environ):
            raise Refused("cannot send environment with the job", 1)
        found[name] = value if equals else os.environ[name]
    return found


def _script(options: _Options, store: Store) -> tuple[str, str]:
    """The text to run and the job's default name."""
    operands = options.operands
    if operands and operands[0] == "--":
        if len(operands) < 2:
            raise _Usage("")
        return "#!/bin/sh\nexec " + shlex.join(operands[1:]) + "\n", os.path.basename(operands[1])
    if len(operands) > 1:
        raise _Usage("")
    if not operands or operands[0] == "-":
        return sys.stdin.read(), "STDIN"
    try:
        with open(operands[0], encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read(), os.path.basename(operands[0])
    except OSError as error:
        if store.config["dialect"] == "torque":
            raise Refused(f"script file '{operands[0]}' cannot be loaded - {error.strerror}", 1) from None
        raise Refused(f"script file:: {error.strerror}", 1) from None


def _read(store: Store, argv: list[str]) -> tuple[_Options, str, str]:
    options = _Options(store.config["dialect"])
    options.take(argv, from_script=False)
    if "I" in options.values:
        raise Refused("standard input and output must be a terminal for interactive job submission", 1)
    text, name = _script(options, store)
    if not text.strip():
        raise Refused("script file is empty", 1)
    for line in directives(text, options.values.get("C", "#PBS")):
        try:
            if "\r" in line:
                raise _Usage
            options.take(shlex.split(line), from_script=True)
        except (_Usage, ValueError) as error:
            if isinstance(error, _Usage) and error.args:
                sys.stderr.write(f"{error}\n")
            raise Refused(f"directive error: {line}", 1) from None
        except Refused as error:
            raise Refused(f"{error.sentence}\nqsub: directive error: {line}", 1) from None
    return options, text, options.values.get("N", name)


def qsub(store: Store, argv: list[str]) -> int:
    """Queue a job and print its id."""
    try:
        options, text, name = _read(store, argv)
        job_id = _queue(store, options, text, name, argv)
    except _Usage as error:
        sys.stderr.write("".join(f"{word}\n" for word in error.args if word) + USAGE)
        return 2
    except Refused as error:
        raise fail(f"qsub: {error.sentence}", error.code) from None
    if "z" not in options.values:
        print(job_id)
    return 0


def _destination(store: Store, options: _Options, walltime: int | None) -> tuple[str, int | None]:
    name = options.values.get("q", "").partition("@")[0] or store.config["default_queue"]
    queue = store.config["queues"].get(name)
    if queue is None:
        raise Refused(
            "Unknown queue" if store.config["dialect"] == "openpbs" else "Unknown queue MSG=cannot locate queue", 170
        )
    if not queue.get("enabled", True):
        raise Refused("Queue is not enabled", 173)
    if walltime is None:
        walltime = queue.get("default_walltime")
    if queue.get("max_walltime") is not None and (walltime or 0) > queue["max_walltime"]:
        raise Refused("Job violates queue and/or server resource limits", 188)
    return name, walltime


def _queue(store: Store, options: _Options, text: str, name: str, argv: list[str]) -> str:
    from tests.doubles.pbs_show import find

    config = store.config
    values = options.values
    variables = dict(os.environ) if "V" in values else {}
    if "v" in values:
        variables |= exported(values["v"])
    if config["dialect"] == "openpbs":
        asked = openpbs(options.resources, set(config["custom_resources"]))
    else:
        asked = torque(options.resources, list(config["nodes"]))
    queue, walltime = _destination(store, options, asked["walltime"])
    if config["account_needed"] and "A" not in values:
        raise Refused("Invalid account", 201)
    if not config["compute_may_submit"] and inside_a_job(store):
        raise Refused("Bad UID for job execution", 175)
    indices, limit = array_indices(values["J" if "J" in values else "t"]) if {"J", "t"} & set(values) else ([], None)
    if len(indices) > config["max_array_size"]:
        raise Refused("Array job exceeds server or queue size limit", 3)
    from_variables = {f"PBS_O_{key}": os.environ.get(key, "") for key in ("HOME", "LANG", "LOGNAME", "PATH", "SHELL")}
    from_variables |= {"PBS_O_HOST": config["host"], "PBS_O_SYSTEM": "Linux", "PBS_O_QUEUE": queue}
    from_variables["PBS_O_WORKDIR"] = os.getcwd()
    with store:
        seq = store.state["next"]
        store.state["next"] += 1
        job_id = f"{seq}[].{config['server']}" if indices else f"{seq}.{config['server']}"
        os.makedirs(store.path("jobs"), exist_ok=True)
        script = store.path("jobs", f"{seq}.{config['server']}.SC")
        with open(script, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
        os.chmod(script, 0o700)
        depend = (
            parse_dependencies(options.attributes.get("depend", ""), config["server"])
            if ("depend" in options.attributes)
            else []
        )
        # A job that the server does not know any more can never be waited for.
        depend = [[kind if find(store, other) else "unknown", other] for kind, other in depend]
        holds = "u" if "h" in values else ""
        data: dict[str, Any] = {
            "script": script,
            "workdir": os.getcwd(),
            "variables": variables | from_variables,
            "out": values.get("o"),
            "err": values.get("e"),
            "join": values.get("j", "n"),
            "keep": values.get("k", "n"),
            "umask": options.attributes.get("umask"),
            "resources": asked["resources"]
            | (
                {}
                if walltime is None
                else {"walltime": f"{walltime // 3600:02}:{walltime // 60 % 60:02}:{walltime % 60:02}"}
            ),
            "account": values.get("A"),
            "project": values.get("P"),
            "mail_on": values.get("m", "a"),
            "mail_to": values.get("M"),
            "priority": values.get("p", "0"),
            "arguments": shlex.join(argv),
            "depend": options.attributes.get("depend"),
        }
        job = new_job(
            id=job_id,
            seq=seq,
            kind="array" if indices else "job",
            name=name,
            queue=queue,
            state="waiting" if depend else "held" if holds else "queued",
            holds=holds,
            depend=depend,
            chunks=asked["chunks"],
            place=asked["place"],
            excl=asked["excl"],
            walltime=walltime,
            rerunnable=values.get("r", "y") == "y",
            data=data,
        )
        if "a" in values:
            job["not_before"] = _moment(values["a"])
        store.jobs[job_id] = job
        if indices:
            job |= {"limit": limit, "indices": indices, "tasks": []}
            for index in indices:
                task_id = f"{seq}[{index}].{config['server']}"
                store.jobs[task_id] = new_task(job, task_id, index)
                job["tasks"].append(task_id)
        advance(store)
    return job_id


def _moment(text: str) -> float:
    text, _, second = text.partition(".")
    now = time.localtime()
    full = time.strftime("%Y%m%d%H%M", now)
    full = full[: len(full) - len(text)] + text
    return time.mktime(time.strptime(full + (second or "00"), "%Y%m%d%H%M%S"))
