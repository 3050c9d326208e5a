"""Data sets: the embedded one, IDX files plain and gzip'd, splits, and what is refused."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from raycrt import data
from raycrt.data.permutation import Permutations
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec, Spec


def test_digits_are_embedded():
    found = data.load(DataSpec(name="digits"))
    assert found.train.images.shape[1:] == (1, 8, 8)
    assert float(found.train.images.min()) == 0 and float(found.train.images.max()) == 1
    assert len(found.train) + len(found.validation) + len(found.test) == 1797
    assert set(found.test.labels.tolist()) == set(range(10))


def test_the_splits_share_no_row_and_never_change():
    one, two = data.load(DataSpec()), data.load(DataSpec(validation=0.3))
    assert torch.equal(one.test.images, two.test.images)
    rows = {tuple(image.flatten().tolist()) for image in one.train.images}
    held_out = {tuple(image.flatten().tolist()) for image in one.validation.images}
    assert not rows & held_out
    assert len(one.fit) == len(one.train) + len(one.validation)
    assert torch.equal(data.load(DataSpec()).validation.images, one.validation.images)


def _write_idx(file: Path, array: np.ndarray, compress: bool) -> None:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    if compress:
        Path(f"{file}.gz").write_bytes(gzip.compress(content))
    else:
        file.write_bytes(content)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("place", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_idx_files(tmp_path, monkeypatch, place, compress):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    images = {
        name: generator.integers(0, 256, (n, 28, 28)) for name, n in [("train", 20), ("t10k", 6)]
    }
    for name, array in images.items():
        _write_idx(folder / f"{name}-images-idx3-ubyte", array, compress)
        _write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(len(array)) % 10, compress)
    monkeypatch.setenv("RAYCRT_DATA", str(tmp_path))
    found = data.load(DataSpec(name="fashion-mnist"))
    assert len(found.train) == 17 and len(found.validation) == 3
    assert np.array_equal((found.test.images[:, 0] * 255).round().numpy(), images["t10k"])
    assert data.load(DataSpec(name="fashion-mnist", limit=2)).test.labels.tolist() == [0, 1]


@pytest.fixture
def mnist(tmp_path) -> Path:
    """A directory with 20 training and 6 test images in the form of MNIST."""
    for name, rows in (("train", 20), ("t10k", 6)):
        _write_idx(tmp_path / f"{name}-images-idx3-ubyte", np.ones((rows, 28, 28)), compress=False)
        _write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.arange(rows) % 10, compress=False)
    return tmp_path


def _zip(file: Path) -> Path:
    packed = Path(f"{file}.gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    return packed


def _change(file: Path, change) -> None:
    file.write_bytes(change(file.read_bytes()))


IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
BROKEN = {
    "cut": (
        lambda d: _change(d / IMAGES, lambda raw: raw[:-5]),
        "as long as its sizes say.*train-im",
    ),
    "longer": (
        lambda d: _change(d / LABELS, lambda raw: raw + b"x"),
        "as long as its sizes.*t10k-lab",
    ),
    "empty": (
        lambda d: _change(d / IMAGES, lambda raw: b""),
        "an IDX file of unsigned bytes.*train-im",
    ),
    "header alone": (
        lambda d: _change(d / LABELS, lambda raw: raw[:3]),
        "IDX file of unsigned bytes",
    ),
    "cut in its header": (
        lambda d: _change(d / IMAGES, lambda raw: raw[:7]),
        "an IDX file of images",
    ),
    "floats": (
        lambda d: _change(d / IMAGES, lambda raw: b"\0\0\x0d" + raw[3:]),
        "of unsigned bytes",
    ),
    "text": (lambda d: _change(d / LABELS, lambda raw: b"5, 0, 4"), "of unsigned bytes.*b'5, 0'"),
    "another shape": (
        lambda d: _write_idx(d / IMAGES, np.zeros((20, 32, 32)), compress=False),
        r"images: rank 3, each \(28, 28\).*train-images.*\[20, 32, 32\]",
    ),
    "colours": (
        lambda d: _write_idx(d / IMAGES, np.zeros((20, 3, 28, 28)), compress=False),
        r"images: rank 3, each \(28, 28\).*rank=4",
    ),
    "sizes that overflow": (
        lambda d: _change(d / IMAGES, lambda raw: raw[:4] + b"\xff" * 12 + raw[16:]),
        r"an IDX file of images",
    ),
    "rows that overflow": (
        lambda d: _change(d / IMAGES, lambda raw: raw[:4] + b"\xff" * 4 + raw[8:]),
        r"as long as its sizes say",
    ),
    "images for labels": (
        lambda d: (d / LABELS).write_bytes((d / "t10k-images-idx3-ubyte").read_bytes()),
        r"an IDX file of labels: rank 1` must hold.*t10k-labels.*rank=3",
    ),
    "labels for images": (
        lambda d: (d / IMAGES).write_bytes((d / "train-labels-idx1-ubyte").read_bytes()),
        r"an IDX file of images.*rank=1",
    ),
    "labels from 1": (
        lambda d: _write_idx(d / LABELS, np.array([1, 2, 3, 9, 5, 10]), compress=False),
        r"labels are 0 .. 9.*smallest=1, largest=10, part='test'",
    ),
    "labels of other classes": (
        lambda d: _write_idx(d / "train-labels-idx1-ubyte", np.arange(20) * 10, compress=False),
        r"labels are 0 .. 9.*largest=190, part='training'",
    ),
    "fewer labels": (
        lambda d: _write_idx(d / LABELS, np.arange(5), compress=False),
        r"as many images as labels, and at least one.*images=6, labels=5",
    ),
    "no image": (
        lambda d: (
            _write_idx(d / LABELS, np.zeros(0), compress=False),
            _write_idx(d / "t10k-images-idx3-ubyte", np.zeros((0, 28, 28)), compress=False),
        ),
        r"and at least one.*images=0, labels=0",
    ),
    "one image": (
        lambda d: (
            _write_idx(d / "train-labels-idx1-ubyte", np.zeros(1), compress=False),
            _write_idx(d / IMAGES, np.zeros((1, 28, 28)), compress=False),
        ),
        r"data.validation leaves rows on both sides.*rows=1",
    ),
    "cut gzip": (
        lambda d: _change(_zip(d / IMAGES), lambda raw: raw[:-9]),
        r"train-images-idx3-ubyte.gz must be a whole gzip file",
    ),
    "spoilt gzip": (
        lambda d: _change(_zip(d / LABELS), lambda raw: raw[:-8] + b"\xff" * 8),
        r"t10k-labels-idx1-ubyte.gz must be a whole gzip file.*CRC",
    ),
    "spoilt inside": (
        lambda d: _change(_zip(d / IMAGES), lambda raw: raw[:10] + b"\xff" * 20 + raw[30:]),
        r"train-images-idx3-ubyte.gz must be a whole gzip file",
    ),
    "unpacked by a browser": (
        lambda d: (d / IMAGES).rename(d / f"{IMAGES}.gz"),
        r"must be a whole gzip file: Not a gzipped file",
    ),
    "a link to itself": (
        lambda d: ((d / IMAGES).unlink(), (d / IMAGES).symlink_to(d / IMAGES)),
        r"must hold mnist",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("reads", [data.check, data.load])
def test_files_that_are_not_whole_or_of_something_else_are_refused(name, reads, mnist):
    spoil, message = BROKEN[name]
    data.check(DataSpec(name="mnist", directory=mnist))
    spoil(mnist)
    with pytest.raises(InvalidInput, match=message) as caught:
        reads(DataSpec(name="mnist", directory=mnist))
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_may_not_be_read_are_named(mnist, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(mnist / IMAGES))

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(InvalidInput, match=r"the files of mnist must be readable: .*train-images"):
        data.check(DataSpec(name="mnist", directory=mnist))


def test_a_class_may_have_no_image(mnist):
    _write_idx(mnist / LABELS, np.full(6, 3), compress=False)
    data.check(DataSpec(name="mnist", directory=mnist))


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_a_validation_split_without_rows_is_refused_before_any_work(share):
    with pytest.raises(InvalidInput, match=r"data\.validation leaves rows.*rows=1437"):
        data.check(DataSpec(validation=share))
    assert len(data.load(DataSpec()).fit) == 1437


def test_a_relative_directory_reaches_workers_as_an_absolute_one(mnist, monkeypatch):
    monkeypatch.chdir(mnist.parent)
    monkeypatch.setenv("RAYCRT_DATA", mnist.name)
    spec = Spec().override({"data.name": "mnist"})
    data.check(spec.data)
    given = data.located(spec)
    own = spec.override({"data.directory": mnist.name})
    assert given.data.directory == own.data.directory == mnist
    assert data.located(own) == own and data.located(Spec()) == Spec()
    monkeypatch.delenv("RAYCRT_DATA")
    monkeypatch.chdir("/")
    data.check(given.data)
    assert data.located(spec) == spec


def test_missing_data_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("RAYCRT_DATA", raising=False)
    with pytest.raises(InvalidInput, match="--data-dir or RAYCRT_DATA"):
        data.check(DataSpec(name="mnist"))
    for name in ("mnist", "cifar10"):
        with pytest.raises(InvalidInput, match=f"must hold {name}, but .*--download"):
            data.check(DataSpec(name=name, directory=tmp_path))


@pytest.mark.skipif("RAYCRT_DATA" not in os.environ, reason="RAYCRT_DATA names no data directory")
def test_real_mnist():
    found = data.load(DataSpec(name="mnist"))
    assert (len(found.train) + len(found.validation), len(found.test)) == (60_000, 10_000)
    assert found.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize("seed", [0, 20_200_602, 2**43 - 1])
def test_orders_are_those_of_torch(seed):
    orders, generator = Permutations(seed), torch.Generator().manual_seed(seed)
    for rows in (0, 1, 7, 1797):
        drawn = torch.randperm(rows, generator=generator)
        assert orders.draw(rows).tolist() == drawn.tolist()
