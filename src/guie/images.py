"""Bytes of a picture to RGB pixels by one set of rules, the same in training, evaluation and serving.

The rules: EXIF orientation is applied; alpha is composited over a stated background; 16-bit samples keep
their high byte; of an animation frame 0 counts; colour profiles are ignored. What is not a whole picture
raises `BadImage`. The header is checked before any pixel is decoded, so that a small file cannot ask for
all memory. Corruption in the middle of a JPEG stream is noticed by no decoder, and neither by this one.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

WHITE: Colour = (255, 255, 255)
# Half of what Pillow refuses by itself: 89 megapixels. A higher limit than Pillow's has no effect.
MAX_PIXELS = 178_956_970 // 2

# Formats with a decoder that needs no outside program (EPS would start Ghostscript).
_PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION_TAG = 0x0112
_SWAPS_SIDES = (5, 6, 7, 8)
# libjpeg-turbo has vector code for these divisors only; others take longer than a full decode.
_DCT_DIVISORS = (8, 4, 2)


class BadImage(Exception):
    """These bytes are not one whole picture that the rules accept; the message is the reason, one line."""


class Header(NamedTuple):
    """Size in pixels as shown (after `orientation`, EXIF 1..8, is applied) and the format's name."""

    width: int
    height: int
    format: str
    orientation: int


class Region(NamedTuple):
    """Pixels (H,W,3) uint8 of which `box` (x, y, width, height; fractions allowed) is the wanted part."""

    image: np.ndarray
    box: Box


