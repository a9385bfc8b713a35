"""One picture file → one array of the wanted colour and size, keeping 16 bits where the file has them.

Pillow reads all but what it would quietly cut down to 8 bits: 16-bit colour PNG (decoded by imagecodecs), 16-bit
colour PPM (parsed here, the format is a header and raw numbers) and TIFF with more than 8 bits (tifffile). Decisions
that a user may meet: transparent parts lie over white, as on a web page; EXIF and TIFF orientation is applied; grey is
made by ITU-R BT.601 luma; a TIFF stack and values that are floating-point or signed are refused, since guessing their
scale would silently change the data.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import struct
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dlhpc.data.folders import show_path
from dlhpc.data.packed import Pictures
from dlhpc.errors import DataError, DlhpcError, UserError
from dlhpc.files import storage_errors

Color = Literal["grey", "rgb"]
Resize = Literal["squash", "crop", "fill", "half_crop", "pad"]
Storage = Literal["raw", "jpeg", "png"]
Values = NDArray[Any]
"""H×W×C, C = 1 or 3, uint8 or uint16 at full scale."""

_FORMATS = ("PNG", "JPEG", "PPM", "BMP", "DIB", "TIFF")  # no others: some of Pillow's run other programs
_ORIENTATION = 0x0112  # the tag has the same number in EXIF and TIFF
_LUMA = np.array([0.299, 0.587, 0.114])
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PPM = re.compile(rb"P([36])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")


class BrokenPicture(DataError):
    """A file that is no whole picture of a kind we read; ``path`` as printable text, ``reason`` begins with a verb."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = show_path(path)
        self.reason = reason
        super().__init__(
            reason,
            where=self.path,
            remedy="Replace or delete the file, or set `broken: skip` under `data:` to train without it.",
        )


def read_picture(path: str, color: Color, height: int, width: int, resize: Resize = "squash") -> Pictures:
    """Read ``path`` as C×``height``×``width`` (C is 1 for grey, 3 for rgb), uint8, or uint16 if the file has more bits.

    Resizing is bilinear and antialiased. ``resize`` means what it does in NVIDIA DIGITS: ``squash`` ignores the aspect
    ratio, ``crop`` fills the frame and cuts what stands out, ``fill`` shows all and leaves bars (black here, noise in
    DIGITS), ``half_crop`` scales by the mean of both ratios and so cuts one side and leaves bars at the other. ``pad``
    is ours: the picture stays as it is in the upper left corner, or is shrunk if too large, and the rest is black.

    Raises :class:`BrokenPicture` for what is empty, truncated, no picture or far too large, :class:`UserError` if a
    needed decoder is not installed, :class:`StorageError` if the file system fails.
    """
    return fitted(as_color(decode(path), color), height, width, resize)


def fitted(values: Values, height: int, width: int, resize: Resize) -> Pictures:
    """A decoded picture as C×``height``×``width``, contiguous; see :func:`read_picture`."""
    frame = window(values.shape[0], values.shape[1], height, width, resize)
    return np.ascontiguousarray(np.moveaxis(_resized(values, frame, height, width), 2, 0))


def is_grey(values: Values) -> bool:
    """Whether a decoded picture is grey: one channel, or three that are equal."""
    return values.shape[2] == 1 or bool((values == values[:, :, :1]).all())


def decode(path: str) -> Values:
    """The picture at its own size, upright and opaque: H×W×1 or H×W×3. Errors as for :func:`read_picture`."""
    return decode_content(file_content(path), path)


