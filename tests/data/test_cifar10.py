"""CIFAR-10 from files in its own layout: read, trained on and certified, on random images."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from raycrt import data, recipes
from raycrt.errors import InvalidInput
from raycrt.networks import checkpoint
from raycrt.training import loop
from raycrt.training.folding.part import fresh
from raycrt.verify import verify_run
from tests.verify.runs import write_run

ROWS = 4


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A directory with 5 x 4 training and 4 test images; their checksums are taken as right."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    def batch(name: str) -> list[str]:
        pixels = generator.integers(0, 256, (ROWS, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": generator.integers(0, 10, ROWS).tolist()})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{k}") for k in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    name, digest = write("batches.meta", {"label_names": [str(k) for k in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return folder.parent


def _spec(files: Path, **values: object):
    return recipes.load("cifar10-conv").override({"data.directory": str(files), **values})


def test_images_are_channels_then_rows_then_columns(files):
    spec = _spec(files).data
    data.check(spec)
    found = data.load(spec)
    assert (len(found.train), len(found.validation), len(found.test)) == (18, 2, 4)
    stored = pickle.loads((files / "cifar-10-batches-py" / "test_batch").read_bytes())
    images = (found.test.images * 255).round().numpy()
    assert np.array_equal(images, stored["data"].reshape(ROWS, 3, 32, 32))
    assert found.test.labels.tolist() == stored["labels"]


def test_the_binary_version_holds_the_same_images(files):
    python = data.load(_spec(files).data)
    folder = files / "cifar-10-batches-py"
    binary = files / "binary" / "cifar-10-batches-bin"
    binary.mkdir(parents=True)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        stored = pickle.loads((folder / name).read_bytes())
        labels = np.array(stored["labels"], np.uint8)[:, None]
        np.concatenate([labels, stored["data"]], 1).tofile(binary / f"{name}.bin")
    spec = _spec(binary.parent).data
    data.check(spec)
    found = data.load(spec)
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(found, split).images, getattr(python, split).images)
        assert torch.equal(getattr(found, split).labels, getattr(python, split).labels)
    file = binary / "data_batch_2.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InvalidInput, match=r"records of 3073 bytes.*data_batch_2"):
        data.load(spec)


def test_files_with_another_checksum_are_refused(files):
    file = files / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InvalidInput, match=r"files of cifar10 must be whole: .* corrupted"):
        data.load(_spec(files).data)


@pytest.mark.parametrize("content", [b"", b"\x80\x04no pickle"])
def test_pickles_that_do_not_open_are_refused(files, monkeypatch, content):
    file = files / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(content)
    digest = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digest]])
    with pytest.raises(InvalidInput, match=r"files of cifar10 must be whole"):
        data.check(_spec(files).data)


def test_labels_of_the_binary_version_are_classes(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        np.full((2, 3073), 9, np.uint8).tofile(folder / f"{name}.bin")
    data.check(_spec(tmp_path).data)
    np.full((2, 3073), 10, np.uint8).tofile(folder / "data_batch_4.bin")
    with pytest.raises(InvalidInput, match=r"labels are 0 .. 9.*largest=10, part='training'"):
        data.check(_spec(tmp_path).data)


def test_the_recipe_trains_a_model_that_loads(files, tmp_path):
    spec = _spec(files, **{"train.epochs": 1, "train.warm_up": 0})
    split = data.load(spec.data).train
    network = loop.train(spec, split)
    assert network.layers[0].out_features == 32 * 8 * 8
    before = fresh(spec)
    assert not torch.equal(before.layers[0].weight, network.layers[0].weight)
    checkpoint.save_model(tmp_path / "model", network, spec)
    assert torch.equal(
        checkpoint.load_model(tmp_path / "model")[0](split.images), network(split.images)
    )


@pytest.mark.slow
def test_a_narrow_model_of_the_recipe_is_certified_and_checked(files, tmp_path):
    spec = _spec(files, **{"model.channels": [2], "model.width": 16})
    report = verify_run(write_run(tmp_path / "run", spec))
    assert report.sound, report.findings[:3]
    assert report.checked == ROWS
