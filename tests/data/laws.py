"""What holds of every data set, and of every source: one earns all of it with one fixture."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from raycrt import data
from raycrt.data import sources
from raycrt.data.parts import streaming
from raycrt.data.parts.reader import InFiles
from raycrt.data.sources.source import Source
from raycrt.data.splits import NAMES
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec, Spec, validate
from raycrt.system.places.storage import place

CLASSES = ("ape", "bat", "cow")
SHAPE = (3, 6, 5)
# Values that change each key of a data section that some data sets do not use.
SET = {
    "path": "/nowhere",
    "label": "species",
    "input": "pixels",
    "key": "id",
    "resize": [4, 4],
    "test": 0.5,
    "split_seed": 7,
    "download": True,
}


@dataclass(frozen=True)
class Part:
    """Rows to be stored: `pixels` uint8 (n, 3, 6, 5) and the name of each row's class."""

    pixels: np.ndarray
    names: list[str]


def part(rows: int, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Part:
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, *SHAPE), dtype=np.uint8)
    return Part(pixels, [classes[row % len(classes)] for row in range(rows)])


@dataclass(frozen=True)
class Store:
    """How files of a `kind` are written: `write(directory, parts)` is the spec that reads them.

    `spoil(directory)` damages them and returns what a message must name. `splits` is false where
    only training rows can be stored, `ordered` where rows are read in another order (by class),
    `flat` where inputs are vectors, `scale` what pixels are divided by, `by_number` true where a
    row can be read without those before it, `on_stores` false where its files must be on a disk.
    """

    kind: str
    write: Callable[[Path, Mapping[str, Part]], dict]
    spoil: Callable[[Path], str]
    splits: bool = True
    ordered: bool = True
    flat: bool = False
    scale: int = 255
    by_number: bool = False
    on_stores: bool = True

    def spec(self, directory: Path, parts: Mapping[str, Part]) -> Spec:
        return validate({"data": self.write(directory, parts)})

    def inputs(self, part: Part) -> torch.Tensor:
        numbers = torch.from_numpy(part.pixels).float().div(self.scale)
        return numbers.flatten(1) if self.flat else numbers


def rows_of(split: data.Split) -> list[bytes]:
    return [image.numpy().tobytes() for image in split.images]


def digest(spec: str) -> str:
    """A hash of all splits, read in another working directory."""
    os.chdir("/")
    return _digest(data.load(DataSpec.model_validate_json(spec)))


def _copied(path: str, name: str) -> str:
    """The URI of a copy of the file or the directory `path` in a store in memory."""
    uri = f"memory://{name}/{Path(path).name}"
    place(uri).fs.put(path, place(uri).path, recursive=True)
    return uri


def _digest(found: data.Dataset) -> str:
    made = hashlib.sha256()
    for name in NAMES:
        split = getattr(found, name)
        made.update(split.images.numpy().tobytes() + split.labels.numpy().tobytes())
    return made.hexdigest()


class DataLaws:
    """A data set of `spec`, a fixture: a whole spec, not described."""

    def test_shape_and_class_names_are_those_of_what_is_read(self, spec):
        known = data.described(spec).data
        found = data.load(known)
        for name in NAMES:
            split = getattr(found, name)
            assert split.images.dtype == torch.float32 and split.labels.dtype == torch.int64
            assert split.images.shape == (len(split), *data.shape(known))
            assert int(split.labels.min()) >= 0
            assert int(split.labels.max()) < len(data.class_names(known))
        assert data.described(spec.override({"data": known.model_dump()})).data == known

    def test_splits_share_no_row(self, spec):
        found = data.load(spec.data)
        train, validation, test = (set(rows_of(getattr(found, name))) for name in NAMES)
        assert train and validation and test
        assert not train & validation and not train & test and not validation & test

    @pytest.mark.slow
    def test_rows_are_the_same_in_every_call_and_process(self, spec, elsewhere):
        described = data.located(data.described(spec)).data
        own = _digest(data.load(spec.data))
        assert _digest(data.load(described)) == own
        assert elsewhere.submit(digest, described.model_dump_json()).result() == own

    def test_a_limit_keeps_some_of_the_rows(self, spec):
        found = data.load(spec.data)
        few = data.load(spec.override({"data.limit": 4}).data)
        for name in NAMES:
            assert len(getattr(few, name)) == min(4, len(getattr(found, name)))
            assert set(rows_of(getattr(few, name))) <= set(rows_of(getattr(found, name)))

    def test_keys_without_effect_are_refused(self, spec):
        used = data.uses(spec.data) | ({"download"} if spec.data.name else set())
        for key in SET.keys() - used:
            with pytest.raises(InvalidInput, match=rf"does not use data\.{key}="):
                data.check(spec.override({f"data.{key}": SET[key]}).data)


