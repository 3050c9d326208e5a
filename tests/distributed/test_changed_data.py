"""A run that is taken up after its data, its manifest or its files have changed."""

from __future__ import annotations

import errno
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from raycrt import data
from raycrt.certification.table import storage
from raycrt.distributed import actors, certification, stages, verification
from raycrt.errors import InvalidInput
from raycrt.networks import network
from raycrt.specs import Spec, validate
from raycrt.system.places.storage import place
from tests.distributed.inprocess import work_here


class Run:
    """24 rows of a test split, of whose three shards the second one is missing."""

    def __init__(self, home, monkeypatch):
        monkeypatch.setattr(stages, "session", nullcontext)
        monkeypatch.setattr(stages.room, "check", lambda run: None)
        self.made = work_here(monkeypatch)
        self.data, self.out = home / "data", home / "certificates"
        self.data.mkdir()
        self.labels = np.arange(24) % 3
        self.inputs = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
        self.store(self.inputs, self.labels)
        self.certify()
        self.whole = storage.read(self.out)[0]
        (self.out / storage.ROWS / "000000008.parquet").unlink()
        self.made.clear()

    def store(self, inputs, labels):
        np.save(self.data / "test-images.npy", inputs)
        np.save(self.data / "test-labels.npy", labels)

    @property
    def spec(self) -> Spec:
        return validate(
            {
                "model": {"depth": 2, "width": 8, "activation": "tanh"},
                "data": {"source": "arrays", "path": str(self.data)},
                "certify": {"at": [0.1], "steps": 0, "batch_size": 8},
            }
        )

    def certify(self):
        torch.manual_seed(0)
        spec = data.opened_for_test(self.spec)[0]
        stages.certify(spec, network.build(spec.model, (4,), 3), self.out)

    def refused(self, said):
        with pytest.raises(InvalidInput, match=said):
            self.certify()
        assert not self.made


@pytest.fixture
def run(tmp_path, monkeypatch):
    return Run(tmp_path, monkeypatch)


@pytest.mark.parametrize("rows", [32, 23])
def test_another_number_of_rows_is_refused(run, rows):
    run.store(np.resize(run.inputs, (rows, 4)), np.resize(run.labels, rows))
    run.refused(f"a test split of 24 rows, but it has {rows} now")


@pytest.mark.parametrize("changed", ["inputs", "labels"])
def test_rows_in_another_order_are_refused(run, changed):
    inputs, labels = run.inputs, run.labels
    if changed == "inputs":
        inputs = np.roll(inputs, 1, 0)
    else:
        labels = np.roll(labels, 1)
    run.store(inputs, labels)
    run.refused("begins with another row than 0 of the data is now")
    run.store(run.inputs, run.labels)
    run.certify()
    assert run.made == [8] and storage.read(run.out)[0].equals(run.whole)


def test_other_data_is_refused_where_all_certificates_are_there(run):
    run.certify()
    run.made.clear()
    run.store(run.inputs + 1, run.labels)
    run.refused("begins with another row than 0 of the data is now")


def test_a_store_that_is_lost_is_not_asked_for_every_shard(run, monkeypatch):
    uri = f"memory://lost/{run.data.parent.name}"
    place(uri).fs.put(str(run.data), place(uri).path, recursive=True)
    run.store(np.resize(run.inputs, (80, 4)), np.resize(run.labels, 80))
    monkeypatch.setattr(certification, "_OUT_OF_REACH", 2)

    class Lost(Exception):
        """As a client has them."""

    def lost(*_: object, **__: object) -> bytes:
        raise Lost("could not connect")

    spec = run.spec.override({"data.path": uri})
    described, reader = data.opened_for_test(spec)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lost)
    monkeypatch.setattr(MemoryFileSystem, "_open", lost)
    with pytest.raises(InvalidInput, match=r"could not connect.*the shards that are done are in"):
        stages.certify(
            described, network.build(described.model, (4,), 3), run.out / "new", reader=reader
        )
    assert run.made == [0, 8]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": 24', '{"rows": 24, "spec": null}'])
def test_a_damaged_manifest_is_refused(run, content):
    (run.out / storage.MANIFEST).write_text(content)
    run.refused("must be JSON|must hold an object|a manifest states what all rows share")


def test_a_manifest_states_the_rows_of_a_shard(run):
    file = run.out / storage.MANIFEST
    stated = json.loads(file.read_text())
    del stated["rows_of_a_shard"]
    file.write_text(json.dumps(stated))
    run.refused("a shard must have whole batches of 8 rows, but the manifest states None")


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"])
def test_a_damaged_file_of_rows_is_named(run, content):
    (run.out / storage.ROWS / "000000016.parquet").write_bytes(content)
    run.refused("000000016.parquet must be whole, or be removed")


def test_a_directory_in_the_place_of_a_shard_is_named(run):
    (run.out / storage.ROWS / "000000008.parquet").mkdir()
    run.refused("plain .parquet files alone")


def test_a_full_disk_ends_the_command_as_such(run, monkeypatch):
    """What an actor is told of by its own disk arrives as an error of the disk."""

    def full(self, shard):
        raise OSError(errno.ENOSPC, "Error writing bytes to file", "somewhere")

    monkeypatch.setattr(actors.ShardCertifier, "__call__", full)
    with pytest.raises(OSError, match="No space left on device: 'somewhere'"):
        run.certify()


def test_an_input_that_an_actor_of_the_checker_cannot_read_is_named(monkeypatch):
    class Checker:
        def check_file(self, file):
            raise InvalidInput(f"row 3 of {file.name} must be readable")

    monkeypatch.setattr(verification.ray, "get", lambda given: given)
    found = verification._Check(Checker())({"file": np.array(["rows/a.parquet"])})
    with pytest.raises(InvalidInput, match=r"row 3 of a\.parquet must be readable"):
        verification._checked(found.to_pylist()[0])
