"""Pictures as whole JPEG or PNG files inside a packed dataset: which files are kept, and how others are made."""

from __future__ import annotations

import importlib
import io
from typing import Any

import numpy as np
from PIL import Image

from dlhpc.data.folders import show_path
from dlhpc.data.pictures import BrokenPicture, Color, Storage, Values, decode_content, imagecodecs
from dlhpc.errors import DataError

QUALITY = 95
"""Of JPEG files that are made here."""
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def encoded(content: bytes, values: Values, color: Color, storage: Storage, path: str) -> bytes:
    """The file to store for a picture: ``content`` itself where any decoder gives ``values`` for it, else a new file.

    ``values`` is H×W×C in the colour and depth of the dataset. ``png`` storage promises exact values, so that it keeps
    JPEG originals too: they are smaller, and nothing is lost. Raises :class:`DataError` for 16 bits in a JPEG.
    """
    deep = values.dtype == np.uint16
    if storage == "jpeg" and deep:
        raise DataError(
            "has 16 bits a value, and a JPEG keeps 8",
            where=show_path(path),
            remedy="Set `storage: png` (exact, smaller than raw) or `storage: raw` under `data:`.",
        )
    kind = _plain(content, color, deep)
    if kind == "jpeg" or (kind == "png" and storage == "png"):
        return content
    return _jpeg(values) if storage == "jpeg" else _png(values)


def stored_picture(content: bytes, channels: int, dtype: np.dtype[Any]) -> Values:
    """The picture H×W×``channels`` of a file that :func:`encoded` gave; :class:`BrokenPicture` if it is damaged."""
    values = _decode_jpeg(content, channels) if content.startswith(_JPEG) else decode_content(content, "")
    if values.shape[2] != channels or values.dtype != dtype:
        raise BrokenPicture("", f"has {values.shape[2]} channels of {values.dtype}")
    return values


def _plain(content: bytes, color: Color, deep: bool) -> str | None:
    """``jpeg`` or ``png`` if the file is upright, opaque, and of this colour and depth."""
    if not content.startswith((_JPEG, _PNG)):
        return None
    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
        if image.format == "PNG" and (content[24] == 16) != deep:
            return None
        modes = {"rgb": ("RGB",), "grey": ("I;16", "I") if deep else ("L",)}[color]
        if image.mode not in modes or "transparency" in image.info or getattr(image, "n_frames", 1) > 1:
            return None
        try:
            if image.getexif().get(0x0112, 1) != 1:
                return None
        except Exception:  # noqa: BLE001  # a damaged EXIF block; other decoders may stumble over it
            return None
        return str(image.format).lower()


def _jpeg(values: Values) -> bytes:
    return _saved(values, "JPEG", quality=QUALITY)


def _png(values: Values) -> bytes:
    if values.dtype == np.uint16 and values.shape[2] == 3:
        return bytes(imagecodecs().png_encode(np.ascontiguousarray(values)))
    return _saved(values, "PNG")


def _saved(values: Values, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values)).save(buffer, kind, **how)
    return buffer.getvalue()


def _decode_jpeg(content: bytes, channels: int) -> Values:
    """With libjpeg-turbo's exact transforms, as Pillow has them, so that both give the same values."""
    try:
        simplejpeg = importlib.import_module("simplejpeg")
    except ImportError:
        return decode_content(content, "")
    try:
        color = "GRAY" if channels == 1 else "RGB"
        values: Values = simplejpeg.decode_jpeg(content, color, fastdct=False, fastupsample=False)
        return values
    except ValueError as error:
        raise BrokenPicture("", f"cannot be decoded: {error}") from error