class _Jpeg(NamedTuple):
    """What the segments before the first scan say; `width` and `height` as stored."""

    width: int
    height: int
    components: int
    orientation: int
    height_at: int  # offset of the two bytes that hold the height
    sequential: bool  # baseline or extended Huffman, all components in one scan


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Return size, format and orientation without decoding pixels.

    Raises BadImage for empty data, no picture, or a size above `max_pixels`.
    """
    if not data:
        raise BadImage("empty: zero bytes")
    if data[:2] == b"\xff\xd8":
        jpeg = _read_jpeg(data)
        return _checked(jpeg.width, jpeg.height, "JPEG", jpeg.orientation, max_pixels)
    if data.startswith(_PNG) and len(data) >= 24:  # before Pillow warns about the size by itself
        width, height = struct.unpack_from(">II", data, 16)
        _checked(width, height, "PNG", 1, max_pixels)
    with _pillow_picture(data) as picture:
        # Pillow turns a TIFF itself and states the size as shown.
        orientation = 1 if picture.format == "TIFF" else _orientation(_exif(picture, data))
        return _checked(*picture.size, str(picture.format), orientation, max_pixels)


def decode(
    data: bytes, *, background: Colour = WHITE, max_pixels: int = MAX_PIXELS, box: Box | None = None
) -> np.ndarray:
    """Return the picture as (H,W,3) uint8 RGB, upright; alpha composited over `background`.

    Of `box` (x, y, width, height), to whole pixels, no more than that part. Raises BadImage with the reason
    (see the module's rules), also for a box that lies outside.
    """
    header = read_header(data, max_pixels=max_pixels)
    if header.format == "JPEG":
        pixels = _decode_jpeg(data, background)
    else:
        pixels = _decode_pillow(data, background)
    upright = _upright(pixels, header.orientation)
    return upright if box is None else _cut(upright, box)


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
    left, top = (max(0, round(side)) for side in box[:2])
    part = image[top : max(0, round(box[1] + box[3])), left : max(0, round(box[0] + box[2]))]
    if not part.size:
        raise BadImage(f"box {box} lies outside of {image.shape[1]} x {image.shape[0]} px")
    return np.ascontiguousarray(part)


def decode_region(
    data: bytes,
    box: Box,
    size_px: tuple[int, int],
    *,
    oversample: float = 1.5,
    background: Colour = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> Region:
    """Decode no more than cutting `box` and resizing it to `size_px` (height, width) needs.

    `box` (x, y, width, height) is in pixels of the upright picture, as `read_header` states its size. A
    JPEG is decoded at 1/2, 1/4 or 1/8 when the box then still has `oversample` times the wanted size, and
    its rows below the box are left out. The result's box is in pixels of the result's image.
    Raises BadImage as `decode`.
    """
    header = read_header(data, max_pixels=max_pixels)
    if header.format != "JPEG":
        return Region(decode(data, background=background, max_pixels=max_pixels), box)
    divisor = _divisor(box, size_px, oversample)
    rows = box[1] + box[3] if header.orientation == 1 else None
    try:
        pixels = _decode_jpeg_part(data, _read_jpeg(data), divisor, rows)
    except ValueError:  # the full rules judge whether it is odd or bad
        return Region(decode(data, background=background, max_pixels=max_pixels), box)
    shown = (header.width, header.height)
    pixels = _upright(pixels, header.orientation)
    return Region(pixels, _scaled_box(box, divisor, shown, header.orientation))


def _checked(width: int, height: int, name: str, orientation: int, max_pixels: int) -> Header:
    if width < 1 or height < 1:
        raise BadImage(f"header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise BadImage(f"header says {width} x {height} pixels; at most {max_pixels} are accepted")
    if orientation in _SWAPS_SIDES:
        width, height = height, width
    return Header(width, height, name, orientation)


# --- JPEG ---------------------------------------------------------------------------------------------


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, stop) of each JPEG segment's content up to and with the first scan's header."""
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if data[at] != 0xFF:
            raise BadImage("JPEG: no marker where one must be")
        marker = data[at + 1]
        stop = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at + 4, stop
        if marker == 0xDA:
            return
        at = stop


def _read_jpeg(data: bytes) -> _Jpeg:
    frame, exif, marker = 0, b"", 0
    try:
        for marker, start, stop in _segments(data):
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                frame, kind = start, marker
            elif marker == 0xE1 and not exif and data[start : start + 6] == b"Exif\0\0":
                exif = data[start:stop]
        height, width, components = struct.unpack_from(">HHB", data, frame + 1)
        one_scan = data[start] == components
    except (IndexError, struct.error):
        raise BadImage("truncated: the JPEG header is cut off") from None
    if not frame:
        raise BadImage("JPEG without a frame header")
    sequential = one_scan and kind in (0xC0, 0xC1)
    return _Jpeg(width, height, components, _orientation(exif), frame + 1, sequential)


def _decode_jpeg(data: bytes, background: Colour) -> np.ndarray:
    if _read_jpeg(data).components <= 3:
        try:
            return simplejpeg.decode_jpeg(data)
        except ValueError as error:
            if "premature" in str(error).lower():
                raise BadImage(f"truncated: {error}") from None
    # Odd, not cut off: CMYK, stray bytes between segments, an unusual colour space. Pillow is the judge.
    return _decode_pillow(data, background)


def _decode_jpeg_part(data: bytes, jpeg: _Jpeg, divisor: int, rows: float | None) -> np.ndarray:
    """Decode at 1/`divisor`, at least the first `rows` stored rows (None: all); ValueError if unusual."""
    if rows is None or not _may_stop_early(data, jpeg, rows):
        return simplejpeg.decode_jpeg(data, min_height=-(-jpeg.height // divisor))
    shorter, height = _with_fewer_rows(data, jpeg, rows)
    # Not strict: that the scan goes on behind the last row is what the strict decoder objects to.
    return simplejpeg.decode_jpeg(shorter, min_height=-(-height // divisor), strict=False)


def _may_stop_early(data: bytes, jpeg: _Jpeg, rows: float) -> bool:
    """Tell whether a header with fewer rows is safe and worth it.

    Only an end marker shows that the rest, which is then not decoded, is there; progressive pictures hold
    all rows in each scan.
    """
    return jpeg.sequential and rows < jpeg.height - 48 and data.rstrip(b"\0").endswith(b"\xff\xd9")


def _with_fewer_rows(data: bytes, jpeg: _Jpeg, rows: float) -> tuple[bytes, int]:
    """Return the data with a header of whole blocks of rows, and that height.

    One block of rows more than asked, because the last row's chroma would lack its neighbour.
    """
    height = min((int(rows) // 32 + 2) * 32, jpeg.height)
    at = jpeg.height_at
    return b"".join((data[:at], height.to_bytes(2, "big"), data[at + 2 :])), height


def _divisor(box: Box, size_px: tuple[int, int], oversample: float) -> int:
    ratio = min(box[2] / size_px[1], box[3] / size_px[0]) / oversample
    return next((divisor for divisor in _DCT_DIVISORS if ratio >= divisor), 1)


def _scaled_box(box: Box, divisor: int, shown: tuple[int, int], orientation: int) -> Box:
    """Return `box` in pixels of the picture decoded at 1/`divisor`.

    A size that `divisor` does not divide is rounded up at the stored picture's right and lower edge, so a
    turned or mirrored picture starts a fraction of a pixel further in.
    """
    x, y, width, height = (value / divisor for value in box)
    left = -shown[0] % divisor / divisor if orientation in (2, 3, 6, 7) else 0.0
    top = -shown[1] % divisor / divisor if orientation in (3, 4, 7, 8) else 0.0
    return (x + left, y + top, width, height)


# --- every other format -------------------------------------------------------------------------------


@contextmanager
def _pillow_picture(data: bytes) -> Iterator[Image.Image]:
    """Open with Pillow; whatever goes wrong inside, in opening or decoding, is a BadImage.

    Warnings are left alone: filtering them would change the state of all threads.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as picture:
            yield picture
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(f"not a picture: begins with {data[:12]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"too many pixels: {error}") from None
    except Exception as error:  # on hostile bytes decoders raise nearly everything
        reason = " ".join(str(error).split())
        raise BadImage(f"{type(error).__name__}: {reason}") from None


def _decode_pillow(data: bytes, background: Colour) -> np.ndarray:
    with _pillow_picture(data) as picture:
        picture.load()
        if picture.mode.startswith("I;16") or picture.mode == "I":
            return _from_16_bit(picture, background)
        if picture.mode == "F":
            raise BadImage("floating-point pixels have no agreed range")
        if not picture.has_transparency_data:
            return np.array(picture.convert("RGB"))
        flat = Image.new("RGBA", picture.size, (*background, 255))
        return np.array(Image.alpha_composite(flat, picture.convert("RGBA")).convert("RGB"))


def _from_16_bit(picture: Image.Image, background: Colour) -> np.ndarray:
    """Keep the high byte, as Pillow does for 16-bit colour; a transparent grey value becomes background."""
    grey = np.asarray(picture)
    if grey.min() < 0 or grey.max() > 65_535:
        raise BadImage(f"integer pixels {grey.min()}..{grey.max()}; 0..65535 are accepted")
    pixels = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        pixels[grey == transparent] = background
    return pixels


# --- orientation --------------------------------------------------------------------------------------


def _exif(picture: Image.Image, data: bytes) -> bytes:
    if picture.format == "PNG":  # Pillow would decode all pixels to look for a chunk behind them
        return _png_exif(data)
    exif = picture.info.get("exif", b"")
    return exif if isinstance(exif, bytes) else b""


def _png_exif(data: bytes) -> bytes:
    at = 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += 12 + length
    return b""


def _orientation(exif: bytes) -> int:
    """Return EXIF orientation 1..8; 1 where there is none or it cannot be read."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(_ORIENTATION_TAG, 1)
    except Exception:  # broken metadata does not make the picture bad
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored (H,W,3) pixels as EXIF `orientation` asks; C-contiguous."""
    if orientation in _SWAPS_SIDES:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
