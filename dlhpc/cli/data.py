"""``dlhpc data``: pack pictures and tables into few large files, look at them, check them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from dlhpc.cli import LazyGroup
from dlhpc.cli.common import print_json, set_option

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed


class _DataGroup(LazyGroup):
    commands_table: ClassVar = {
        "pack": ("dlhpc.cli.data:pack", "Pack pictures or a table into few large files."),
        "check": ("dlhpc.cli.data_check:check", "Look for broken files, duplicates, imbalance."),
        "show": ("dlhpc.cli.data:show", "Write a page with pictures, classes and histograms."),
    }


@click.group(cls=_DataGroup)
def data() -> None:
    """Pack, check and look at the data that a training learns from.

    A training packs its data by itself; packing by hand is for data that many trainings share.
    """


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--to", "target", type=click.Path(path_type=Path), required=True, help="Folder of the packed dataset.")
@click.option("--add", is_flag=True, help="Add what is new in SOURCE to the dataset that is there.")
@set_option
@click.option("--threads", type=click.IntRange(min=1), help="Threads that decode; else one for each core.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def pack(source: Path, target: Path, add: bool, settings: tuple[str, ...], threads: int | None, as_json: bool) -> None:
    """Pack SOURCE into few large files, which a training reads fast from any file system.

    SOURCE is a spec (its `data` and `task` count), a folder with one folder per class, a folder in KITTI's layout
    (images and labels inside), a list file, or a table (CSV, Parquet). If the command is interrupted, repeat it: it
    goes on from the files that are finished.

    \b
    Examples:
      dlhpc data pack photos.yaml --to photos.packed
      dlhpc data pack photos/ --to photos.packed --set data.width=128 --set data.height=128
      dlhpc data pack photos/ --to photos.packed --add
      dlhpc data pack concrete.csv --to concrete.packed --set data.table.targets=strength
    """
    import os

    from dlhpc.data.source import find_source
    from dlhpc.errors import UserError

    with libraries():
        from dlhpc.data.__main__ import preparation
        from dlhpc.data.catalog import make_catalog
        from dlhpc.data.pack_add import add_pictures

        found = find_source(source, settings, adding=add)
        if found.data.packed is not None:
            raise UserError("this spec's data is packed already", where=found.data.packed, remedy="Name the pictures.")
        folder = Path(os.path.abspath(target))
        many = threads or len(os.sched_getaffinity(0))
        if add:
            catalog = make_catalog(found.data, found.base, found.task)
            with progress(as_json) as tell:
                added = add_pictures(
                    folder, catalog, skip_broken=found.data.broken == "skip", threads=many, progress=tell
                )
            with added.packed as packed:
                _summary(packed, {"added": added.new, "known": added.known}, as_json)
            return
        catalog = make_catalog(found.data, found.base, found.task)
        key = catalog.key(found.data)
        _refuse_another(folder, key)
        with progress(as_json) as tell:
            packed = _pack(catalog, found.data, preparation, folder, key, many, tell)
        with packed:
            _summary(packed, {}, as_json)


def _pack(
    catalog: Any,
    data: Any,
    preparation: Callable[[Any], Any],
    folder: Path,
    key: str,
    threads: int,
    progress: Callable[[int, int], None],
) -> Packed:
    from dlhpc.data.pack import pack as pack_pictures
    from dlhpc.data.pack_rows import pack_rows

    settings = data.model_dump(mode="json")
    if catalog.kind == "table":
        return pack_rows(catalog, settings["table"], folder, key=key, replace_damaged=False)
    how = preparation(settings)
    return pack_pictures(catalog, how, folder, key=key, threads=threads, progress=progress, replace_damaged=False)


def _refuse_another(folder: Path, key: str) -> None:
    """An existing folder is never written over."""
    from dlhpc.data.index import read_index
    from dlhpc.errors import DataError, StorageError, UserError

    if not folder.exists():
        return
    try:
        index = read_index(folder)
    except (DataError, StorageError) as error:
        raise UserError(
            f"exists already, and is no whole packed dataset ({error.what})",
            where=folder,
            remedy="Name a folder that does not exist yet, or remove this one.",
        ) from error
    if index.key != key:
        raise UserError(
            "holds another packed dataset already, or the same pictures have changed",
            where=folder,
            remedy="Use --add to add what is new, or name another folder.",
        )


def _summary(packed: Packed, more: dict[str, int], as_json: bool) -> None:
    from dlhpc.cli.common import shell_word
    from dlhpc.data.__main__ import described
    from dlhpc.data.folders import show_path
    from dlhpc.data.splits import SPLITS

    index = packed.index
    size = sum(file.bytes for file in [*index.shards, *index.files.values()])
    if as_json:
        print_json(
            dict(
                folder=str(packed.folder),
                task=index.task,
                kind=index.kind,
                storage=index.storage,
                counts=index.counts,
                classes=index.classes,
                class_counts=index.class_counts,
                bytes=size,
                files=len(index.shards),
                fingerprint=index.fingerprint,
                skipped=[{"path": show_path(path), "reason": reason} for path, reason in index.skipped],
                notes=index.notes,
                **more,
            )
        )
        return
    if more:
        click.echo(f"{more['added']} pictures were added; {more['known']} were in it already.")
    counts = ", ".join(f"{index.counts[split]} {split}" for split in SPLITS if index.counts[split])
    click.echo(f"Packed {described(packed)}: {counts}")
    if index.classes:
        named = ", ".join(index.classes[:8]) + (", …" if len(index.classes) > 8 else "")
        click.echo(f"{len(index.classes)} class{'' if len(index.classes) == 1 else 'es'}: {named}")
    if index.target_names:
        click.echo(f"To predict: {', '.join(index.target_names)}")
    shown = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    many = len(index.shards)
    click.echo(f"{shown}, the data itself in {many} file{'' if many == 1 else 's'}")
    for path, reason in packed.skipped[:20]:
        click.echo(f"left out: {show_path(path)}: {reason}")
    if len(packed.skipped) > 20:
        click.echo(f"left out: {len(packed.skipped) - 20} more, all in {packed.folder}/index.json")
    for note in index.notes:
        click.echo(f"note: {note}")
    click.echo("\nIn a spec:\n")
    if index.task != "classification":
        click.echo(f"task: {index.task}")
    click.echo(f"data:\n  packed: {_yaml_text(str(packed.folder))}")
    click.echo(f"\nTo look at it:  dlhpc data show {shell_word(packed.folder)}")


def _yaml_text(text: str) -> str:
    """Plain where YAML takes it so, else in double quotes."""
    import json
    import re

    return text if re.fullmatch(r"[\w/.+-]+", text, re.ASCII) else json.dumps(text, ensure_ascii=False)


@contextlib.contextmanager
def progress(quiet: bool, doing: str = "packing") -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's standard error; a line every ten seconds elsewhere."""
    import sys
    import time

    if quiet or not sys.stderr.isatty():
        last = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal last
            if not quiet and time.monotonic() - last >= 10:
                last = time.monotonic()
                click.echo(f"{doing} {done} of {total} pictures", err=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def libraries() -> Iterator[None]:
    """Say kindly what a login node lacks, and keep picture libraries from printing warnings of odd tags."""
    import logging
    import warnings

    from dlhpc.errors import UserError

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("dlhpc"):
                raise
            raise UserError(
                f"this command needs the Python package `{error.name}`, which is not installed here",
                remedy="Use the environment that trainings run in (PREFIX/bin/dlhpc), or pip install 'dlhpc[train]'.",
            ) from error


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Page to write; else DATASET's name with .html, here.")
@click.option("--pictures", type=click.IntRange(1, 5000), default=240, show_default=True, help="At most so many.")
@set_option
def show(dataset: Path, out: Path | None, pictures: int, settings: tuple[str, ...]) -> None:
    """Write one web page about DATASET: pictures by class and split, boxes or targets, histograms, the mean picture,
    and what each way of resizing would make of a picture.

    DATASET is a packed folder, or a spec, of whose data then a sample is prepared as a training would.

    \b
    Examples:
      dlhpc data show photos.packed
      dlhpc data show photos.yaml --set data.resize=fill --out photos.html
    """
    from dlhpc.cli.common import shell_word
    from dlhpc.files import replace_text

    target = out or Path(f"{Path(dataset.absolute()).name.removesuffix('.yaml').removesuffix('.yml')}.html")
    if target.is_dir():
        target = target / f"{dataset.absolute().stem}.html"
    with libraries():
        from dlhpc.data.gallery import page_of_packed, page_of_source
        from dlhpc.data.packed import open_packed

        if (dataset / "index.json").exists():
            with open_packed(dataset) as packed:
                page = page_of_packed(packed, pictures)
        else:
            from dlhpc.data.source import find_source

            page = page_of_source(find_source(dataset, settings), dataset.absolute().stem, pictures)
    replace_text(target, page)
    click.echo(f"Wrote {shell_word(target)}. Open it in a browser; it needs no network.")
