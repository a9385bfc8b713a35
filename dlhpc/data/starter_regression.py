"""A first spec for a table of numbers: what is to be predicted is guessed, everything else taken from the table."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from dlhpc.data.catalog import make_catalog
from dlhpc.data.folders import EXTENSIONS
from dlhpc.data.starter_parts import batch_size, line, look, quoted, run_name, written_path
from dlhpc.data.table_files import TableFile, read_table
from dlhpc.errors import DataError
from dlhpc.spec.load import parse_document, validate
from dlhpc.spec.models import Spec

_SHOWN = 12  # so many columns are named in comments


def regression_spec(
    file: Path,
    name: str | None = None,
    *,
    targets: Sequence[str] = (),
    relative_to: Path | None = None,
    ranks_per_node: int = 1,
) -> str:
    """A commented YAML spec for the CSV or Parquet ``file``; ``targets`` are the columns to predict, else the last
    one of numbers. Arguments and errors otherwise as for :func:`dlhpc.data.starter.starter_spec`.
    """
    file = Path(os.path.abspath(file))
    written = written_path(file, relative_to)
    table = read_table(file)
    guessed = not targets
    targets = targets or [_last_numbers(table)]
    table.require(targets, "--target")
    pictures = _pictures(table, targets, file.parent)
    source = _source_lines(table, written, targets, guessed, pictures)
    draft = "\n".join(["name: draft", "task: regression", "data:", *source])
    data = validate(parse_document(draft, file), Spec).data
    catalog = make_catalog(data, Path(os.path.abspath(relative_to or file.parent)), "regression")
    counts = {split: catalog.count(split) for split in catalog.splits}
    many = "pictures" if pictures else "rows"
    head = [
        "# What number dlhpc shall learn to predict, and from what. It runs as it is:  dlhpc submit THIS_FILE --wait",
        "# Change what you like; text after a # is explanation. `dlhpc plan THIS_FILE` shows what would happen, and",
        "# `dlhpc data check THIS_FILE` looks for numbers that are far from all others and for rows that repeat.",
        f"# Found: {sum(counts.values())} {many}:",
        f"#   {counts['train']} to learn from, {counts['val']} to measure by (val), {counts['unseen']} kept unseen.",
        *(f"# Note: {note}".replace("\n", " ") for note in catalog.notes),
        "",
        line(
            f"name: {quoted(run_name(file.stem) if name is None else name)}", "each run is called this, with its date"
        ),
        line('notes: ""', "what you want to remember; it is shown in the report"),
        line("task: regression", "predict a number, or several"),
        "",
        "data:",
        *source,
    ]
    if pictures is None:
        lines = [*head, "", *_rows(counts["train"], ranks_per_node)]
    else:
        lines = [*head, *_of_pictures(look(catalog.splits["train"]).short_side, counts["train"], ranks_per_node)]
    text = "\n".join([*lines, "", *_job(ranks_per_node)]) + "\n"
    validate(parse_document(text, file), Spec)  # a bad --name is told here, in the words of the spec
    return text


def _last_numbers(table: TableFile) -> str:
    """The last column that holds numbers, more than one of them."""
    for name in reversed(table.columns):
        numbers = table.numbers(name)
        real = {number for number in numbers if number is not None and math.isfinite(number)}
        if len(real) > 1 and None not in numbers:
            return name
    raise DataError(
        "has no column of numbers that could be predicted",
        where=table.path,
        remedy="Check that the first line names the columns; for a column of words use `task: classification`.",
    )


def _pictures(table: TableFile, targets: Sequence[str], root: Path) -> str | None:
    """The column with paths of pictures, if there is one."""
    for name in table.columns:
        words = [word for word in table.words(name) if word is not None][:10]
        named = all(os.path.splitext(word)[1].lower() in EXTENSIONS for word in words)
        if name not in targets and words and named and all((root / word).exists() for word in words):
            return name
    return None


def _source_lines(
    table: TableFile, written: str, targets: Sequence[str], guessed: bool, pictures: str | None
) -> list[str]:
    gaps = [name for name in table.columns if any(cell is None for cell in table.columns[name])]
    missing = "drop" if pictures is not None or any(name in gaps for name in targets) else "fill" if gaps else "fail"
    wanted = f"[{', '.join(map(quoted, targets))}]" if len(targets) > 1 else quoted(targets[0])
    lines = [
        line("  table:", f"{len(table)} rows with {len(table.columns)} columns"),
        f"    file: {quoted(written)}",
        line(f"    targets: {wanted}", "what is to be predicted" + ("; the last column of numbers" if guessed else "")),
    ]
    if pictures is not None:
        lines.append(line(f"    pictures: {quoted(pictures)}", "column with the pictures to predict from"))
    else:
        others = [name for name in table.columns if name not in targets]
        more = ", …" if len(others) > _SHOWN else ""
        lines.append(line("    # inputs: [a, b]", "to predict from; without this line all others, which are"))
        lines.append(f"                           #   {', '.join(map(quoted, others[:_SHOWN]))}{more}")
        lines.append(line("    # categories: [code]", "columns whose numbers are names, such as a space group"))
    lines += [
        line("    # group: sample", "column whose equal values stay together in one split"),
        line(f"    missing: {missing}", "rows with gaps: fail, drop (leave out), or fill (take the mean, and say so)"),
        line("  split:", "the rows are shared out like this; the three sum to 1"),
        line("    train: 0.7", "the network learns from these"),
        line("    val: 0.15", "these measure it while it learns"),
        line("    unseen: 0.15", "kept aside for an honest test: dlhpc predict RUN --unseen"),
        line("    seed: 1", "another number shares the same rows out otherwise"),
    ]
    return lines


def _rows(train: int, ranks: int) -> list[str]:
    batch = batch_size(32, train, ranks)
    epochs = min(500, max(30, round(8000 * batch * ranks / train)))
    every = max(1, epochs // 50)
    return [
        "network:",
        line("  name: mlp", "layers of numbers, each connected to all of the one before"),
        line("  hidden: [128, 128]", "how many numbers each hidden layer has"),
        line("  dropout: 0.0", "0.1 to 0.3 against learning by heart, where there are few rows"),
        "",
        line("optimizer:", "how the network is corrected after each step"),
        line("  name: adamw", "others: sgd, nesterov, adam, rmsprop, adagrad, adadelta, lars, lamb"),
        line("  weight_decay: 0.01", "keeps weights small, against learning by heart"),
        "",
        *_rate("0.003"),
        "",
        "training:",
        line(f"  epochs: {epochs}", "how often every training row is seen"),
        line(f"  batch_size: {batch}", "rows for each rank and step"),
        line("  loss: mse", "mae and huber are led less by a few wild numbers"),
        line(f"  validation_interval: {every}", "measure after so many epochs"),
        line(f"  snapshot_interval: {every}", "save after so many epochs"),
        line("  seed: 1", "another number starts from other random weights"),
    ]


def _of_pictures(short_side: int, train: int, ranks: int) -> list[str]:
    size = 32 if 0 < short_side <= 40 else 64 if short_side <= 160 else 128
    batch = batch_size(16, train, ranks)
    epochs = min(100, max(30, round(640 * batch * ranks / train)))
    return [
        line(f"  width: {size}", "every picture is brought to this size, in pixels; larger shows finer detail"),
        line(f"  height: {size}", "  and takes longer"),
        "",
        line("augment:", "random changes to the training pictures, as if there were more of them"),
        line("  flip_horizontal: false", "true where left and right do not matter for the number"),
        line("  flip_vertical: false", "true where up and down do not matter, as in micrographs"),
        line(f"  shift_pixels: {size // 16}", "moved by up to so many pixels each way"),
        "",
        line("network:", "others: lenet, alexnet, googlenet, resnet18, resnet50"),
        line("  name: smallnet", "a small network; it trains in minutes even without a GPU"),
        "",
        line("optimizer:", "how the network is corrected after each step"),
        line("  name: adamw", "others: sgd, nesterov, adam, rmsprop, adagrad, adadelta, lars, lamb"),
        line("  weight_decay: 0.01", "keeps weights small, against learning by heart"),
        "",
        *_rate("0.002"),
        "",
        "training:",
        line(f"  epochs: {epochs}", "how often every training picture is seen"),
        line(f"  batch_size: {batch}", "pictures for each rank and step"),
        line("  loss: mse", "mae and huber are led less by a few wild numbers"),
        line("  seed: 1", "another number starts from other random weights"),
    ]


def _rate(base: str) -> list[str]:
    return [
        line("learning_rate:", "how large the corrections are"),
        line(f"  base: {base}", "too large diverges, too small takes for ever; try a third or three times of it"),
        line("  policy: cosine", "how it falls: fixed, step, multistep, exp, inv, poly, sigmoid, cosine, linear"),
        line("  warmup_epochs: 2", "rise gently to `base` during so many epochs"),
    ]


def _job(ranks: int) -> list[str]:
    return [
        line("job:", "what to ask of the machine"),
        line(f"  ranks_per_node: {ranks}", "training processes at the same time: one for each GPU, or a few on cores"),
        line("  walltime: 1:00:00", "hours:minutes:seconds for one go; a longer training is saved and goes on"),
    ]
