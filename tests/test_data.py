"""Data sets: the embedded one, IDX files plain and gzip'd, splits, and what is refused."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from raycrt import data
from raycrt.errors import InvalidInput
from raycrt.spec import DataSpec


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


def test_a_truncated_idx_file_is_refused(tmp_path):
    for name in ("train-images-idx3", "t10k-images-idx3", "train-labels-idx1", "t10k-labels-idx1"):
        _write_idx(tmp_path / f"{name}-ubyte", np.zeros((4, 28, 28)), compress=False)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InvalidInput, match="an IDX file as long as its sizes say"):
        data.load(DataSpec(name="mnist", directory=tmp_path))


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
