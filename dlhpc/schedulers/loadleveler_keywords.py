"""What stands in the ``# @`` lines of a LoadLeveler job command file, and how a submission changes them.

Source: IBM, "LoadLeveler: Using and Administering", chapter on job command file keywords. A step ends with ``# @
queue`` and hands most keywords on to the next; ``$(…)`` expands in values; a backslash at the end joins lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dlhpc.errors import UserError
from dlhpc.schedulers.base import Header, JobRequest
from dlhpc.schedulers.directives import MEBIBYTE, clock, gather, raise_faults

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]*")
_NETWORK = re.compile(r"[A-Za-z0-9_.,]+")
_KEYWORD_LINE = re.compile(r"#[ \t]*@[ \t]*([A-Za-z_.]+)[ \t]*(=.*)?")
_KEYWORD = re.compile(r"([A-Za-z_][A-Za-z_.]*)\s*=\s*(\S.*)")
_OURS = {
    "job_name": "the spec's `name`",
    "class": "job.queue",
    "account_no": "job.account",
    "notify_user": "job.mail",
    "notification": "job.mail_on",
    "wall_clock_limit": "job.walltime",
    "node": "job.nodes",
    "tasks_per_node": "job.ranks_per_node",
    "total_tasks": "job.nodes and job.ranks_per_node",
    "resources": "job.cores_per_rank, job.gpus_per_rank and job.memory",
    "node_usage": "job.exclusive",
    "ll_res_id": "job.reservation",
    "dependency": "job.after",
    "hold": "job.hold",
    "network.mpi": "network in the site profile",
}
_NEVER = {
    **dict.fromkeys(("output", "error", "input"), "dlhpc keeps the job's output in the run's folder"),
    **dict.fromkeys(("executable", "arguments"), "the job script itself is what runs"),
    **dict.fromkeys(("initialdir", "shell", "job_type", "step_name", "restart"), "dlhpc says this itself"),
    "queue": "dlhpc ends the step itself",
}


def directives(header: Header) -> list[str]:
    """The ``# @`` lines for a header; the last is ``# @ queue``.

    Raises :class:`UserError`, or an ``ErrorList`` of them, for what LoadLeveler cannot say.
    """
    keywords = gather(*(part(header) for part in (_about, _size, _resources, _people, _extra)))
    return [*(f"# @ {name} = {value}" for name, value in keywords), "# @ queue"]


def _checked(text: str, what: str, pattern: re.Pattern[str] = _WORD) -> str:
    if not pattern.fullmatch(text):
        raise UserError(
            f"{what} `{text}` cannot stand in a keyword of LoadLeveler",
            remedy="Use letters, digits and _ . + : @ - only.",
        )
    return text


def _path(text: str) -> str:
    """Blanks are no harm in a path, but ``$(`` would be expanded, and lines end where they end."""
    if re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]|\$\(|\\$|^ | $", text):
        raise UserError(
            f"the path {text!r} cannot be given to LoadLeveler: it holds `$(`, a control character, or a backslash or "
            "blank at its end",
            remedy="Use a folder of runs (--runs, DLHPC_RUNS) with a plainer path.",
        )
    return text


def _about(header: Header) -> Iterator[tuple[str, str]]:
    """Name, shell, output; what LoadLeveler does not have."""
    faults = []
    if header.array:
        faults.append(UserError("LoadLeveler has no job arrays", remedy="Submit the members one by one."))
    if header.qos is not None:
        faults.append(
            UserError("LoadLeveler has no quality of service to ask for", remedy="Remove job.qos, or choose a class.")
        )
    if header.reservation is not None and not _WORD.fullmatch(header.reservation):
        faults.append(UserError(f"`{header.reservation}` is no reservation id", remedy="See `llqres`."))
    raise_faults(faults)
    yield "job_name", re.sub(r"[^A-Za-z0-9_.-]", "_", header.name) or "dlhpc"
    yield "step_name", step_name(1)
    yield "job_type", "parallel"
    yield "shell", "/bin/sh"  # otherwise the user's login shell reads the script
    yield "initialdir", _path(str(header.output.parent))
    yield "output", _path(str(header.output))
    yield "error", _path(str(header.output))
    yield "restart", "yes"


def _size(header: Header) -> Iterator[tuple[str, str]]:
    """Class, nodes, tasks, time."""
    if header.queue is not None:
        yield "class", _checked(header.queue, "job.queue")
    yield "node", str(header.nodes)
    yield "tasks_per_node", str(header.ranks_per_node)
    yield "node_usage", "not_shared" if header.exclusive else "shared"
    hard = max(1, header.walltime_seconds)
    soft = max(1, hard - header.warning_seconds)
    # At the soft limit the job gets SIGXCPU, at the hard one SIGKILL.
    yield "wall_clock_limit", clock(hard) + (f",{clock(soft)}" if soft < hard else "")
    if header.network is not None and header.nodes > 1:
        yield "network.MPI", _checked(header.network, "network", _NETWORK)


def _resources(header: Header) -> Iterator[tuple[str, str]]:
    """Cores, memory and GPUs, which LoadLeveler counts for each task."""
    consumed = [f"ConsumableCpus({header.cores_per_rank})"]
    if header.memory_bytes is not None:
        megabytes = max(1, header.memory_bytes // header.ranks_per_node // MEBIBYTE)
        consumed.append(f"ConsumableMemory({megabytes} mb)")
    if header.gpus_per_node:
        if header.gpu_resource is None and header.gpu_feature is None:
            raise UserError(
                "the site profile does not say how GPUs are asked of LoadLeveler",
                remedy="Set gpu.resource (a consumable resource) or gpu.feature in the profile.",
            )
        if header.gpu_resource is not None:
            each, left = divmod(header.gpus_per_node, header.ranks_per_node)
            if left:
                raise UserError(
                    f"LoadLeveler gives GPUs to ranks one by one, and {header.gpus_per_node} GPUs cannot be shared out "
                    f"among {header.ranks_per_node} ranks of a node",
                    remedy="Set job.ranks_per_node to the number of GPUs, or to a divisor of it.",
                )
            consumed.append(f"{_checked(header.gpu_resource, 'gpu.resource')}({each})")
    yield "resources", " ".join(consumed)
    if header.gpus_per_node and header.gpu_feature is not None:
        yield "requirements", f'(Feature == "{_checked(header.gpu_feature, "gpu.feature")}")'


def _people(header: Header) -> Iterator[tuple[str, str]]:
    """Account and mail. Without a word LoadLeveler writes to the user at every end."""
    if header.account is not None:
        yield "account_no", _checked(header.account, "job.account")
    if header.mail is None:
        yield "notification", "never"
        return
    moments = set(header.mail_on)
    if moments <= {"fail"}:
        yield "notification", "error" if moments else "never"
    elif moments == {"begin"}:
        yield "notification", "start"
    else:
        yield "notification", "always" if "begin" in moments else "complete"
    yield "notify_user", _checked(header.mail, "job.mail")


def _extra(header: Header) -> Iterator[tuple[str, str]]:
    """The user's and the site's own keywords: none that dlhpc sets, for the last one would win silently."""
    faults: list[UserError] = []
    good: list[tuple[str, str]] = []
    for text in header.extra:
        found = _KEYWORD.fullmatch(text.strip())
        name = (found[1] if found else text.strip()).lower()
        why, remedy = "", ""
        if name in _OURS:
            why, remedy = "dlhpc says this itself", f"Use {_OURS[name]} in its place."
        elif name in _NEVER:
            why, remedy = _NEVER[name], "Remove it."
        elif name == "requirements" and header.gpus_per_node and header.gpu_feature is not None:
            why, remedy = "dlhpc asks for the nodes with GPUs by it", "Remove it, or gpu.feature from the profile."
        elif found is None:
            why, remedy = "it is not `keyword = value`", "Write it as `group = staff`, without `# @`."
        elif re.search(r"[^ -~]", text) or text.rstrip().endswith("\\"):
            why, remedy = "it holds an odd character, or a backslash at its end", "Write it in plain letters."
        elif name in {known.lower() for known, _ in good}:
            why, remedy = "the keyword is given twice, and one of them would be dropped", "Give it once."
        if why or found is None:
            faults.append(UserError(f"the directive `{text}` cannot be used: {why}", remedy=remedy))
        else:
            good.append((found[1], found[2]))
    raise_faults(faults)
    yield from good


def step_name(number: int) -> str:
    """The name of a submission's step, counted from 1."""
    return f"step{number}"


def command_file(script: str, request: JobRequest) -> str:
    """The job command file of one submission: the job script with its tag, its hold and all its steps.

    llsubmit takes no options, so all that goes beside a script must stand in it. Every step runs the same script. A
    step waits for the one before, and runs only if that ran and left a code other than 0: a step that never ran counts
    as 1002 (CC_NOTRUN) and a cancelled one as 1001 (CC_REMOVED), which must not start the next.
    """
    lines = script.split("\n")
    found = [(number, match) for number, line in enumerate(lines) if (match := _KEYWORD_LINE.match(line))]
    ends = [number for number, match in found if match[1].lower() == "queue" and match[2] is None]
    if not ends:
        raise UserError(
            "the job script has no line `# @ queue`",
            where=request.script,
            remedy="Submit the run anew; if a template of the site made the script, its directives are incomplete.",
        )
    head = []
    for number, line in enumerate(lines[: ends[-1]]):
        keyword = _KEYWORD_LINE.match(line)
        # A `hold` that stands there already is meant: the script was made to be held.
        if keyword is None or keyword[1].lower() not in ("job_name", "step_name", "queue", "dependency"):
            head.append(lines[number])
    head += [f"# @ job_name = {request.tag}", f"# @ step_name = {step_name(1)}"]
    if request.held:
        head.append("# @ hold = user")
    head.append("# @ queue")
    for number in range(2, request.steps + 1):
        before = step_name(number - 1)
        condition = " && ".join(f"({before} != {code})" for code in ("0", "CC_NOTRUN", "CC_REMOVED"))
        head += [f"# @ step_name = {step_name(number)}", f"# @ dependency = {condition}", "# @ queue"]
    return "\n".join([*head, *lines[ends[-1] + 1 :]])
