"""Profile against machine: every number of a site profile beside what the batch system says. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from dlhpc.sites.findings import Finding, cannot_tell, differs, ok
from dlhpc.sites.probe import LiveNode, LiveQueue, Machine
from dlhpc.spec.base import format_duration

if TYPE_CHECKING:
    from dlhpc.sites.models import Node, Queue, Site
    from dlhpc.spec.load import Location


def compare(site: Site, machine: Machine) -> list[Finding]:
    """All that the batch system's own answers say about the profile. Exact numbers, in the profile's order."""
    return [
        *_system(site, machine),
        *(finding for number, queue in enumerate(site.queues) for finding in _queue(site, machine, number, queue)),
        *_further_queues(site, machine),
        *(finding for name, node in site.nodes.items() for finding in _nodes(site, machine, name, node)),
        *_limits(site, machine),
    ]


def _system(site: Site, machine: Machine) -> Iterator[Finding]:
    subject = f"scheduler {site.scheduler}"
    for sentence in machine.silent:
        yield cannot_tell(subject, sentence, "Ask again later, or as a user who may ask.", key=("scheduler",))
    if machine.queues is not None or site.scheduler == "local":
        words = " ".join(word for word in (machine.version, machine.name and f"on {machine.name}") if word)
        yield ok(subject, f"answers{': ' + words if words else ''}", live=machine.version or None, key=("scheduler",))
    if site.scheduler == "pbs" and machine.nodes:
        declared = site.dialect or "select"
        if (declared == "torque") != (machine.dialect == "torque"):
            yield differs(
                "dialect",
                f"the profile says {declared}, but the server is {'' if machine.dialect == 'torque' else 'not '}Torque",
                f"Set `dialect: {machine.dialect}`.",
                profile=declared,
                live=machine.dialect,
                key=("dialect",),
            )


def _queue(site: Site, machine: Machine, number: int, queue: Queue) -> Iterator[Finding]:
    if machine.queues is None:
        return
    subject, key = f"queue {queue.name}", ("queues", number)
    live = next((one for one in machine.queues if one.name == queue.name), None)
    if live is None:
        known = ", ".join(one.name for one in machine.queues) or "none"
        yield differs(
            subject,
            f"the system has no such queue; it has: {known}",
            "Correct its name, or remove it.",
            profile=queue.name,
            key=(*key, "name"),
        )
        return
    if live.closed is not None:
        yield differs(
            subject,
            f"takes or starts no jobs now: {live.closed}",
            "Open it, or remove it from the profile while it is closed.",
            live=live.closed,
            key=(*key, "name"),
        )
    yield from _walltime(subject, key, queue, live)
    yield from _node_limits(site, machine, subject, key, queue, live)
    if live.max_jobs is not None:
        if queue.max_jobs is None or queue.max_jobs > live.max_jobs:
            yield differs(
                f"{subject}: jobs of a user",
                f"the profile says {_or(queue.max_jobs)}, the system {live.max_jobs}",
                f"Set `max_jobs: {live.max_jobs}`.",
                profile=queue.max_jobs,
                live=live.max_jobs,
                key=(*key, "max_jobs"),
            )
        else:
            yield ok(
                f"{subject}: jobs of a user",
                str(queue.max_jobs),
                profile=queue.max_jobs,
                live=live.max_jobs,
                key=(*key, "max_jobs"),
            )


def _walltime(subject: str, key: Location, queue: Queue, live: LiveQueue) -> Iterator[Finding]:
    subject, key = f"{subject}: walltime", (*key, "max_walltime")
    mine, theirs = _clock(queue.max_walltime), _clock(live.max_walltime)
    if mine == theirs or theirs is None:
        what = f"{_or(mine)}{'' if mine == theirs else '; the system sets no limit'}"
        yield ok(subject, what, profile=mine, live=theirs, key=key)
    else:
        remedy = f"Set `max_walltime: {theirs}`."
        what = f"the profile says {_or(mine)}, the system {theirs}"
        yield differs(subject, what, remedy, profile=mine, live=theirs, key=key)


def _node_limits(
    site: Site, machine: Machine, subject: str, key: Location, queue: Queue, live: LiveQueue
) -> Iterator[Finding]:
    subject = f"{subject}: nodes"
    there = machine.nodes_of(queue.name)
    most = live.max_nodes if there is None else min(live.max_nodes or len(there), len(there))
    if live.min_nodes is not None and queue.min_nodes < live.min_nodes:
        yield differs(
            subject,
            f"the profile allows {queue.min_nodes}, the system no fewer than {live.min_nodes}",
            f"Set `min_nodes: {live.min_nodes}`.",
            profile=queue.min_nodes,
            live=live.min_nodes,
            key=(*key, "min_nodes"),
        )
    of_kind = site.node_of(queue).count
    mine = queue.max_nodes if queue.max_nodes is not None else of_kind
    if live.max_nodes is not None and queue.max_nodes is None and (mine is None or mine > live.max_nodes):
        yield differs(
            subject,
            f"the profile says no limit, the system {live.max_nodes}",
            f"Set `max_nodes: {live.max_nodes}`.",
            live=live.max_nodes,
            key=(*key, "max_nodes"),
        )
    elif most is not None and queue.max_nodes is not None and queue.max_nodes > most:
        yield differs(
            subject,
            f"the profile allows {queue.max_nodes}, the system {most}",
            f"Set `max_nodes: {most}`.",
            profile=queue.max_nodes,
            live=most,
            key=(*key, "max_nodes"),
        )
    elif most is not None:
        more = f"; the system allows {most}" if queue.max_nodes is not None and queue.max_nodes < most else ""
        yield ok(subject, f"up to {_or(mine)}{more}", profile=queue.max_nodes, live=most, key=(*key, "max_nodes"))


def _further_queues(site: Site, machine: Machine) -> Iterator[Finding]:
    offered = {queue.name for queue in site.queues}
    further = [queue.name for queue in machine.queues or () if queue.name not in offered]
    if further:
        yield ok("further queues", f"the profile does not offer {', '.join(further)}", key=("queues",))


def _nodes(site: Site, machine: Machine, name: str, node: Node) -> Iterator[Finding]:
    subject, key = f"nodes {name}", ("nodes", name)
    if machine.nodes is None:
        return
    live = _nodes_of_kind(site, machine, name)
    if not live:
        groups = Counter((one.cores, gpus_of(site, one)) for one in machine.nodes)
        there = ", ".join(f"{count} × {cores} cores and {gpus or 0} GPUs" for (cores, gpus), count in groups.items())
        yield differs(
            subject,
            f"the system has no such nodes; it has {there or 'none at all'}",
            "Correct cores and gpus, or the names of the queues that give these nodes.",
            key=key,
        )
        return
    yield from _count(subject, key, node, live)
    for what, declared, counts, at_least in (
        ("cores", node.cores, [one.cores for one in live], True),
        ("GPUs", node.gpus, [gpus_of(site, one) for one in live], False),
        ("memory", node.memory, [one.memory_bytes for one in live], True),
    ):
        yield from _amount(f"{subject}: {what}", (*key, what.lower()), declared, counts, at_least=at_least)
    yield from _gpu_names(site, subject, node, live)


def _nodes_of_kind(site: Site, machine: Machine, name: str) -> Sequence[LiveNode]:
    """The live nodes that the profile means by a kind: those that look like it, and those of its queues that look
    like no kind at all."""
    nodes = machine.nodes or ()
    looks = {one.name: _looks_like(site, one) for one in nodes}
    if len(site.nodes) == 1 and not any(one.queues for one in nodes):
        return nodes
    queues = {queue.name for queue in site.queues if queue.node == name or queue.node is None}
    if not queues:
        return [one for one in nodes if looks[one.name] == name]
    tells = any(one.queues for one in nodes)
    return [
        one
        for one in nodes
        if (looks[one.name] == name and (not one.queues or set(one.queues) & queues))
        or (looks[one.name] is None and tells and set(one.queues) & queues)
    ]


def _looks_like(site: Site, live: LiveNode) -> str | None:
    """The kind with the same GPUs and the most cores and memory that this node can give; None if there is none."""
    gpus = gpus_of(site, live)
    fitting = [
        (node.cores or 0, node.memory or 0, name)
        for name, node in site.nodes.items()
        if (node.gpus is None or gpus in (None, node.gpus))
        and (live.cores is None or (node.cores or 0) <= live.cores)
        and (live.memory_bytes is None or (node.memory or 0) <= live.memory_bytes)
    ]
    return max(fitting)[2] if fitting else None


def gpus_of(site: Site, node: LiveNode) -> int | None:
    """How many GPUs jobs of this site may ask for on a node; None where nobody counts them."""
    if site.gpu.feature is not None:
        return None
    return node.gpus if site.gpu.resource is None else node.resources.get(site.gpu.resource, 0)


def _count(subject: str, key: Location, node: Node, live: Sequence[LiveNode]) -> Iterator[Finding]:
    down = sum(not one.up for one in live)
    listed = f"{len(live)} there, {down} of them down or off"
    if node.count is None:
        yield ok(subject, listed, live=len(live), key=key)
        return
    unlisted = node.count - len(live)  # some systems keep quiet about machines that are switched off
    off = down + unlisted if 0 < unlisted <= node.off else down
    if unlisted and off == down:
        yield differs(
            subject,
            f"the profile says {node.count}, the system {listed}",
            f"Set `count: {len(live)}`{f' and `off: {down}`' if down != node.off else ''}.",
            profile=node.count,
            live=len(live),
            key=(*key, "count"),
        )
    elif off == node.off:
        words = f"{node.count} there, {f'{off} of them off' if off else 'all on'}"
        yield ok(subject, words, profile=node.count, live=len(live), key=(*key, "count"))
    else:
        names = ", ".join(f"{one.name} ({one.state})" for one in live if not one.up)
        yield differs(
            f"{subject}: off",
            f"the profile says {node.off} of {node.count}, the system {off}{f': {_short(names)}' if names else ''}",
            f"Set `off: {off}` if that is to stay so.",
            profile=node.off,
            live=off,
            key=(*key, "off"),
        )


def _amount(
    subject: str, key: Location, declared: int | None, counts: Sequence[int | None], *, at_least: bool
) -> Iterator[Finding]:
    """Compare a number of each node. ``at_least``: the profile may offer less than there is."""
    known = [count for count in counts if count is not None]
    if declared is None or not known:
        return
    in_bytes = key[-1] == "memory"
    shown = _gigabytes if in_bytes else str
    least, most = min(known), max(known)
    there = shown(least) if least == most else f"{shown(least)} to {shown(most)}"
    if declared == least == most or (at_least and declared <= least):
        less = f" of {there}" if declared < least else ""
        yield ok(subject, f"{shown(declared)}{less} a node", profile=shown(declared), live=there, key=key)
        return
    wrong = sum(count < declared if at_least else count != declared for count in known)
    nodes = "every node" if wrong == len(known) else f"{wrong} of {len(known)} nodes"
    value = f"{least // 10**9}GB" if in_bytes else str(least)
    split = "" if least == most else ", or describe two kinds of nodes"
    yield differs(
        subject,
        f"the profile says {shown(declared)}, the system {there} ({nodes})",
        f"Set `{key[-1]}: {value}`{split}.",
        profile=shown(declared),
        live=there,
        key=key,
    )


def _gpu_names(site: Site, subject: str, node: Node, live: Sequence[LiveNode]) -> Iterator[Finding]:
    if not node.gpus:
        return
    if (feature := site.gpu.feature) is not None:
        having = sum(feature in one.features for one in live)
        if having == len(live):
            yield ok(f"{subject}: feature", f"{feature} on every node", key=("gpu", "feature"))
        else:
            yield differs(
                f"{subject}: feature",
                f"{having} of {len(live)} nodes have the feature {feature}",
                "Correct gpu.feature to what the GPU nodes have.",
                profile=feature,
                key=("gpu", "feature"),
            )
    elif (resource := site.gpu.resource) is not None and not any(resource in one.resources for one in live):
        known = ", ".join(sorted({name for one in live for name in one.resources})) or "none"
        yield differs(
            f"{subject}: resource",
            f"no node has the resource {resource}; there are: {known}",
            "Correct gpu.resource.",
            profile=resource,
            key=("gpu", "resource"),
        )


def _limits(site: Site, machine: Machine) -> Iterator[Finding]:
    if machine.max_array is not None:
        key: Location = ("max_array",)
        if site.max_array > machine.max_array:
            yield differs(
                "tasks of an array",
                f"the profile says {site.max_array}, the system allows {machine.max_array}",
                f"Set `max_array: {machine.max_array}`.",
                profile=site.max_array,
                live=machine.max_array,
                key=key,
            )
        else:
            more = f" of {machine.max_array}" if site.max_array < machine.max_array else ""
            yield ok(
                "tasks of an array", f"{site.max_array}{more}", profile=site.max_array, live=machine.max_array, key=key
            )
    if machine.kill_grace is not None:
        mine, theirs = site.kill_grace.total_seconds(), machine.kill_grace.total_seconds()
        key = ("kill_grace",)
        if mine > theirs:
            yield differs(
                "time from TERM to KILL",
                f"the profile says {mine:g} s, the system {theirs:g} s",
                f"Set `kill_grace: {theirs:g}s`.",
                profile=f"{mine:g} s",
                live=f"{theirs:g} s",
                key=key,
            )
        else:
            more = f"; the system gives {theirs:g} s" if mine < theirs else ""
            yield ok(
                "time from TERM to KILL", f"{mine:g} s{more}", profile=f"{mine:g} s", live=f"{theirs:g} s", key=key
            )
    account = site.accounts.default
    if account is not None and machine.accounts is not None:
        if account in machine.accounts:
            yield ok("account", f"{account}, which you may charge", profile=account, key=("accounts", "default"))
        else:
            yield differs(
                "account",
                f"you may not charge {account}; you may charge {', '.join(machine.accounts) or 'none'}",
                "Correct accounts.default, or ask for the right to charge it.",
                profile=account,
                live=", ".join(machine.accounts),
                key=("accounts", "default"),
            )


def _or(value: object) -> str:
    return "no limit" if value is None else str(value)


def _clock(duration: timedelta | None) -> str | None:
    return None if duration is None else format_duration(duration)


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:160].rpartition(",")[0] + ", …"


def _gigabytes(value: int) -> str:
    return f"{value / 1e9:.1f} GB"
