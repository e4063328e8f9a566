"""Stored pictures as a person sees them: turned upright, on white, in grey or colour of 8 bits; or refused by name.

Pillow's own `convert` is not enough: it does not look at the orientation that cameras note, uncovers what transparent
pixels hide, cuts 16 bits off at 255, and does not know CIELAB. What has no defined white (32-bit integers and floating
point numbers) is refused, since it would be a guess. Colour profiles are not applied: pictures are taken for sRGB.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from zoo.errors import ZooError

ORIENTATION = 0x0112
"""EXIF's number of the orientation."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
GREY = ("1", "L", "LA", "La", "I", *SIXTEEN)
PHOTOMETRIC, BITS = 262, 258
"""TIFF's numbers of the meaning of 0 and of the bits of a sample."""


@contextmanager
def open_image(stored: dict[str, Any], name: str = "") -> Iterator[Image.Image]:
    """A stored picture, of which the header has been read.

    Args:
        stored: Its `path`, or its `bytes`.
        name: What messages call it, where it has no path.

    Raises ZooError, also for whatever Pillow raises within the context.
    """
    name = stored.get("path") or name
    try:
        with Image.open(io.BytesIO(stored["bytes"]) if stored.get("bytes") else stored["path"]) as picture:
            yield picture
    except (ZooError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        reason = str(error).partition(", could")[0]
        raise ZooError(
            f"The image {name} is too large to be read: {reason}.   Make it smaller, or leave it out"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever comes of damaged bytes
        raise ZooError(f"The image {name} cannot be read: {str(error) or type(error).__name__}.") from error


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of a picture once it is upright, known from its header."""
    width, height = picture.size
    # Pillow itself turns TIFF, and gives the size that it has then.
    turned = picture.format != "TIFF" and _orientation(picture) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def decode_image(picture: Image.Image, mode: str, name: str = "") -> Image.Image:
    """An opened picture as a person sees it.

    Args:
        picture: The picture.
        mode: 'L' for grey or 'RGB' for colour.
        name: What messages call it.

    Raises ZooError where its numbers have no defined meaning, or colour would be lost in grey.
    """
    picture.load()
    turn = TURNS.get(_orientation(picture))
    found = _to_eight_bits(picture, name)
    if found.mode != mode:
        if mode == "L" and found.mode == "RGB":
            red, green, blue = np.moveaxis(np.asarray(found), -1, 0)
            if not (np.array_equal(red, green) and np.array_equal(green, blue)):
                raise ZooError(
                    f"The image {name} is in colour, and those that were looked at first are grey.   Convert it to "
                    "grey, or the others to colour"
                )
        found = found.convert(mode)
    return found.transpose(turn) if turn is not None else found


def _orientation(picture: Image.Image) -> int:
    try:
        found = picture.getexif().get(ORIENTATION, 1)
        return found if isinstance(found, int) else 1
    except Exception:  # damaged notes of a camera beside a whole picture
        return 1


def _to_eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """'L' or 'RGB', whatever the picture's mode."""
    mode = picture.mode
    if mode in SIXTEEN or (mode == "I" and picture.format in ("PNG", "PPM")):
        return _from_sixteen_bits(picture)
    if mode in ("I", "F"):
        kind = "integers of 32 bits" if mode == "I" else "floating point numbers"
        raise ZooError(
            f"The image {name} holds {kind}, of which nobody says which is white.   Convert it to 8 or 16 bits"
        )
    if mode == "LAB":
        return _from_lab(picture)
    if mode in ("PA", "RGBA", "RGBa", "LA", "La") or picture.has_transparency_data:
        straight = {"RGBa": "RGBA", "La": "LA"}.get(mode)
        picture = picture.convert(straight) if straight else picture
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        seen = Image.alpha_composite(white, picture)
        return seen.convert("L" if mode in GREY else "RGB")
    return picture.convert("L" if mode in ("1", "L") else "RGB")


def _from_sixteen_bits(picture: Image.Image) -> Image.Image:
    white, inverted = 65535, False
    if picture.format == "TIFF":
        tags: Any = getattr(picture, "tag_v2", {})
        bits = tags.get(BITS, (16,))
        white = 2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1
        inverted = tags.get(PHOTOMETRIC) == 0
    values = np.asarray(picture).astype(np.int64)
    seen = values.clip(0, white) * 255 // white
    seen = 255 - seen if inverted else seen
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        seen[values == transparent] = 255
    return Image.fromarray(seen.astype(np.uint8))


def _from_lab(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, screen = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    seen = ImageCms.profileToProfile(picture, lab, screen, outputMode="RGB")
    assert seen is not None
    return seen
