"""A first spec for a folder of pictures: it runs as it is, and every line says what it means to who will edit it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dlhpc.data.catalog import Catalog, make_catalog
from dlhpc.data.splits import SPLIT_WORDS
from dlhpc.data.starter_parts import Looks, batch_size, line, look, quoted, run_name, written_path
from dlhpc.spec.load import parse_document, validate
from dlhpc.spec.models import Data, Folders, Spec, Split

_FEW, _SOME = 5, 20  # pictures in the smallest class: from here on some are kept unseen; from here on fewer of them


@dataclass(frozen=True)
class _Recipe:
    """A network with settings that suit it."""

    why: str
    network: str
    size: int
    crop: int | None
    shift: int
    optimizer: str
    weight_decay: str
    rate: str
    policy: str
    warmup: int
    epochs: int
    batch: int


def starter_spec(
    folder: Path, name: str | None = None, *, relative_to: Path | None = None, ranks_per_node: int = 1
) -> str:
    """A commented YAML spec for the pictures in ``folder``: class folders, or folders for train, val and test.

    ``name`` is the run's name, else made from the folder's. ``relative_to`` is the folder that the spec will be
    written to; the pictures are then named relative to it if they lie below it, else by their absolute path. Pictures
    are looked at where NumPy and Pillow are installed, which a login node may lack. Raises :class:`DataError` for a
    folder that cannot be trained on, :class:`UserError` for a bad name.
    """
    folder = Path(os.path.abspath(folder))
    written = written_path(folder, relative_to)
    data, source = _source(folder, written)
    catalog = make_catalog(data, folder)
    smallest = min(
        sum(catalog.counts(split)[label] for split in catalog.splits) for label in range(len(catalog.classes))
    )
    shares = _shares(smallest) if data.folder is not None else None
    if shares is not None:
        catalog = make_catalog(data.model_copy(update={"split": shares}), folder)
    looks = look(catalog.splits["train"])
    recipe = _recipe(looks, len(catalog.splits["train"]), ranks_per_node)
    text = _text(
        run_name(folder.name) if name is None else name, source, shares, catalog, looks, recipe, ranks_per_node
    )
    validate(parse_document(text, folder), Spec)  # a bad --name is told here, in the words of the spec
    return text


def _source(folder: Path, written: str) -> tuple[Data, list[str]]:
    """Where the pictures are, as the spec's model (absolute) and as the lines that say it in YAML."""
    found: dict[str, str] = {}
    names = sorted(entry.name for entry in _subfolders(folder))
    for name in names:
        if split := SPLIT_WORDS.get(name.lower()):
            found.setdefault(split, name)
    # A folder that is named twice (val and valid) or otherwise makes the names classes.
    if len(found) < len(names) or "train" not in found or len(found) < 2:
        meaning = "holds one folder for each class, named after it, with its pictures inside"
        return Data(folder=str(folder)), [line(f"  folder: {quoted(written)}", meaning)]
    lines = [line("  folders:", "each holds one folder for each class with its pictures inside")]
    if "val" not in found:
        found["val"] = found.pop("unseen")
        lines.append(
            "                          # (there is no folder for val, so the one for test measures the network)"
        )
    lines += [f"    {split}: {quoted(os.path.join(written, found[split]))}" for split in found]
    folders = Folders(**{split: str(folder / name) for split, name in found.items()})
    return Data(folders=folders), lines


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []  # the catalogue says what is wrong with it


def _shares(smallest: int) -> Split:
    if smallest < _FEW:
        return Split()
    return Split(train=0.6, val=0.2, unseen=0.2) if smallest < _SOME else Split(train=0.7, val=0.15, unseen=0.15)


