"""Sources as specs name them: kinds, functions, torchvision's sets, Hugging Face's, detection."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from raycrt import data
from raycrt.data import sources
from raycrt.data.sources import SOURCES
from raycrt.data.values import pixels
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec, Spec, identity, strict_yaml, validate
from tests.data.laws import NAMES, part
from tests.data.stores import INSTALLED, STORES
from tests.data.test_data import _write_idx

FOLDER = {"source": "folder", "path": "/photos"}


def test_a_source_takes_the_place_of_a_name_and_a_name_of_a_source():
    spec = Spec().override({"data.source": "folder", "data.path": "/photos", "data.limit": 9})
    assert (spec.data.name, spec.data.source, spec.data.limit) == (None, "folder", 9)
    facts = {"data.shape": [3, 8, 8], "data.class_names": ["ape", "bat"]}
    described = spec.override({**facts, "data.resize": [8, 8]})
    assert described.override({"data.source": "folder"}) == described
    assert described.override({"data.name": "mnist"}) == Spec().override(
        {"data.name": "mnist", "data.limit": 9}
    )
    other = described.override({"data.source": "table", "data.path": "/t.csv"}).data
    assert (other.shape, other.class_names, other.resize) == (None, None, None)


def test_a_recipe_may_state_a_source_alone_and_is_stored_with_it(tmp_path):
    spec = validate({"data": FOLDER})
    assert spec.data.name is None
    spec.save(tmp_path)
    assert Spec.load(tmp_path) == spec
    assert validate({"data": DataSpec(**FOLDER).model_dump(mode="json")}) == spec


@pytest.mark.parametrize(
    "section", [{"name": "digits", **FOLDER}, {"name": None}, {"name": None, "source": None}]
)
def test_exactly_one_of_name_and_source_is_set(section):
    with pytest.raises(InvalidInput, match=r"exactly one of data\.name and data\.source"):
        validate({"data": section})


UNKNOWN = {
    "foldr": r"data.source must be one of .*nearest known is 'folder', but got 'foldr'",
    "folder:x": r"data.source must be one of",
    "function": r"data.source must be one of",
    "torchvision": r"torchvision:NAME with a class of torchvision.datasets",
    "torchvision:CIFAR11": r"torchvision:NAME .*nearest known is 'CIFAR10'.*'CIFAR11'",
    "torchvision:wrap_dataset_for_transforms_v2": r"torchvision:NAME",
    "no_such_module:load": r"a module that can be imported, but No module named 'no_such_module'",
    "json:no_such_function": r"a function of json, but it has no 'no_such_function'",
    "json:__name__": r"a function of json, but '__name__' is str",
    "os:getcwd": r"os:getcwd must return a dictionary of splits, but returned str",
}


@pytest.mark.parametrize("source", UNKNOWN)
def test_unknown_sources_are_refused(source, tmp_path):
    more = {"directory": tmp_path} if source.startswith("torchvision:") else {}
    with pytest.raises(InvalidInput, match=UNKNOWN[source]):
        data.check(DataSpec(source=source, **more))


def test_a_source_without_its_path_is_refused():
    with pytest.raises(InvalidInput, match=r"data\.path must name the files of data\.source=table"):
        data.check(DataSpec(source="table"))


def test_shape_and_names_are_not_known_before_the_data_is_read():
    for fact in (data.shape, data.class_names):
        with pytest.raises(InvalidInput, match=r"must be stated for data\.source=folder"):
            fact(DataSpec(**FOLDER))


def test_two_paths_are_two_data_sets():
    one, two = (validate({"data": {**FOLDER, "path": path}}) for path in ("/a", "/b"))
    for keys in (identity.TRAINING, identity.CERTIFICATES):
        assert identity.difference(one, two, keys) == ("data.path", "/a", "/b")


def test_beginnings_have_the_classes_in_proportion(tmp_path):
    """`limit` takes such a beginning, and so do trials of the validation rows."""
    classes = tuple("aaab")
    parts = {"train": part(60, classes=classes), "validation": part(40, 1, classes)}
    stored = STORES["folder"].spec(tmp_path, parts)
    whole = data.load(stored.data)
    assert whole.validation.labels[:8].sum() == 2
    few = data.load(stored.override({"data.limit": 8}).data)
    for name in NAMES:
        assert torch.bincount(getattr(few, name).labels).tolist() == [6, 2]


MODULE = """
import numpy as np, torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(5), 0

