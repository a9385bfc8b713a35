"""What a site does not allow, or cannot give: every fault of a spec's `job:` at once. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dlhpc.errors import UserError
from dlhpc.sites.models import Node, Queue, Site
from dlhpc.spec.base import format_duration
from dlhpc.spec.models import Spec


def too_large(spec: Spec, queue: Queue, wanted: int, there: int, thing: str) -> Iterator[UserError]:
    """More of one thing than a node has."""
    if wanted > there:
        yield UserError(
            f"the job asks for {wanted} {thing} on a node, {spec.job.ranks_per_node} ranks together, "
            f"but a node of queue `{queue.name}` has {there}",
            remedy=f"Lower job.ranks_per_node or job.{thing.lower()}_per_rank.",
        )


def limits(spec: Spec, site: Site, queue: Queue, node: Node) -> Iterator[UserError]:
    """What the queue and its nodes do not allow."""
    job = spec.job
    if site.scheduler == "local" and job.nodes > 1:
        yield UserError(
            f"job.nodes is {job.nodes}, but the site `{site.name}` is one machine",
            remedy="Set job.nodes to 1, or choose another site.",
        )
    if job.memory is not None and node.memory is not None and job.memory > node.memory:
        yield UserError(
            f"job.memory is {job.memory / 1e9:.1f} GB, but a node of queue `{queue.name}` has "
            f"{node.memory / 1e9:.1f} GB",
            remedy="Lower job.memory.",
        )
    limit = queue.max_walltime
    if limit is not None and job.walltime is not None and job.walltime > limit:
        yield UserError(
            f"job.walltime is {format_duration(job.walltime)}, but queue `{queue.name}` allows "
            f"{format_duration(limit)}",
            remedy="Lower it: a longer training goes on in the next attempt by itself.",
        )
    if queue.max_nodes is not None and job.nodes > queue.max_nodes:
        yield UserError(
            f"job.nodes is {job.nodes}, but queue `{queue.name}` gives at most {queue.max_nodes}",
            remedy="Lower job.nodes, or choose another queue.",
        )
    if job.nodes < queue.min_nodes:
        yield UserError(
            f"job.nodes is {job.nodes}, but queue `{queue.name}` is for {queue.min_nodes} nodes or more",
            remedy="Raise job.nodes, or choose another queue.",
        )
    if node.on is not None and job.nodes > node.on:
        off = f" ({node.off} of {node.count} are switched off)" if node.off else ""
        yield UserError(
            f"job.nodes is {job.nodes}, but only {node.on} nodes of this kind run{off}", remedy="Lower job.nodes."
        )


def account_faults(account: str | None, site: Site) -> Iterator[UserError]:
    """The centre's rules for accounts."""
    rules = site.accounts
    if account is None and rules.required:
        yield UserError(f"the site `{site.name}` charges every job to a project", remedy="Set job.account to yours.")
    if account is not None and rules.pattern is not None and not re.fullmatch(rules.pattern, account):
        yield UserError(
            f"job.account is `{account}`, but accounts of the site `{site.name}` look like `{rules.pattern}`",
            remedy="Correct job.account.",
        )


def left_out(spec: Spec, site: Site) -> list[str]:
    """What means nothing to the local scheduler; the same spec may go to a cluster as it is."""
    if site.scheduler != "local":
        return []
    job = spec.job
    given = [
        name
        for name in ("account", "mail", "exclusive", "reservation", "qos", "directives")
        if getattr(job, name) not in (None, False, ())
    ]
    return [f"job.{name} means nothing to the local scheduler and is left out" for name in given]