def _recipe(looks: Looks, train: int, ranks: int) -> _Recipe:
    """Small pictures get the small network; large ones DIGITS' AlexNet recipe, or ResNet-18 where there are many."""
    if 0 < looks.short_side <= 160:
        size = 32 if looks.short_side <= 40 else 64
        batch = batch_size(16, train, ranks)
        epochs = min(100, max(30, round(320 * batch * ranks / train)))
        why = "a small network for small pictures; it trains in minutes even without a GPU"
        return _Recipe(why, "smallnet", size, None, size // 16, "adamw", "0.01", "0.002", "cosine", 2, epochs, batch)
    batch = batch_size(32, train, ranks)
    if train >= 2000:
        why = "a network of today's kind for many pictures"
        return _Recipe(why, "resnet18", 256, 224, 0, "sgd", "0.0001", "0.05", "cosine", 2, 30, batch)
    why = "the classic that NVIDIA DIGITS starts with"
    epochs = 100 if train < 1000 else 30
    return _Recipe(why, "alexnet", 256, 227, 0, "sgd", "0.0001", "0.01", "step", 0, epochs, batch)


def _text(
    name: str, source: list[str], shares: Split | None, catalog: Catalog, looks: Looks, recipe: _Recipe, ranks: int
) -> str:
    counts = {split: len(pictures) for split, pictures in catalog.splits.items()}
    shown = ", ".join(quoted(name) for name in catalog.classes[:5]) + (", …" if len(catalog.classes) > 5 else "")
    if looks.short_side:
        color = "" if looks.color == "auto" else f"{looks.color} and "
        seen = f"# The pictures that were looked at are {color}{looks.sizes} pixels large."
    else:
        seen = "# The pictures could not be looked at from here; check width, height and network below."
    head = [
        "# What dlhpc shall learn, and from which pictures. It runs as it is:  dlhpc submit THIS_FILE --wait",
        "# Change what you like; text after a # is explanation. `dlhpc plan THIS_FILE` shows what would happen.",
        f"# Found: {sum(counts.values())} pictures of {len(catalog.classes)} classes ({shown}):",
        f"#   {counts['train']} to learn from, {counts['val']} to measure by (val), {counts['unseen']} kept unseen.",
        seen,
        "",
        line(f"name: {quoted(name)}", "each run is called this, with date and time after it"),
        line('notes: ""', "what you want to remember; it is shown in the report"),
        line("task: classification", "say which class a picture belongs to"),
        "",
        "data:",
        *source,
    ]
    lines = [*head, *_data_lines(shares, looks, recipe), "", *_training_lines(catalog, recipe, ranks)]
    return "\n".join(lines) + "\n"


def _data_lines(shares: Split | None, looks: Looks, recipe: _Recipe) -> list[str]:
    broken = (
        line("  broken: skip", "some pictures are damaged: they are named and left out; `fail` stops instead")
        if looks.broken
        else line("  broken: fail", "stop if a picture is damaged; `skip` names it and goes on without it")
    )
    sharing = []
    if shares is not None:
        sharing = [
            line("  split:", "each class is shared out like this; the three sum to 1"),
            line(f"    train: {shares.train:g}", "the network learns from these"),
            line(f"    val: {shares.val:g}", "these measure it after every epoch"),
            line(f"    unseen: {shares.unseen:g}", "kept aside for an honest test: dlhpc predict RUN --unseen"),
            line("    seed: 1", "another number shares the same pictures out otherwise"),
        ]
    return [
        *sharing,
        line(f"  color: {looks.color}", "grey, rgb, or auto: grey if the pictures are"),
        line(f"  width: {recipe.size}", "every picture is brought to this size, in pixels; larger shows finer detail"),
        line(f"  height: {recipe.size}", "  and takes longer"),
        line("  resize: squash", "or crop, fill (black bars), half_crop: what to do if the shape is not the same"),
        broken,
    ]


def _training_lines(catalog: Catalog, recipe: _Recipe, ranks: int) -> list[str]:
    mirrored = any(len(name) > 1 for name in catalog.classes)  # classes of one character may be letters or digits
    augment = [
        line("augment:", "random changes to the training pictures, as if there were more of them"),
        line(
            f"  flip_horizontal: {str(mirrored).lower()}",
            "left and right swapped; false where a mirror image is another class",
        ),
        line("  flip_vertical: false", "upside down; true for pictures without an up and down, such as micrographs"),
        line(f"  shift_pixels: {recipe.shift}", "moved by up to so many pixels each way"),
    ]
    if recipe.crop is not None:
        augment.append(line(f"  crop: {recipe.crop}", "a square of so many pixels, cut out at a random place"))
    return [
        *augment,
        "",
        line("network:", "others: lenet, smallnet, alexnet, googlenet, resnet18, resnet50"),
        line(f"  name: {recipe.network}", recipe.why),
        "",
        line("optimizer:", "how the network is corrected after each step"),
        line(f"  name: {recipe.optimizer}", "others: sgd, nesterov, adam, adamw, rmsprop, adagrad, adadelta"),
        line(f"  weight_decay: {recipe.weight_decay}", "keeps weights small, against learning by heart"),
        "",
        line("learning_rate:", "how large the corrections are"),
        line(
            f"  base: {recipe.rate}", "too large diverges, too small takes for ever; try a third or three times of it"
        ),
        line(
            f"  policy: {recipe.policy}",
            "how it falls: fixed, step, multistep, exp, inv, poly, sigmoid, cosine, linear",
        ),
        line(f"  warmup_epochs: {recipe.warmup}", "rise gently to `base` during so many epochs"),
        "",
        "training:",
        line(f"  epochs: {recipe.epochs}", "how often every training picture is seen"),
        line(
            f"  batch_size: {recipe.batch}", "pictures for each rank and step; halve it if the memory does not suffice"
        ),
        line("  validation_interval: 1", "measure after so many epochs; 0.5 is twice an epoch"),
        line("  snapshot_interval: 1", "save after so many epochs"),
        line("  seed: 1", "another number starts from other random weights"),
        "",
        line("job:", "what to ask of the machine"),
        line("  nodes: 1", "computers; more than one on a cluster only"),
        line(f"  ranks_per_node: {ranks}", "training processes at the same time: one for each GPU, or a few on cores"),
        line("  walltime: 1:00:00", "hours:minutes:seconds for one go; a longer training is saved and goes on"),
    ]