class Flat(Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, row):
        return torch.full((5,), float(row)), torch.tensor(row % 3)

x, y = torch.arange(30.0)[:, None].expand(30, 5), torch.arange(30) % 3
good = {
    "dataset": {"train": Flat()},
    "tensors": {"train": (x, y)},
    "lists": {"train": (x.tolist(), y.tolist())},
    "named": {"train": TensorDataset(x, y), "class_names": ["ape", "bat", "cow"]},
}
bad = {
    "ragged": {"train": ([[1.0], [1.0, 2.0]], [0, 1])},
    "array": {"train": x},
    "inputs alone": {"train": list(x)},
    "another": {"train": (x, y), "holdout": (x, y)},
    "none": {},
    "no pair": {"train": TensorDataset(x)},
    "stream": {"train": Stream()},
}
for number, value in enumerate([*good.values(), *bad.values()]):
    globals()[f"load{number}"] = lambda value=value: value
"""
GOOD = ("dataset", "tensors", "lists", "named")
BAD = {
    "ragged": r"all inputs must have one shape, but not so 'train' of mine_rows:load4",
    "array": r"'train' of mine_rows:load5 must be a pair \(images, labels\) or a torch Dataset",
    "inputs alone": r"must be a pair \(images, labels\)",
    "another": r"return train, validation, test and class_names alone, but also returns 'holdout'",
    "none": r"a train split must be given, but mine_rows:load8 has none",
    "no pair": r"an item must be an input and its label, but row 0 of 'train' of mine_rows:load9",
    "stream": r"have a length and items by index, but not so 'train' of mine_rows:load10",
}


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    (tmp_path / "mine_rows.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return "mine_rows"


@pytest.mark.parametrize("number", range(len(GOOD)), ids=GOOD)
def test_a_function_returns_datasets_or_arrays(number, module, tmp_path):
    spec = data.described(validate({"data": {"source": f"{module}:load{number}"}}))
    assert spec.data.path == str(tmp_path) and spec.data.shape == (5,)
    assert spec.data.class_names == (("ape", "bat", "cow") if number == 3 else ("0", "1", "2"))
    for name in NAMES:
        split = getattr(data.load(spec.data), name)
        assert torch.equal(split.images[:, 0].long() % 3, split.labels)


@pytest.mark.parametrize("name", BAD)
def test_a_function_that_returns_something_else_is_refused(name, module):
    number = len(GOOD) + list(BAD).index(name)
    with pytest.raises(InvalidInput, match=BAD[name]):
        data.check(DataSpec(source=f"{module}:load{number}"))


def test_images_of_torch_have_channels_first():
    image = torch.rand(1, 8, 4)
    assert np.array_equal(pixels.of_anything(image, "an image", None), image)


def test_torchvision_gives_training_and_test_rows(tmp_path, monkeypatch):
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (70, 28, 28))
    for name, rows in (("train", images[:50]), ("t10k", images[50:])):
        labels = np.arange(len(rows)) % 10
        _write_idx(raw / f"{name}-images-idx3-ubyte", rows, compress=False)
        _write_idx(raw / f"{name}-labels-idx1-ubyte", labels, compress=False)
    monkeypatch.setenv("RAYCRT_DATA", str(tmp_path))
    spec = validate({"data": {"source": "torchvision:KMNIST", "validation": 0.4}})
    assert data.located(spec).data.directory == tmp_path
    known = data.described(spec).data
    assert known.shape == (1, 28, 28) and known.class_names[:2] == ("o", "ki")
    found = data.load(known)
    assert (len(found.train), len(found.validation), len(found.test)) == (30, 20, 20)
    assert torch.equal(found.test.images[:, 0], torch.from_numpy(images[50:]).float() / 255)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InvalidInput, match=r"KMNIST, train, in \S+ must be complete: Dataset not"):
        data.check(spec.data)
    monkeypatch.delenv("RAYCRT_DATA")
    with pytest.raises(InvalidInput, match=r"KMNIST is read from files; name their directory"):
        data.check(spec.data)


def test_torchvision_gives_its_own_validation_rows(tmp_path):
    for split in ("train", "val"):
        for row in range(8):
            for name in ("n01440764", "n02102040"):
                folder = tmp_path / "imagenette2" / split / name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{row}.png").write_bytes(b"")
    source = sources.of(DataSpec(source="torchvision:Imagenette", directory=tmp_path))
    assert set(source.splits()) == {"train", "validation"}


def test_a_set_of_torchvision_without_training_rows_is_refused(tmp_path):
    spec = DataSpec(source="torchvision:Places365", directory=tmp_path)
    with pytest.raises(InvalidInput, match=r"a train split must be given, but torchvision:Places"):
        data.check(spec)


def test_hugging_face_s_datasets_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"needs Hugging Face's datasets: pip install 'raycrt\["):
        data.check(DataSpec(source="huggingface", path=tmp_path))


needs_datasets = pytest.mark.skipif(
    not INSTALLED, reason="Hugging Face's datasets is not installed"
)


@pytest.mark.slow
@needs_datasets
def test_hugging_face_s_arrays_keep_their_type_and_rows_without_label_are_refused(tmp_path):
    import datasets

    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 6), dtype=np.uint8)
    kinds = {
        "scan": datasets.Array2D((4, 6), "uint8"),
        "kind": datasets.ClassLabel(names=["b", "a"]),
    }
    columns = {"scan": list(pixels), "kind": [0, 1] * 10}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    made.save_to_disk(tmp_path / "whole")
    spec = {"source": "huggingface", "path": tmp_path / "whole", "label": "kind", "test": 0.5}
    known = data.described(validate({"data": spec})).data
    assert data.features(known) == ()
    assert known.shape == (1, 4, 6) and known.class_names == ("b", "a")
    assert float(data.load(known).fit.images.max()) <= 1
    columns["kind"] = [0, 1] * 9 + [0, -1]
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    made.save_to_disk(tmp_path / "part")
    with pytest.raises(InvalidInput, match=r"row 19 of 'train' of \S+part has -1"):
        data.check(DataSpec(**{**spec, "path": tmp_path / "part"}))


@needs_datasets
def test_hugging_face_s_cache_is_read_and_nothing_fetched(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    (tmp_path / "pets.csv").write_text("age,label\n" + "1,cat\n2,dog\n" * 20)
    datasets.load_dataset("csv", data_files={"train": str(tmp_path / "pets.csv")})
    [made] = tmp_path.glob("csv/*/*/*/")
    kept = tmp_path / "someone___pets" / "default" / "0.0.0" / "abc"
    shutil.copytree(made, kept)
    (kept / "csv-train.arrow").rename(kept / "pets-train.arrow")
    found = data.load(DataSpec(source="huggingface:someone/pets"))
    assert torch.equal(found.train.images[:, 0].long() - 1, found.train.labels)
    with pytest.raises(InvalidInput, match=r"no/such must be a whole data set of Hugging Face"):
        data.check(DataSpec(source="huggingface:no/such"))
    with pytest.raises(InvalidInput, match=r"data\.path must be left out"):
        data.check(DataSpec(source="huggingface:no/such", path=tmp_path))


DOCUMENT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
EXAMPLES = re.findall(r"^data: .*$", DOCUMENT, re.M)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_document_are_specs_of_keys_that_are_used(example):
    tree = strict_yaml.parse(example, "an example")
    assert set(tree["data"]) <= data.uses(validate(tree).data)


def test_the_document_has_an_example_of_every_source():
    kinds = {sources.kind(validate(strict_yaml.parse(e, "")).data.source).kind for e in EXAMPLES}
    assert kinds == set(SOURCES)


DETECTED = [name for name in STORES if name not in ("torchvision", "function")]


@pytest.mark.parametrize("name", DETECTED)
def test_the_kind_of_a_path_is_found_by_its_files(name, tmp_path):
    if name == "huggingface" and not INSTALLED:
        pytest.skip("Hugging Face's datasets is not installed")
    spec = STORES[name].spec(tmp_path, {"train": part(30), "test": part(30, seed=1)})
    assert sources.detect(Path(spec.data.path)) == STORES[name].kind


def test_a_path_of_unknown_kind_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"by its files is none of \['arrays', "):
        sources.detect(tmp_path)
    (tmp_path / "x.npy").touch()
    (tmp_path / "x.csv").touch()
    with pytest.raises(InvalidInput, match="by its files is arrays or table"):
        sources.detect(tmp_path)
