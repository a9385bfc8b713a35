"""What a user says about data: where it is, how it is split and brought to one size, how it is varied in training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dlhpc.spec.base import Model, OneOrMore

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], OneOrMore]


class Split(Model):
    """How the pictures of each class are shared out; the three fractions sum to 1."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Fraction that the network learns from."""
    val: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Fraction that measures it after every validation interval."""
    unseen: Fraction = 0.0
    """Fraction kept aside for a last, honest test."""
    seed: int = 1
    """The same seed gives the same split of the same files."""
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    """k-fold cross-validation: what is not unseen is cut into so many parts, of which `fold` measures and the others
    are learnt from; `train` and `val` then only say how much is left for `unseen`."""
    fold: Positive = 1
    """Which part measures, from 1; sweep it to train on all folds: `sweep: {grid: {data.split.fold: [1, 2, 3]}}`."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.val + self.unseen
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + unseen is {total:g}; the fractions must sum to 1")
        if self.folds is not None and self.fold > self.folds:
            raise ValueError(f"fold is {self.fold}, but there are {self.folds} folds")
        return self


class Folders(Model):
    """One folder per split, each holding one folder per class."""

    train: str
    val: str
    unseen: str | None = None


class Lists(Model):
    """Text files with one `PATH LABEL` a line; LABEL is a class name or, with a labels file, its line number from 0.

    With `data.several_labels` it is any number of them, separated by commas; for regression one or more numbers."""

    train: str
    val: str
    unseen: str | None = None
    labels: str | None = None
    """File with one class name a line."""
    root: str | None = None
    """Folder that the listed paths are relative to; the list's own folder if absent."""


