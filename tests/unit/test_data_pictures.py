"""Reading one picture: every format and depth that people bring, and every way in which a file can be broken."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dlhpc.data.pictures import BrokenPicture, decode, is_grey, read_picture
from dlhpc.errors import StorageError, UserError

HEIGHT, WIDTH = 24, 36
rng = np.random.default_rng(0)
GREY8 = rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
RGB8 = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY16 = rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
RGB16 = rng.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
smooth_y, smooth_x = np.mgrid[0:HEIGHT, 0:WIDTH]
SMOOTH = np.stack([smooth_y * 10, smooth_x * 7, (smooth_y + smooth_x) * 4], axis=2).astype(np.uint8)


def png16(values: NDArray[np.uint16], color_type: int) -> bytes:
    """A 16-bit PNG, which Pillow cannot write: 2 RGB, 4 grey + alpha, 6 RGB + alpha."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


def saved(path: Path, values: NDArray[Any] | Image.Image, **options: Any) -> str:
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path, **options)
    return str(path)


def same(path: str, color: Any = "rgb", size: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[Any]:
    """The picture at its own size, H×W×C."""
    picture = read_picture(path, color, *size)
    assert picture.flags.c_contiguous
    return np.moveaxis(picture, 0, 2)


@pytest.mark.parametrize("kind", ["png", "bmp", "pgm", "tif"])
def test_grey_8_bit_is_exact(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / f"x.{kind}", GREY8)
    assert np.array_equal(same(path, "grey")[:, :, 0], GREY8)
    assert np.array_equal(same(path, "rgb"), np.stack([GREY8] * 3, axis=2))
    assert is_grey(decode(path))


@pytest.mark.parametrize("kind", ["png", "bmp", "ppm", "tif"])
def test_colour_8_bit_is_exact(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / f"x.{kind}", RGB8)
    assert np.array_equal(same(path), RGB8)
    assert not is_grey(decode(path))


def test_grey_made_from_colour_follows_bt601(tmp_path: Path) -> None:
    wanted = RGB8 @ [0.299, 0.587, 0.114]
    assert np.abs(same(saved(tmp_path / "x.png", RGB8), "grey")[:, :, 0] - wanted).max() <= 0.5


@pytest.mark.parametrize("kind", ["png", "pgm", "tif"])
def test_grey_16_bit_is_exact(tmp_path: Path, kind: str) -> None:
    picture = same(saved(tmp_path / f"x.{kind}", GREY16), "grey")
    assert picture.dtype == np.uint16
    assert np.array_equal(picture[:, :, 0], GREY16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour_16_bit_tiff_is_exact(tmp_path: Path, order: Any, compression: str | None, planar: str) -> None:
    if compression:
        pytest.importorskip("imagecodecs")
    values = RGB16 if planar == "contig" else np.moveaxis(RGB16, 2, 0)
    file = tmp_path / "x.tif"
    tifffile.imwrite(
        file, values, photometric="rgb", planarconfig=planar, compression=compression, byteorder=order, bigtiff=True
    )
    assert np.array_equal(same(str(file)), RGB16)


def test_colour_16_bit_png_keeps_its_bits(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    file = tmp_path / "x.png"
    file.write_bytes(png16(RGB16, 2))
    assert np.array_equal(same(str(file)), RGB16)
    file.write_bytes(png16(np.dstack([RGB16, np.full((HEIGHT, WIDTH), 65535, np.uint16)]), 6))
    assert np.array_equal(same(str(file)), RGB16)
    file.write_bytes(png16(np.dstack([GREY16, np.zeros_like(GREY16)]), 4))
    assert (same(str(file), "grey") == 65535).all(), "what is transparent lies over white"


def test_a_missing_decoder_is_not_the_pictures_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    (tmp_path / "x.png").write_bytes(png16(RGB16, 2))
    with pytest.raises(UserError, match="need the Python package `imagecodecs`") as caught:
        read_picture(str(tmp_path / "x.png"), "rgb", 16, 16)
    assert not isinstance(caught.value, BrokenPicture), "or it would be skipped"


def test_16_bit_netpbm_is_stretched_to_full_scale(tmp_path: Path) -> None:
    file = tmp_path / "x.ppm"
    file.write_bytes(b"P6 # a comment\n%d %d\n4095\n" % (WIDTH, HEIGHT) + (RGB16 >> 4).astype(">u2").tobytes())
    assert np.array_equal(same(str(file)), np.rint((RGB16 >> 4) * (65535 / 4095)).astype(np.uint16))
    file.with_suffix(".pgm").write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + GREY16.astype(">u2").tobytes())
    assert np.array_equal(same(str(file.with_suffix(".pgm")), "grey")[:, :, 0], GREY16)


def test_white_is_zero_tiff_is_inverted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", GREY16, photometric="miniswhite")
    assert np.array_equal(same(str(tmp_path / "x.tif"), "grey")[:, :, 0], 65535 - GREY16)


def test_palette_bilevel_and_transparent_pictures(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB8).quantize(16)
    assert np.array_equal(same(saved(tmp_path / "p.png", palette)), np.asarray(palette.convert("RGB")))
    dots = Image.fromarray(GREY8 > 128)
    assert np.array_equal(same(saved(tmp_path / "1.png", dots), "grey")[:, :, 0], (GREY8 > 128) * 255)
    clear = np.dstack([RGB8, np.zeros((HEIGHT, WIDTH), np.uint8)])
    clear[0, 0, 3] = 255
    shown = same(saved(tmp_path / "a.png", clear))
    assert np.array_equal(shown[0, 0], RGB8[0, 0])
    assert (shown[1:] == 255).all()


def test_jpeg_grey_colour_and_cmyk(tmp_path: Path) -> None:
    for mode in ("RGB", "CMYK"):
        path = saved(tmp_path / f"{mode}.jpg", Image.fromarray(SMOOTH).convert(mode), quality=95, subsampling=0)
        assert np.abs(same(path).astype(int) - SMOOTH).mean() < 6
    path = saved(tmp_path / "grey.jpg", Image.fromarray(SMOOTH).convert("L"))
    assert is_grey(decode(path))
    path = saved(tmp_path / "greyrgb.jpg", Image.fromarray(SMOOTH).convert("L").convert("RGB"))
    assert is_grey(decode(path)), "three equal channels are grey too"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_orientation_is_honoured(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"x.{kind}", SMOOTH, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode(path), upright)
    file = tmp_path / "deep.tif"
    tifffile.imwrite(file, GREY16, extratags=[(274, 3, 1, orientation, True)])
    plain = Image.fromarray(GREY16)
    plain.getexif()[0x0112] = orientation
    assert np.array_equal(decode(str(file))[:, :, 0], np.asarray(ImageOps.exif_transpose(plain)))


@pytest.mark.parametrize("values", [GREY8, GREY16])
@pytest.mark.parametrize("resize", ["squash", "crop", "fill", "half_crop"])
def test_resizing_keeps_the_depth_and_a_flat_picture_flat(tmp_path: Path, values: Any, resize: Any) -> None:
    flat = np.full_like(values, 200)
    picture = read_picture(saved(tmp_path / "x.png", flat), "grey", 17, 16, resize)
    assert picture.shape == (1, 17, 16)
    assert picture.dtype == values.dtype
    assert set(np.unique(picture)) <= {0, 200}


def test_8_and_16_bits_are_resized_alike(tmp_path: Path) -> None:
    narrow = read_picture(saved(tmp_path / "a.png", GREY8), "grey", 10, 11).astype(float)
    wide = read_picture(saved(tmp_path / "b.png", GREY8.astype(np.uint16) * 257), "grey", 10, 11) / 257
    assert np.abs(narrow - wide).max() <= 1


def bars(picture: NDArray[Any]) -> tuple[int, int]:
    """Rows and columns that hold picture, not bars."""
    return int((picture[0].max(axis=1) > 0).sum()), int((picture[0].max(axis=0) > 0).sum())


def test_the_four_ways_to_resize_a_wide_picture(tmp_path: Path) -> None:
    # 20 high and 40 wide, the outer quarters left and right dark grey: into 10×10 the ratios are 4 and 2.
    values = np.full((20, 40), 200, np.uint8)
    values[:, :10] = values[:, 30:] = 50
    path = saved(tmp_path / "x.png", values)
    squash, crop, fill, half = (
        read_picture(path, "grey", 10, 10, resize) for resize in ("squash", "crop", "fill", "half_crop")
    )
    assert bars(squash) == (10, 10)
    assert squash[0, 5, 0] == 50
    assert (crop[0, :, 1:-1] == 200).all(), "the outer quarters are cut off"
    assert crop.min() > 150, "and smoothing lets in only a little of them"
    assert bars(fill) == (5, 10)
    assert fill[0, 5, 0] == 50
    assert (fill[0, :2] == 0).all()
    assert (fill[0, -3:] == 0).all()
    # The mean ratio is 3: 20/3 → 7 rows, and 30 of the 40 columns are used, 5 of them dark on each side.
    assert bars(half) == (7, 10)
    assert half[0, 5].tolist()[:3] == [50, 75, 200] or half[0, 5, 0] < 80 < half[0, 5, 3]


def reason(path: str | Path) -> str:
    with pytest.raises(BrokenPicture) as caught:
        read_picture(str(path), "rgb", 16, 16)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "ppm", "tif"])