def decode_content(content: bytes, path: str) -> Values:
    """As :func:`decode`, from the bytes of the file; ``path`` is only for messages."""
    try:
        return _decoded(content, path)
    except (DlhpcError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BrokenPicture(path, _TOO_LARGE) from error
    except UnidentifiedImageError as error:
        reason = "is not a PNG, JPEG, PGM, PPM, BMP or TIFF picture, or its beginning is damaged"
        raise BrokenPicture(path, reason) from error
    except Exception as error:  # decoders raise everything from SyntaxError to struct.error on damaged files
        said = str(error) or type(error).__name__
        cut = isinstance(error, EOFError) or any(word in said for word in ("runcated", "too small", "EOF"))
        raise BrokenPicture(path, "is truncated" if cut else f"cannot be decoded: {said}") from error


_TOO_LARGE = f"claims to have more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"


def file_content(path: str) -> bytes:
    """The whole file in one read; what is wrong with this one file is broken, the rest is the file system's fault."""
    try:
        with storage_errors(show_path(path), "read"), open(path, "rb") as file:
            content = file.read()
    except DlhpcError as error:
        match error.__cause__:
            case FileNotFoundError():
                raise BrokenPicture(path, "is not there any more") from error
            case PermissionError():
                raise BrokenPicture(path, "may not be read by you") from error
            case IsADirectoryError():
                raise BrokenPicture(path, "is a folder") from error
        raise
    if not content:
        raise BrokenPicture(path, "is empty")
    return content


def _decoded(content: bytes, path: str) -> Values:
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        if content.startswith(_TIFF_STARTS):
            return _tiff(content, path)
        raise
    with image:
        if image.format == "TIFF":
            if max(_numbers(image.tag_v2.get(258, 1))) > 8:  # type: ignore[attr-defined]  # BitsPerSample
                return _tiff(content, path)
            _refuse_stack(image, path)
        image.load()  # also checks checksums and the end of what other decoders read below
        if content.startswith(b"\x89PNG") and content[24] == 16 and content[25] != 0:
            values = _deep_png(content)
        elif (header := _PPM.match(content)) and int(header[4]) > 255:
            values = _deep_ppm(content, header, path)
        else:
            values = _array(image, path)
        return _upright(values, _orientation(image))


def _array(image: Image.Image, path: str) -> Values:
    """What Pillow read, as H×W×1 or H×W×3."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise BrokenPicture(path, "holds 32-bit values; grey pictures may have 8 or 16 bits")
        return wide.astype(np.uint16)[:, :, None]
    if image.mode == "F":
        raise BrokenPicture(path, _not_unsigned("float32"))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L" if grey else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    values = np.asarray(image)
    return values[:, :, None] if values.ndim == 2 else values


def _deep_png(content: bytes) -> Values:
    values = np.asarray(imagecodecs().png_decode(content))
    values = values[:, :, None] if values.ndim == 2 else values
    if values.shape[2] in (2, 4):
        return _over_white(values[:, :, :-1], values[:, :, -1:])
    return values


def _deep_ppm(content: bytes, header: re.Match[bytes], path: str) -> Values:
    """Netpbm's PPM with ``maxval`` above 255: big-endian 16-bit numbers (https://netpbm.sourceforge.net/doc/ppm.html)."""
    if header[1] == b"3":
        raise BrokenPicture(path, "is a 16-bit colour PPM in text form; save it in binary form")
    width, height, largest = int(header[2]), int(header[3]), int(header[4])
    values = np.frombuffer(content, dtype=">u2", count=width * height * 3, offset=header.end())
    return _full_scale(values.astype(np.uint16).reshape(height, width, 3), largest)


def _tiff(content: bytes, path: str) -> Values:
    """A TIFF with more than 8 bits a value: grey or RGB, perhaps with alpha."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        page = tiff.pages.first
        if len(tiff.pages) > 1 and tiff.pages[1].shape == page.shape:
            raise BrokenPicture(path, _stack(len(tiff.pages)))
        if page.dtype is None or page.dtype.kind != "u" or page.dtype.itemsize > 2:
            raise BrokenPicture(path, _not_unsigned(str(page.dtype or "odd")))
        if page.photometric not in (0, 1, 2):  # white is zero, black is zero, RGB
            raise BrokenPicture(path, "is a TIFF of more than 8 bits that is neither grey nor RGB")
        if page.imagewidth * page.imagelength > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
            raise BrokenPicture(path, _TOO_LARGE)
        if page.axes not in ("YX", "YXS", "SYX"):
            raise BrokenPicture(path, f"is a TIFF with the axes {page.axes}; a flat picture is needed")
        try:
            values = page.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                imagecodecs()  # says kindly that it is missing
            raise
        tag = page.tags.get(_ORIENTATION)
        values = values[:, :, None] if page.axes == "YX" else np.moveaxis(values, page.axes.index("S"), 2)
        values = _full_scale(values, 2 ** int(page.bitspersample) - 1)
        if page.photometric == 0:
            values = values ^ values.dtype.type(np.iinfo(values.dtype).max)
        colors = 3 if page.photometric == 2 else 1
        if page.extrasamples and page.extrasamples[0] in (1, 2):
            alpha = values[:, :, colors : colors + 1]
            values = _over_white(values[:, :, :colors], alpha, premultiplied=page.extrasamples[0] == 1)
        return _upright(values[:, :, :colors], 1 if tag is None else int(tag.value))


def imagecodecs() -> Any:
    """The package, or a :class:`UserError` that says how to get it."""
    try:
        return importlib.import_module("imagecodecs")
    except ImportError as error:
        raise UserError(
            "16-bit colour PNG and compressed 16-bit TIFF pictures need the Python package `imagecodecs`",
            remedy="Install it where the training runs (`pip install imagecodecs`), or save the pictures uncompressed.",
        ) from error


def _refuse_stack(image: Image.Image, path: str) -> None:
    """Pages of another size are thumbnails and passed over; of the same size, which one counts is not ours to guess."""
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        size = image.size
        image.seek(1)
        same = image.size == size
        image.seek(0)
        if same:
            raise BrokenPicture(path, _stack(frames))


def _stack(pages: int) -> str:
    return f"is a stack of {pages} pages; save the page to use (or each one) as a picture of its own"


def _not_unsigned(kind: str) -> str:
    return f"holds {kind} values; save it with 8 or 16 bits without sign, scaled as you want the network to see it"


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (int(value),)


def _full_scale(values: Values, largest: int) -> Values:
    """Stretch 0…``largest`` to the whole range of the type, as 12-bit cameras need."""
    full = int(np.iinfo(values.dtype).max)
    if largest == full:
        return values
    return np.rint(np.minimum(values, largest) * (full / largest)).astype(values.dtype)


def _over_white(values: Values, alpha: Values, *, premultiplied: bool = False) -> Values:
    full = float(np.iinfo(values.dtype).max)
    share = alpha / full
    colour = values if premultiplied else values * share
    return np.rint(np.minimum(colour + full * (1 - share), full)).astype(values.dtype)


def _orientation(image: Image.Image) -> int:
    """EXIF's number from 1 to 8. Pillow has turned a TIFF itself by now, and then says 1."""
    with contextlib.suppress(SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1  # a damaged EXIF block does not make the picture unusable


def _upright(values: Values, orientation: int) -> Values:
    match orientation:
        case 2:
            return values[:, ::-1]
        case 3:
            return values[::-1, ::-1]
        case 4:
            return values[::-1]
        case 5:
            return values.swapaxes(0, 1)
        case 6:
            return np.rot90(values, -1)
        case 7:
            return values.swapaxes(0, 1)[::-1, ::-1]
        case 8:
            return np.rot90(values)
        case _:
            return values


def as_color(values: Values, color: Color) -> Values:
    """One channel for grey, three for rgb."""
    channels = values.shape[2]
    if color == "rgb":
        return np.repeat(values, 3, axis=2) if channels == 1 else values
    return values if channels == 1 else np.rint(values @ _LUMA).astype(values.dtype)[:, :, None]


class Window(NamedTuple):
    """Which part of the source (pixels, may be fractions) fills which part of the frame; the rest stays black."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom in the source."""
    top: int
    left: int
    rows: int
    columns: int


def window(height: int, width: int, to_height: int, to_width: int, resize: Resize) -> Window:
    """Geometry of ``resize`` from ``height``×``width`` to ``to_height``×``to_width``; centred, but for ``pad``."""
    across, down = width / to_width, height / to_height  # source pixels for each pixel of the frame
    if resize == "squash":
        return Window((0, 0, width, height), 0, 0, to_height, to_width)
    if resize == "pad":
        ratio = max(1.0, across, down)
        return Window((0, 0, width, height), 0, 0, max(1, round(height / ratio)), max(1, round(width / ratio)))
    ratio = {"crop": min(across, down), "fill": max(across, down), "half_crop": (across + down) / 2}[resize]
    used_width, used_height = min(width, to_width * ratio), min(height, to_height * ratio)
    columns, rows = max(1, round(used_width / ratio)), max(1, round(used_height / ratio))
    left, top = (width - used_width) / 2, (height - used_height) / 2
    box = (left, top, left + used_width, top + used_height)
    return Window(box, (to_height - rows) // 2, (to_width - columns) // 2, rows, columns)


def _resized(values: Values, window: Window, height: int, width: int) -> Values:
    size = (window.columns, window.rows)
    if window.box == (0, 0, *values.shape[1::-1]) and size == values.shape[1::-1]:
        inner = values
    elif values.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values))
        inner = np.asarray(image.resize(size, Image.Resampling.BILINEAR, window.box))
        inner = inner[:, :, None] if inner.ndim == 2 else inner
    else:  # Pillow resizes 16 bits in one channel as float only; float32 holds 16-bit integers exactly
        inner = np.empty((window.rows, window.columns, values.shape[2]), dtype=np.uint16)
        for channel in range(values.shape[2]):
            image = Image.fromarray(values[:, :, channel].astype(np.float32))
            smooth = np.asarray(image.resize(size, Image.Resampling.BILINEAR, window.box))
            inner[:, :, channel] = np.clip(np.rint(smooth), 0, 0xFFFF)
    if (window.rows, window.columns) == (height, width):
        return inner
    frame = np.zeros((height, width, values.shape[2]), dtype=values.dtype)
    frame[window.top : window.top + window.rows, window.left : window.left + window.columns] = inner
    return frame