class Kitti(Model):
    """Pictures with boxes in KITTI's layout: picture X.png has its boxes in X.txt, one object a line with 15 or more
    columns (type, truncated, occluded, alpha, left, top, right, bottom, …)."""

    images: str
    """Folder of pictures."""
    labels: str
    """Folder of text files."""
    val_images: str | None = None
    """Pictures to measure by, where they lie apart; else `data.split` shares out `images`."""
    val_labels: str | None = None
    unseen_images: str | None = None
    unseen_labels: str | None = None
    sequences: str | None = None
    """File with one line a picture, `NAME SEQUENCE`, or KITTI's own train_mapping.txt: neighbouring pictures of one
    drive look alike, so all pictures of a sequence go to the same split."""
    mapping: dict[str, str] = {}
    """KITTI type → class; several types may make one class. Types that are not named here, and those mapped to
    `dontcare`, are neither learnt nor counted as mistakes. Without a mapping every type is a class but DontCare."""
    max_truncated: Fraction = 1.0
    """Objects that are cut off by the picture's edge by more than this fraction count as DontCare."""
    max_occluded: Annotated[int, Field(ge=0, le=3)] = 3
    """Objects that are hidden more than this count as DontCare: 0 visible, 1 partly, 2 largely, 3 unknown."""
    min_height: Annotated[float, Field(ge=0)] = 0.0
    """Objects lower than so many pixels of the original picture count as DontCare; DIGITS used 25 for validation."""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        for split in ("val", "unseen"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if (images is None) != (labels is None):
                raise ValueError(f"{split}_images and {split}_labels belong together; give both or none")
        return self


class Table(Model):
    """Rows of a CSV or Parquet file: numbers and categories, or the paths of pictures, and what is to be predicted."""

    file: str
    """CSV (comma, semicolon or tab; first line names the columns) or Parquet."""
    val: str | None = None
    """File of rows to measure by; else `data.split` shares out the rows of `file`."""
    unseen: str | None = None
    targets: Annotated[tuple[str, ...], OneOrMore, Field(min_length=1)]
    """Column or columns to predict: numbers for regression; for classification one column of classes or, with
    `data.several_labels`, columns of 0 and 1."""
    inputs: Names | None = None
    """Columns to predict from; all others if absent."""
    categories: Names = ()
    """Input columns whose numbers are names (a space group, a site code). Columns of words always are."""
    pictures: str | None = None
    """Column with the path of a picture: the network then sees the picture, and no other column."""
    root: str | None = None
    """Folder that these paths are relative to; the table's own folder if absent."""
    group: str | None = None
    """Column whose equal values stay together in one split, for example a compound measured several times."""
    missing: Literal["fail", "drop", "fill"] = "fail"
    """What to do with rows that lack an input: stop, leave them out, or put the mean of the training rows there and
    tell the network so in a further input. A missing target is an error, or left out with `drop`."""


class Data(Model):
    """Where the data is and how it is brought to one shape. Paths are relative to the spec file."""

    folder: str | None = None
    """One folder per class inside; shared out by `split`."""
    folders: Folders | None = None
    """Instead of `folder`: separate folders for train, val and unseen."""
    lists: Lists | None = None
    """Instead of `folder`: list files for train, val and unseen."""
    kitti: Kitti | None = None
    """For detection: pictures with boxes in KITTI's layout."""
    table: Table | None = None
    """A CSV or Parquet file, for regression or classification."""
    packed: str | None = None
    """A dataset that `dlhpc data pack` has made; everything below but `normalize` was decided then."""
    split: Split = Split()
    min_per_class: Positive = 2
    """A class with fewer pictures is an error."""
    max_per_class: Positive | None = None
    """Take at most this many pictures of a class, chosen by the split's seed."""
    several_labels: bool = False
    """Classification: a picture may belong to several classes, or to none."""
    color: Literal["auto", "grey", "rgb"] = "auto"
    """`auto` is grey when the first pictures looked at are all grey, else rgb."""
    width: Annotated[int, Field(ge=8, le=8192)] = 256
    height: Annotated[int, Field(ge=8, le=8192)] = 256
    resize: Literal["squash", "crop", "fill", "half_crop", "pad"] = "squash"
    """`squash` ignores the aspect ratio, `crop` cuts the longer side, `fill` pads the shorter one, `half_crop` does
    half of each, `pad` keeps the scale, adds black at the right and below, and shrinks only what is too large."""
    storage: Literal["raw", "jpeg", "png"] = "raw"
    """How the packed dataset keeps pictures: `raw` values are fastest; `jpeg` (smallest) and `png` (exact) keep big
    pictures at their own size, to be brought to width × height, or cropped at full detail, while training."""
    broken: Literal["skip", "fail"] = "fail"
    """What to do with a picture that is empty, truncated or not a picture. It is named either way."""
    normalize: Literal["pixel", "image", "none"] = "pixel"
    """`pixel`: subtract each channel's mean over the training pictures and divide by its σ; `image`: subtract the mean
    picture, divide by σ; `none`: values from 0 to 1."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(f'`{name}`' for name in SOURCES)} "
                f"(given: {', '.join(given) if given else 'none'})"
            )
        return self

    @property
    def is_table(self) -> bool:
        """Whether the network sees rows of numbers. (What is packed already says so itself.)"""
        return self.table is not None and self.table.pictures is None


SOURCES = ("folder", "folders", "lists", "kitti", "table", "packed")
"""The keys of ``data`` of which exactly one says where the data is."""


class Augment(Model):
    """Random changes to training pictures; validation and prediction see the plain (centre-cropped) picture.

    Boxes of a detection task follow their picture."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False
    """Turn by 0, 90, 180 or 270°; the picture must be square."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turn by up to this angle each way; the edge is repeated."""
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    """Enlarge by a factor between these two, about the centre: [0.8, 1.2]."""
    shift_pixels: Annotated[int, Field(ge=0)] = 0
    """Move by up to this many pixels each way; the edge is repeated."""
    crop: Positive | tuple[Positive, Positive] | None = None
    """Cut a square of this many pixels, or [height, width]: anywhere in training, from the centre otherwise."""
    resized_crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] | None = None
    """Cut a part with between these two fractions of the picture's area, for example [0.08, 1], with a side ratio of
    3/4 to 4/3, and bring it to the size of `crop` (Szegedy et al. 2015)."""
    antialias: bool = False
    """Average neighbouring pixels when a resized crop shrinks much, as torchvision does; slower."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Colours are turned by up to this part of the colour circle each way."""
    saturation: Fraction = 0.0
    """Colourfulness is multiplied by up to 1 ± this."""
    brightness: Fraction = 0.0
    """Values are multiplied by up to 1 ± this."""
    contrast: Fraction = 0.0
    """The distance of values from the picture's mean is multiplied by up to 1 ± this."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Normally distributed noise is added, with a σ drawn up to this fraction of the full scale."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """MixUp: pictures and targets are mixed in pairs with λ drawn from Beta(α, α), this being α; 0.2 is usual
    (Zhang et al. 2018). Not for detection."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("scale", "resized_crop"):
            ends = getattr(self, name)
            if ends is not None and ends[0] > ends[1]:
                raise ValueError(f"{name} is [{ends[0]:g}, {ends[1]:g}]; the first must not be larger than the second")
        return self

    @property
    def crop_size(self) -> tuple[int, int] | None:
        """Height and width of the crop in pixels."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