def test_empty_and_truncated_files_are_noticed(tmp_path: Path, kind: str) -> None:
    path = Path(saved(tmp_path / f"x.{kind}", RGB8))
    content = path.read_bytes()
    path.write_bytes(b"")
    assert reason(path) == "is empty"
    path.write_bytes(content[: len(content) // 2])
    assert reason(path) == "is truncated"
    path.write_bytes(content[: len(content) - 40])
    assert reason(path) == "is truncated"
    path.write_bytes(content[:3])
    assert "is not a PNG" in reason(path) or "is truncated" in reason(path)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncated_16_bit_pictures_are_noticed(tmp_path: Path, part: float) -> None:
    contents = {"deep.png": png16(RGB16, 2), "x.ppm": b"P6 36 24 65535\n" + RGB16.astype(">u2").tobytes()}
    for name in ("grey.tif", "rgb.tif"):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, GREY16 if name == "grey.tif" else RGB16, photometric=None)
        contents[name] = buffer.getvalue()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content[: int(len(content) * part)])
        assert reason(tmp_path / name)


def test_what_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("<html>404 Not Found</html>")
    assert "is not a PNG" in reason(path)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert "is not a PNG" in reason(path), "PostScript is never run"
    assert reason(tmp_path / "gone.png") == "is not there any more"
    (tmp_path / "folder.png").mkdir()
    assert reason(tmp_path / "folder.png") == "is a folder"


