"""``dlhpc data check``: what would harm a training or make its figures untrue, before it is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dlhpc.cli.common import print_json, set_option
from dlhpc.cli.data import libraries, progress

if TYPE_CHECKING:
    from dlhpc.data.findings import Finding
    from dlhpc.data.splits import SplitName

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@set_option
@click.option("--threads", type=click.IntRange(min=1), help="Threads that read pictures; else one for each core.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def check(source: Path, settings: tuple[str, ...], threads: int | None, as_json: bool) -> None:
    """Look at every sample of SOURCE: broken files, copies and near copies (above all those in train and val at once),
    boxes that do not fit, rare and missing classes, odd pictures, numbers far from all others.

    SOURCE is a spec, a folder of pictures, a list file, a table, or a packed dataset. The exit code is 2 if there is an
    error, 0 if there are only warnings and notes.

    \b
    Examples:
      dlhpc data check photos.yaml
      dlhpc data check photos/ --json
      dlhpc data check photos.packed
    """
    import os

    many = threads or len(os.sched_getaffinity(0))
    with libraries():
        from dlhpc.data.catalog import make_catalog
        from dlhpc.data.check import check as look_at
        from dlhpc.data.check import check_packed
        from dlhpc.data.packed import open_packed
        from dlhpc.data.source import find_source
        from dlhpc.data.splits import SPLITS

        with progress(as_json, "looked at") as tell:
            if (source / "index.json").exists():
                with open_packed(source) as packed:
                    found = check_packed(packed, threads=many, progress=tell)
                    counts = {split: packed.count(split) for split in SPLITS}
                    notes = list(packed.index.notes)
            else:
                asked = find_source(source, settings)
                catalog = make_catalog(asked.data, asked.base, asked.task)
                found = look_at(catalog, asked.data, threads=many, progress=tell)
                counts = {split: catalog.count(split) for split in SPLITS}
                notes = catalog.notes
    bad = any(finding.severity == "error" for finding in found)
    if as_json:
        from dataclasses import asdict

        print_json({"counts": counts, "notes": notes, "findings": [asdict(one) for one in found], "errors": bad})
    else:
        _show(found, counts, notes)
    if bad:
        raise SystemExit(2)


def _show(found: list[Finding], counts: Mapping[SplitName, int], notes: list[str]) -> None:
    shown = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
    click.echo(f"Looked at {sum(counts.values())} samples: {shown}")
    for note in notes:
        click.echo(f"{click.style('note', fg=_COLOURS['note'])}: {note}")
    for one in found:
        click.echo(f"{click.style(one.severity.value, fg=_COLOURS[one.severity.value])}: {one.what}")
        for example in one.examples[:5]:
            click.echo(f"    {''.join(sign if sign.isprintable() else '?' for sign in example)}")
        if one.count > len(one.examples[:5]) > 0:
            click.echo(f"    … and {one.count - len(one.examples[:5])} more (--json lists more of them)")
        click.echo(f"  → {one.remedy}")
    if not found:
        click.echo("Nothing was found that would harm a training.")