class SourceLaws(DataLaws):
    """A source whose files are written by `store`, a fixture."""

    @pytest.fixture
    def spec(self, store, tmp_path):
        return store.spec(tmp_path, {"train": part(60)})

    def test_given_splits_are_read_as_they_are(self, store, tmp_path):
        if not store.splits:
            pytest.skip("only training rows can be stored")
        parts = {name: part(9 + 3 * k, seed=k) for k, name in enumerate(NAMES)}
        known = data.described(store.spec(tmp_path, parts)).data
        assert data.class_names(known) == CLASSES
        found = data.load(known)
        for name, written in parts.items():
            _same_rows(store, getattr(found, name), written)

    def test_missing_splits_are_drawn_from_all_rows(self, store, spec):
        found = data.load(spec.data)
        whole = data.Split(
            images=torch.cat([getattr(found, name).images for name in NAMES]),
            labels=torch.cat([getattr(found, name).labels for name in NAMES]),
        )
        _same_rows(store, whole, part(60), ordered=False)

    def test_features_have_names_where_they_are_columns(self, store, spec):
        number = int(np.prod(data.described(spec).data.shape))
        names = tuple(f"f{k}" for k in range(number)) if store.flat else ()
        assert data.features(spec.data) == names

    def test_splits_are_stratified(self, spec):
        uneven = spec.override({"data.test": 0.25, "data.validation": 0.2})
        found = data.load(uneven.data)
        assert [torch.bincount(getattr(found, name).labels).tolist() for name in NAMES] == [
            [12] * 3,
            [3] * 3,
            [5] * 3,
        ]

    def test_another_seed_draws_other_rows(self, spec):
        one, two = (
            set(rows_of(data.load(spec.override({"data.split_seed": seed}).data).test))
            for seed in (0, 1)
        )
        assert one != two

    def test_files_that_are_damaged_are_named(self, store, spec, tmp_path):
        named = store.spoil(tmp_path)
        _refused(spec, named)

    def test_facts_that_differ_are_refused(self, spec):
        _refused(spec.override({"data.shape": [17]}), r"data.shape states (17,), but")
        wrong = spec.override({"data.class_names": ["ape", "cat", "cow"]})
        _refused(
            wrong, "data.class_names states 'ape', 'cat', 'cow', but the data has 'ape', 'bat'"
        )

    def test_one_class_is_refused(self, store, tmp_path):
        spec = store.spec(tmp_path, {"train": part(20, classes=("ape",))})
        _refused(spec, "at least two classes")

    def test_a_class_without_training_rows_is_refused(self, store, tmp_path):
        if not store.splits:
            pytest.skip("only training rows can be stored")
        parts = {"train": part(8, classes=("ape", "cow")), "test": part(9, seed=1)}
        _refused(store.spec(tmp_path, parts), "train split, but class 'bat' has none")

    def test_a_class_may_be_missing_where_a_split_is_given(self, store, tmp_path):
        if not store.splits:
            pytest.skip("only training rows can be stored")
        parts = {"train": part(30), "test": part(8, seed=1, classes=("ape", "cow"))}
        found = data.load(store.spec(tmp_path, parts).data)
        assert set(found.test.labels.tolist()) == {0, 2}

    def test_a_test_split_alone_is_certified_and_not_trained_on(self, store, tmp_path):
        if not store.splits:
            pytest.skip("only training rows can be stored")
        given = part(9)
        spec = store.spec(tmp_path, {"test": given})
        found = data.load(spec.data)
        _same_rows(store, found.test, given, ordered=store.ordered)
        assert len(found.train) == len(found.validation) == len(found.fit) == 0
        with pytest.raises(InvalidInput, match="has a test split alone"):
            data.require_training_rows(spec.data)

    def test_it_is_the_same_where_it_is_read_some_rows_at_a_time(
        self, store, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(Source, "at_a_time", 7)
        given = (
            {"train": part(30), "test": part(9, seed=1)} if store.splits else {"train": part(30)}
        )
        spec = store.spec(tmp_path, given)
        found, whole = streaming.survey(spec.data), data.load(spec.data)
        described = data.described(spec).data
        assert (found.shape, found.class_names) == (described.shape, described.class_names)
        assert data.described(spec.override({"run.stream": True})).data == described
        for name in ("fit", "train"):
            assert streaming.store(spec.data, name, tmp_path / "rows") == len(getattr(whole, name))
            for kept in (name, "validation"):
                stored, split = streaming.Stored(tmp_path / "rows", kept), getattr(whole, kept)
                order = torch.randperm(len(split))
                read = stored.read(order.numpy())
                assert np.array_equal(read.images, split.images[order])
                assert np.array_equal(read.labels, split.labels[order])

    def test_its_test_rows_are_the_same_where_they_are_read_by_their_numbers(
        self, store, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(Source, "at_a_time", 7)
        given = (
            {"train": part(30), "test": part(23, seed=1)} if store.splits else {"train": part(30)}
        )
        spec = store.spec(tmp_path, given)
        described = data.described(spec)
        assert data.opened_for_test(spec)[0] == described
        whole, found = data.read(described.data).test, data.test_rows(described.data)
        assert isinstance(found, InFiles) == (store.by_number and store.splits)
        again = pickle.loads(pickle.dumps(found))
        assert len(pickle.dumps(found)) < 5000
        for reader in (found, again):
            assert (len(reader), reader.shape) == (len(whole), described.data.shape)
            for first, last, step in ((0, len(whole), 5), (3, len(whole) - 1, 4), (2, 3, 9)):
                parts = list(reader.between(first, last, step))
                assert [len(each) for each in parts[:-1]] == [step] * (len(parts) - 1)
                joined = functools.reduce(data.Arrays.with_rows, parts)
                same = whole.take(slice(first, last))
                assert np.array_equal(joined.images, same.images)
                assert np.array_equal(joined.labels, same.labels)
                assert (joined.keys is None) == (same.keys is None)
                assert joined.keys is None or joined.keys.tolist() == same.keys.tolist()
        limited = described.override({"data.limit": 9}).data
        assert not isinstance(data.test_rows(limited), InFiles)
        assert np.array_equal(
            data.test_rows(limited).first(9).images, data.read(limited).test.images
        )

    def test_a_store_that_is_lost_meanwhile_is_named(self, store, tmp_path, monkeypatch):
        if not (store.on_stores and store.by_number):
            pytest.skip("its rows are not read from a store by their numbers")
        here = store.spec(tmp_path, {"train": part(30), "test": part(23, seed=1)})
        uri = _copied(str(here.data.path), tmp_path.name)
        reader = data.opened_for_test(here.override({"data.path": uri}))[1]

        class Lost(Exception):
            """As a client has them: it is no OSError."""

        def lost(*_: object, **__: object) -> bytes:
            raise Lost("could not connect")

        for method in ("cat_file", "_open"):
            monkeypatch.setattr(MemoryFileSystem, method, lost)
        with pytest.raises(InvalidInput, match=f"{uri}.*could not connect"):
            list(reader.between(0, 23, 5))

    @pytest.mark.parametrize("splits", [("train",), ("train", "test")], ids="-".join)
    def test_it_is_the_same_on_a_store(self, store, tmp_path, splits):
        if len(splits) > 1 and not store.splits:
            pytest.skip("only training rows can be stored")
        if "path" not in sources.SOURCES[store.kind].uses:
            pytest.skip("the key is not used")
        here = store.spec(tmp_path, {name: part(21, seed=k) for k, name in enumerate(splits)})
        there = here.override({"data.path": _copied(str(here.data.path), tmp_path.name)})
        if not store.on_stores:
            _refused(there, "data.path must be on a disk")
            return
        local, remote = data.described(here), data.opened_for_test(there)[0]
        assert remote == data.described(there) == local.override({"data.path": there.data.path})
        assert data.described(there.override({"run.stream": True})).data == remote.data
        assert sources.detect(place(there.data.path)) == store.kind
        pairs = [
            (getattr(data.read(local.data), name), getattr(data.read(remote.data), name))
            for name in NAMES
        ]
        reader = data.test_rows(remote.data)
        parts = pickle.loads(pickle.dumps(reader)).between(0, len(reader), 5)
        pairs.append((pairs[-1][0], functools.reduce(data.Arrays.with_rows, parts)))
        for own, other in pairs:
            assert np.array_equal(own.images, other.images)
            assert np.array_equal(own.labels, other.labels)
            assert (own.keys is None) == (other.keys is None)
            names = [] if own.keys is None else own.keys.tolist()
            assert names == ([] if other.keys is None else other.keys.tolist())

    def test_a_share_too_small_for_a_class_is_refused(self, spec):
        small = spec.override({"data.test": 0.01})
        _refused(small, "data.test must leave rows of each class on both sides, but 0.01 of the 20")

    def test_images_are_resized(self, store, spec):
        if "resize" not in data.uses(spec.data):
            pytest.skip("the key is not used")
        asked = spec.override({"data.resize": [4, 8]})
        if store.flat:
            _refused(asked, "data.resize must be left out where inputs are not images")
        else:
            assert data.load(asked.data).train.images.shape[1:] == (3, 4, 8)
            assert data.described(asked).data.shape == (3, 4, 8)

    def test_a_path_without_files_is_refused(self, spec, tmp_path):
        if "path" not in data.uses(spec.data):
            pytest.skip("the key is not used")
        _refused(spec.override({"data.path": tmp_path / "none"}), "data.path must exist")


def _refused(spec: Spec, said: str) -> None:
    """All readers refuse `spec` in one line that says `said`."""
    readers = [data.check, data.load]
    if spec.data.source is not None:
        readers.append(streaming.survey)
    for read in readers:
        with pytest.raises(InvalidInput) as caught:
            read(spec.data)
        assert said in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def _same_rows(store: Store, split: data.Split, written: Part, ordered: bool = True) -> None:
    """Each row of `written`, with its class, is in `split`, and no other."""
    inputs = store.inputs(written)
    if ordered and store.ordered:
        assert torch.equal(split.images, inputs)
        assert [CLASSES[label] for label in split.labels] == written.names
    rows = zip(rows_of(split), split.labels.tolist(), strict=True)
    expected = zip((x.numpy().tobytes() for x in inputs), written.names, strict=True)
    assert sorted((row, CLASSES[label]) for row, label in rows) == sorted(expected)