def test_damaged_bytes_in_a_png_are_noticed(tmp_path: Path) -> None:
    path = Path(saved(tmp_path / "x.png", RGB8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "cannot be decoded" in reason(path)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    content = bytearray(png16(RGB16[:1, :1], 2))
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "bomb.png").write_bytes(content)
    assert "million pixels" in reason(tmp_path / "bomb.png")


def test_float_signed_and_stacked_tiff_say_what_to_do(tmp_path: Path) -> None:
    for values in (GREY16.astype(np.float32), GREY16.astype(np.int32), (GREY16 >> 1).astype(np.int16)):
        tifffile.imwrite(tmp_path / "x.tif", values)
        assert f"holds {values.dtype} values; save it with 8 or 16 bits" in reason(tmp_path / "x.tif")
    for values8 in (GREY16, GREY8):
        tifffile.imwrite(tmp_path / "s.tif", np.stack([values8] * 5), photometric="minisblack")
        assert "is a stack of 5 pages" in reason(tmp_path / "s.tif")


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged tags
def test_noise_never_crashes(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    whole = [Path(saved(tmp_path / f"x.{kind}", RGB8)).read_bytes() for kind in ("png", "jpg", "bmp", "ppm", "tif")]
    whole.append(png16(RGB16, 2))
    path = tmp_path / "noise"
    for content in whole:
        for _ in range(40):
            damaged = np.frombuffer(content, np.uint8).copy()
            places = noise.integers(0, min(len(damaged), 200), 4)
            damaged[places] = noise.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(BrokenPicture):
                assert read_picture(str(path), "rgb", 16, 16).shape == (3, 16, 16)


def test_a_failing_file_system_is_not_the_pictures_fault(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(StorageError, match="cannot read"):
        read_picture(str(tmp_path / "loop.png"), "rgb", 16, 16)
