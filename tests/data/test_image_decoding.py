"""Pictures as a person sees them: upright, on white, right in every mode; or refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from zoo.data import Images
from zoo.data.image_decoding import TURNS, decode_image, open_image, upright_size
from zoo.errors import ZooError


def decode(picture: Image.Image | bytes, kind: str = "PNG", mode: str = "RGB", **saved: Any) -> np.ndarray:
    """A picture after it was saved as such a file."""
    if isinstance(picture, bytes):
        stored = picture
    else:
        file = io.BytesIO()
        picture.save(file, kind, **saved)
        stored = file.getvalue()
    with open_image({"bytes": stored, "path": None}, "it") as opened:
        size = upright_size(opened)
        found = decode_image(opened, mode, "it")
    assert (found.mode, found.size) == (mode, size)
    return np.asarray(found)


@pytest.fixture(scope="module")
def colours() -> Image.Image:
    """No row, column or channel like another."""
    return Image.fromarray((np.arange(6 * 4 * 3).reshape(4, 6, 3) * 3).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_upright(kind: str, orientation: int) -> None:
    seen = np.zeros((16, 32), np.uint8)
    seen[:8, :8], seen[:8, 24:], seen[8:, :8] = 255, 160, 80
    upright = Image.fromarray(seen)
    back = {**TURNS, 6: TURNS[8], 8: TURNS[6]}.get(orientation)
    stored = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(stored, kind, "L", exif=exif)
    assert found.shape == seen.shape
    assert np.abs(found.astype(int) - seen).max() <= (12 if kind in ("JPEG", "WEBP") else 0)


def test_damaged_notes_of_a_camera_are_no_damaged_picture(colours: Image.Image) -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        file = io.BytesIO()
        colours.save(file, "PNG", exif=exif)
        assert np.array_equal(decode(file.getvalue()), np.asarray(colours))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_what_is_transparent_is_white(kind: str) -> None:
    stored = Image.new("RGBA", (3, 1), (10, 20, 30, 255))
    stored.putpixel((1, 0), (200, 0, 0, 0))
    stored.putpixel((2, 0), (0, 0, 0, 127))
    found = decode(stored, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert found[0].tolist() == [[10, 20, 30], [255, 255, 255], [128, 128, 128]]


def test_palettes_and_grey_with_transparency() -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for place in range(3):
        palette.putpixel((place, 0), place)
    red, green, blue, white = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
    assert decode(palette)[0].tolist() == [red, green, blue]
    assert decode(palette, "GIF")[0].tolist() == [red, green, blue]
    assert decode(palette, transparency=1)[0].tolist() == [red, white, blue]
    assert decode(palette, transparency=bytes([255, 255, 0]))[0].tolist() == [red, green, white]
    assert decode(palette, "GIF", transparency=1)[0].tolist() == [red, white, blue]
    with_alpha = palette.convert("PA")
    assert decode(with_alpha, "TIFF")[0].tolist() == [red, green, blue]
    grey = Image.fromarray(np.array([[0, 50, 100]], np.uint8))
    assert decode(grey, "PNG", "L", transparency=50).tolist() == [[0, 255, 100]]
    both = Image.merge("LA", (grey, Image.fromarray(np.array([[255, 0, 255]], np.uint8))))
    assert decode(both, "PNG", "L").tolist() == [[0, 255, 100]]
    assert decode(Image.fromarray(np.array([[True, False]])), "PNG", "L").tolist() == [[255, 0]]
    colour = Image.new("RGB", (1, 1), (1, 2, 3))
    assert decode(colour, transparency=(1, 2, 3)).tolist() == [[white]]


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16", "PPM"), ("I", "PPM")]
)
def test_sixteen_bits_keep_their_range(mode: str, kind: str) -> None:
    values = np.array([[0, 256, 257, 513, 25700, 65535]])
    stored = Image.fromarray(values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]))
    assert stored.mode == mode
    assert decode(stored, kind, "L").tolist() == [[0, 0, 1, 1, 100, 255]]
    if kind == "PNG":
        assert decode(stored, kind, "L", transparency=25700).tolist() == [[0, 0, 1, 1, 255, 255]]


def test_sixteen_bits_of_tiff_may_be_inverted(colours: Image.Image) -> None:
    values = np.array([[0, 25700, 65535]], "<u2")
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    entry = b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00"  # photometric interpretation, a short, one of it: black is 0
    assert file.getvalue().count(entry) == 1
    inverted = file.getvalue().replace(entry, entry[:-2] + b"\x00\x00")
    assert decode(file.getvalue(), mode="L").tolist() == [[0, 100, 255]]
    assert decode(inverted, mode="L").tolist() == [[255, 155, 0]]


@pytest.mark.parametrize(("mode", "near"), [("CMYK", 1), ("YCbCr", 3), ("RGBX", 0), ("LAB", 4)])
def test_other_spaces_of_colour(colours: Image.Image, mode: str, near: int) -> None:
    if mode == "LAB":
        screen, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        stored = ImageCms.profileToProfile(colours, screen, lab, outputMode="LAB")
        assert stored is not None
    else:
        stored = colours.convert(mode)
    assert stored.mode == mode
    assert np.abs(decode(stored, "TIFF").astype(int) - np.asarray(colours)).max() <= near


@pytest.mark.parametrize(("mode", "kind", "words"), [("I", "TIFF", "integers of 32 bits"), ("F", "TIFF", "floating")])
def test_what_has_no_white_is_refused(mode: str, kind: str, words: str) -> None:
    with pytest.raises(ZooError, match=f"image it holds {words}"):
        decode(Image.new(mode, (2, 2)), kind)


def test_colour_is_not_lost_in_silence(colours: Image.Image) -> None:
    with pytest.raises(ZooError, match="image it is in colour"):
        decode(colours, mode="L")
    grey = Image.new("RGB", (2, 1), (7, 7, 7))
    assert decode(grey, mode="L").tolist() == [[7, 7]]


def test_one_that_is_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("1", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ZooError, match=r"bomb\.png is too large to be read: Image size \(90000 pixels\)"):  # noqa: SIM117
        with open_image({"bytes": None, "path": str(tmp_path / "bomb.png")}):
            pass


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO", "JPEG2000"])
def test_damaged_pictures_are_read_or_named(kind: str) -> None:
    file = io.BytesIO()
    chance = np.random.default_rng(0)
    Image.fromarray(chance.integers(0, 255, (24, 24, 3), np.uint8)).save(file, kind)
    whole = file.getvalue()
    named = 0
    for case in range(60):
        place = int(chance.integers(2, len(whole)))
        bad = whole[:place] if case % 2 else whole[:place] + chance.bytes(4) + whole[place + 4 :]
        try:
            with open_image({"bytes": bad, "path": None}, "it") as opened:
                upright_size(opened)
                decode_image(opened, "RGB", "it")
        except ZooError as error:
            named += str(error).startswith("The image it ")
        else:
            named += 1
    assert named == 60


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named_by_every_loader(tmp_path: Path, workers: int) -> None:
    """Without a worker's traceback for a message."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(4):
            Image.effect_noise((32, 32), 90).save(tmp_path / label / f"{number}.png")
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
    data = Images(files=str(tmp_path), workers=workers, batch=1, valid=0.0, test=0.0, augment=False)
    data.setup()
    with pytest.raises(ZooError) as told:
        list(data.train_dataloader())
    assert str(told.value).startswith(f"The image {tmp_path}/a/1.png cannot be read: ")
    assert "\n" not in str(told.value)
