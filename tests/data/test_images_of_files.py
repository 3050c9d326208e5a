"""Images in files: their formats and units, and what is refused with the file's name."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raycrt import data
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec, Spec

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], 2)
PALETTE = Image.fromarray(COLOUR).convert("P", palette=Image.Palette.ADAPTIVE)


def _opaque(alpha: int = 255) -> np.ndarray:
    return np.dstack([COLOUR, np.full(GREY.shape, alpha, np.uint8)])


def _filled(folder: Path, image: Image.Image | np.ndarray, suffix: str = "png") -> DataSpec:
    """A folder with ten copies of `image` in each of two classes."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    for name in ("ape", "bat"):
        (folder / name).mkdir()
        for row in range(10):
            image.save(folder / name / f"{row}.{suffix}")
    return DataSpec(source="folder", path=folder)


def _deep_colour(file: Path, colour: np.ndarray) -> None:
    """Write a PNG with 16 bits for each colour, which PIL cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in colour)
    head = struct.pack(">IIBBBBB", colour.shape[1], colour.shape[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


GOOD = {
    "grey": (GREY, GREY[None] / 255),
    "colour": (COLOUR, np.moveaxis(COLOUR, 2, 0) / 255),
    "16 bits": (GREY.astype(np.uint16) * 257 + 3, (GREY[None] * 257.0 + 3) / 65535),
    "black and white": (Image.fromarray(GREY > 100), (GREY[None] > 100) * 1.0),
    "opaque": (_opaque(), np.moveaxis(COLOUR, 2, 0) / 255),
    "opaque grey": (Image.fromarray(GREY).convert("LA"), GREY[None] / 255),
    "palette": (PALETTE, np.moveaxis(COLOUR, 2, 0) / 255),
}


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_scaled_by_their_bits(name, tmp_path):
    image, expected = GOOD[name]
    found = data.load(_filled(tmp_path, image)).test.images
    assert found.shape == (4, *expected.shape)
    assert torch.equal(found[0], torch.from_numpy(expected.astype(np.float32)))


def test_floating_point_pixels_are_left_as_they_are(tmp_path):
    numbers = GREY.astype(np.float32) * 3 - 7.5
    found = data.load(_filled(tmp_path, numbers, "tiff")).test.images
    assert torch.equal(found[0, 0], torch.from_numpy(numbers))


def test_all_images_are_resized_to_one_size(tmp_path):
    spec = _filled(tmp_path, np.full((4, 5), 51, np.uint8))
    Image.fromarray(np.full((9, 3), 51, np.uint8)).save(tmp_path / "ape" / "wide.png")
    found = data.load(spec.model_copy(update={"resize": (6, 6)})).fit.images
    assert found.shape[1:] == (1, 6, 6)
    assert torch.allclose(found, torch.tensor(0.2))


def _truncate(folder: Path) -> None:
    file = folder / "bat" / "3.png"
    file.write_bytes(file.read_bytes()[:50])


BAD = {
    "truncated": (_truncate, r"bat/3.png must be a whole image that can be read: "),
    "no image": (
        lambda folder: (folder / "ape" / "0.png").write_text("<html>"),
        r"ape/0.png must be an image, but its format is not known",
    ),
    "empty file": (
        lambda folder: (folder / "ape" / "0.png").write_bytes(b""),
        r"ape/0.png must be an image",
    ),
    "another size": (
        lambda folder: Image.fromarray(COLOUR[:3]).save(folder / "bat" / "5.png"),
        r"all inputs must have one shape, but \S+bat/5.png has \(3, 3, 5\) and \S+ape/0.png has "
        r"\(3, 4, 5\); data.resize",
    ),
    "grey among colours": (
        lambda folder: Image.fromarray(GREY).save(folder / "bat" / "5.png"),
        r"bat/5.png has \(1, 4, 5\) and .*ape/0.png has \(3, 4, 5\); grey or colour, not both",
    ),
    "transparent": (
        lambda folder: Image.fromarray(_opaque(254)).save(folder / "bat" / "5.png"),
        r"an image must be opaque, but \S+bat/5.png has transparent pixels",
    ),
    "transparent palette": (
        lambda folder: PALETTE.save(
            folder / "bat" / "5.png", transparency=PALETTE.getpixel((0, 0))
        ),
        r"an image must be opaque, but \S+bat/5.png",
    ),
    "16 bits for each colour": (
        lambda folder: _deep_colour(folder / "ape" / "2.png", COLOUR.astype(np.uint16) * 257),
        r"8 bits for each colour.*but \S+ape/2.png is 16-bit RGB",
    ),
    "a folder is empty": (
        lambda folder: (folder / "cow").mkdir(),
        r"each class must have rows in the train split, but class 'cow' has none",
    ),
    "a validation without training": (
        lambda folder: shutil.copytree(folder / "ape", folder / "val" / "ape"),
        r"a train split must be given, but \S+ has val",
    ),
    "a split twice": (
        lambda folder: [(folder / name).mkdir() for name in ("train", "val", "valid")],
        r"a split is given once.*split='validation'",
    ),
    "a split without classes": (
        lambda folder: (folder / "train").mkdir(),
        r"train must hold a folder of images for each class, but has none",
    ),
    "one image of a class": (
        lambda folder: [(folder / "bat" / f"{row}.png").unlink() for row in range(1, 10)],
        r"data.test must leave rows .* 0.2 of the 1 rows of class 'bat' is 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_folders_that_are_not_whole_are_refused(name, tmp_path):
    spoil, said = BAD[name]
    spec = _filled(tmp_path, COLOUR)
    data.check(spec)
    spoil(tmp_path)
    with pytest.raises(InvalidInput, match=said) as caught:
        data.check(spec)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    spec = _filled(tmp_path, GREY)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "ape"))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InvalidInput, match=r"files of folder \S+ must be readable: .*ape"):
        data.check(spec)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="a folder of images for each class, but has none"):
        data.check(DataSpec(source="folder", path=tmp_path))
    (tmp_path / "ape").mkdir()
    with pytest.raises(InvalidInput, match="must hold images, but all are empty"):
        data.check(DataSpec(source="folder", path=tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"a folder of folders of images, not \S+file"):
        data.check(DataSpec(source="folder", path=tmp_path / "file"))


def test_hidden_folders_are_no_classes_and_val_is_the_validation_split(tmp_path):
    for split in ("train", "val", ".cache"):
        (tmp_path / split).mkdir()
        _filled(tmp_path / split, GREY + len(split))
    (tmp_path / "train" / ".thumbnails").mkdir()
    spec = DataSpec(source="folder", path=tmp_path)
    found = data.load(spec)
    assert (len(found.train), len(found.validation), len(found.test)) == (16, 20, 4)
    pixel = float(found.validation.images[0, 0, 0, 0])
    assert pixel == pytest.approx(3 / 255)


def _images(folder, *names):
    for name in names:
        for k in range(12):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 20 * k).save(folder / name / f"{k}.png")


def test_classes_may_have_the_names_of_splits(tmp_path):
    _images(tmp_path, "test", "control", "dev")
    spec = DataSpec(source="folder", path=tmp_path)
    found = data.described(Spec().override({"data": spec.model_dump()})).data
    assert found.class_names == ("control", "dev", "test")
    assert sum(len(split) for split in vars(data.read(found)).values()) == 36


def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path):
    _images(tmp_path, "test", "train/ape", "train/bat")
    with pytest.raises(InvalidInput, match="'train' has folders and 'test' has images"):
        data.check(DataSpec(source="folder", path=tmp_path))
