"""``dlhpc site``: describe the machine once (a site profile), and check the description against the machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlhpc.cli.common import print_json, wide_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dlhpc.sites.findings import Finding
    from dlhpc.sites.models import Node, Site

_STYLE = {"ok": "green", "differs": "bold red", "cannot tell": "yellow"}


@click.group()
def site() -> None:
    """Site profiles: list, show, write and check the description of a machine (for centre staff)."""


@site.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_sites(as_json: bool) -> None:
    """List the profiles that --site knows.

    \b
    Example:  dlhpc site list
    """
    from dlhpc.errors import DlhpcError
    from dlhpc.sites.load import load_site, site_files

    rows: list[dict[str, Any]] = []
    for name, path in sorted(site_files().items()):
        try:
            profile = load_site(str(path))
            row = {"scheduler": profile.scheduler, "description": profile.description}
        except DlhpcError as error:
            row = {"scheduler": "", "description": "", "error": str(error)}
        rows.append({"name": name, **row, "file": str(path)})
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table("SITE", "SCHEDULER", "WHAT IT IS", box=None, padding=(0, 2, 0, 0))
    table.add_column("FILE", overflow="fold")
    for row in rows:
        broken = f"cannot be used; `dlhpc site show {row['name']}` says why" if "error" in row else ""
        table.add_row(row["name"], row["scheduler"], broken or row["description"], row["file"])
    wide_console().print(table)


@site.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the whole profile as JSON.")
def show(name: str | None, as_json: bool) -> None:
    """Show the profile NAME (or its file; else DLHPC_SITE, else `local`).

    \b
    Example:  dlhpc site show gpu-slurm
    """
    from dlhpc.sites.load import find_site, load_site

    profile = load_site(name)
    if as_json:
        print_json(profile.model_dump(mode="json"))
        return
    from rich.table import Table

    console = wide_console()
    facts = Table(show_header=False, box=None, pad_edge=False)
    for fact in _facts(profile):
        facts.add_row(*fact)
    facts.add_row("file", str(find_site(name)))
    console.print(facts)
    if profile.nodes:
        console.print()
        console.print(_nodes_table(profile))
    console.print()
    console.print(_queues_table(profile))


def _facts(profile: Site) -> list[tuple[str, str]]:
    dialect = f", dialect {profile.dialect}" if profile.dialect else ""
    launcher = profile.launcher
    command = " ".join([launcher.command or launcher.kind, *(launcher.options or [])])
    environments = [
        f"{name} ({', '.join([environment.prefix or 'where dlhpc itself runs', *environment.modules])})"
        for name, environment in profile.environments.items()
    ]
    accounts, prices = profile.accounts, profile.prices
    account = f"{'required' if accounts.required else 'not required'}, default {accounts.default or 'none'}"
    charged = [
        f"{price:g} {prices.currency} a {unit}"
        for price, unit in ((prices.node_hour, "node-hour"), (prices.kwh, "kWh"))
        if price is not None
    ]
    return [
        ("site", profile.name),
        ("what it is", profile.description),
        ("scheduler", f"{profile.scheduler}{dialect}"),
        ("ranks by", command),
        ("environments", "; ".join(environments)),
        ("runs", profile.paths.runs),
        ("scratch", profile.paths.scratch or "none"),
        ("account", account),
        ("prices", ", ".join(charged) or "none"),
        ("jobs may submit jobs", "yes" if profile.compute_may_submit else "no: further attempts are queued ahead"),
    ]


def _nodes_table(profile: Site) -> Any:
    from rich.table import Table

    table = Table("nodes", "on", "off", "cores", "memory", "GPUs", "power idle/busy", box=None, pad_edge=False)
    for name, node in profile.nodes.items():
        table.add_row(name, _text(node.on), str(node.off), _text(node.cores), _memory(node), _gpus(node), _power(node))
    return table


def _queues_table(profile: Site) -> Any:
    from rich.table import Table

    from dlhpc.spec.base import format_duration

    table = Table("queue", "gives", "walltime", "nodes of a job", "jobs of a user", box=None, pad_edge=False)
    for queue in profile.queues:
        walltime = format_duration(queue.max_walltime) if queue.max_walltime is not None else "no limit"
        most = queue.max_nodes if queue.max_nodes is not None else "no limit"
        kind = queue.node or next(iter(profile.nodes), "this machine")
        table.add_row(queue.name, kind, walltime, f"{queue.min_nodes} to {most}", _text(queue.max_jobs, "no limit"))
    return table


def _text(value: object, absent: str = "?") -> str:
    return absent if value is None else str(value)


def _memory(node: Node) -> str:
    return "?" if node.memory is None else f"{node.memory / 1e9:.0f} GB"


def _gpus(node: Node) -> str:
    return f"{_text(node.gpus)}{f' × {node.gpu_model}' if node.gpu_model and node.gpus else ''}"


def _power(node: Node) -> str:
    return "?" if node.power is None else f"{node.power.idle:g} / {node.power.busy:g} W"


@site.command()
@click.option("--site", "name", metavar="NAME", help="Site profile or its file; else DLHPC_SITE, else `local`.")
@click.option("--runs", metavar="FOLDER", help="Folder of runs; else DLHPC_RUNS, else the site's.")
@click.option("--no-job", is_flag=True, help="Submit no job; what only a compute node can tell stays open.")
@click.option("--queue", metavar="QUEUE", help="Where the small job goes; else the profile's first queue.")
@click.option("--account", metavar="ACCOUNT", help="What the small job is charged to; else the profile's default.")
@click.option("--wait", default="10min", show_default=True, help="How long to wait for the small job.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(
    name: str | None,
    runs: str | None,
    no_job: bool,
    queue: str | None,
    account: str | None,
    wait: str,
    as_json: bool,
) -> None:
    """Compare a profile with the machine: queues, limits, nodes, GPUs, software and folders.

    A small job (one core, one GPU where there are any, at most five minutes) looks from a compute node as well. The
    exit code is 0 if nothing differs and 1 otherwise.

    \b
    Example:  dlhpc site check --site centre.yaml
    """
    from dlhpc.jobs.site_check import check_from_job
    from dlhpc.sites.check import compare
    from dlhpc.sites.findings import Verdict, cannot_tell, placed
    from dlhpc.sites.load import find_site, runs_folder
    from dlhpc.sites.login import look
    from dlhpc.sites.models import Site
    from dlhpc.sites.probe import probe
    from dlhpc.spec.load import read_document, validate

    wait_s = _duration(wait)
    file = find_site(name)
    document = read_document(file)
    profile = validate(document, Site)
    folder = runs_folder(runs, str(file))
    findings = [*compare(profile, probe(profile.scheduler)), *look(profile, folder)]
    if no_job:
        findings.append(cannot_tell("job", "not submitted: scratch, GPUs and submitting from a job stay open"))
    elif any(finding.subject == "commands" and finding.verdict is Verdict.DIFFERS for finding in findings):
        findings.append(cannot_tell("job", "not submitted: commands of the batch system are missing"))
    else:
        findings += check_from_job(
            profile,
            folder,
            queue=queue,
            account=account,
            wait_s=wait_s,
            tell=lambda said: click.echo(said, err=True),
        )
    findings = placed(findings, document)
    if as_json:
        print_json([_row(finding) for finding in findings])
    else:
        _print(profile.name, findings)
    if any(finding.verdict is Verdict.DIFFERS for finding in findings):
        sys.exit(1)


def _duration(text: str) -> float:
    from dlhpc.errors import UserError
    from dlhpc.spec.base import parse_duration

    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise UserError(f"--wait: {error}", remedy="Write for example --wait 10min.") from error


def _row(finding: Finding) -> dict[str, str | None]:
    return {
        "subject": finding.subject,
        "verdict": str(finding.verdict),
        "what": finding.what,
        "profile": finding.profile,
        "live": finding.live,
        "remedy": finding.remedy,
        "key": ".".join(str(part) for part in finding.key) or None,
        "place": finding.place,
    }


def _print(name: str, findings: Sequence[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for finding in findings:
        verdict = str(finding.verdict)
        text = Text(finding.what)
        if finding.remedy is not None:
            text.append(f"\n→ {f'{finding.place}: ' if finding.place else ''}{finding.remedy}")
        table.add_row(Text(verdict, style=_STYLE[verdict]), Text(finding.subject), text)
    console = wide_console()
    console.print(table)
    counts = {verdict: sum(str(finding.verdict) == verdict for finding in findings) for verdict in _STYLE}
    console.print(f"\n{name}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))


@site.command()
@click.option(
    "--scheduler",
    type=click.Choice(["slurm", "pbs", "loadleveler", "local"]),
    help="Which batch system to ask; else the one whose commands are on PATH.",
)
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Write it there; else print it.")
def init(scheduler: str | None, output: Path | None) -> None:
    """Write a first profile from what the batch system says; an existing file is never overwritten.

    \b
    Example:  dlhpc site init --output centre.yaml
    """
    from dlhpc.errors import CommandError, UserError
    from dlhpc.sites.first import first_profile, profile_name
    from dlhpc.sites.models import Site
    from dlhpc.sites.probe import detect_scheduler, probe
    from dlhpc.spec.load import parse_document, validate

    if output is not None and output.exists():
        raise UserError("exists already", where=output, remedy="Choose another name with --output.")
    machine = probe(scheduler or detect_scheduler())
    if machine.queues is None and machine.nodes is None:
        raise CommandError(
            f"{machine.scheduler} did not answer: {'; '.join(machine.silent)}",
            remedy="Check that its commands work for you here, or name another batch system with --scheduler.",
        )
    text = first_profile(machine, profile_name(output, machine))
    validate(parse_document(text, output or Path("the profile")), Site)
    if output is None:
        click.echo(text, nl=False)
        return
    from dlhpc.files import storage_errors

    with storage_errors(output), output.open("x", encoding="utf-8") as file:  # x: another may have written it meanwhile
        file.write(text)
    click.echo(f"{output} describes {len(machine.nodes or ())} nodes and {len(machine.queues or ())} queues")
    for sentence in machine.silent:
        click.echo(f"  no answer: {sentence}")
    click.echo(f"Complete its TODO lines, then: dlhpc site check --site {output}")
