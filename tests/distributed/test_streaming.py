"""Rows that are streamed are those that would be taken out of memory, in the same batches."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raycrt import data
from raycrt.data.parts import streaming as files
from raycrt.distributed import session
from raycrt.distributed.training import streaming, train
from raycrt.errors import InvalidInput
from raycrt.specs import Spec, validate
from raycrt.training.inputs.batches import InMemory, epoch_order


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    rows = data.load(validate({"data": {"limit": 150}}).data).train
    np.save(tmp_path / "x.npy", rows.images.numpy())
    np.save(tmp_path / "y.npy", rows.labels.numpy())
    return data.described(
        validate(
            {
                "model": {"width": 8},
                # Of the 101 training rows the last batch has 5, fewer than seven workers.
                "train": {"epochs": 2, "batch_size": 32, "radius": 0.3, "gamma": 0.001},
                "data": {"source": "arrays", "path": str(tmp_path)},
                "run": {"workers": 2, "stream": True, "seed": 5},
            }
        )
    )


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_shares_of_all_workers_are_the_batches_in_memory(spec, tmp_path, size):
    split = data.load(spec.data).train
    assert len(split) % 32 == 5
    number = files.store(spec.data, "train", tmp_path / "rows")
    stored = files.Stored(tmp_path / "rows", "train")
    assert number == len(stored) == len(split)
    for epoch in range(2):
        for rank in range(size):
            shares = streaming.Shares(
                directory=tmp_path / "rows",
                part="train",
                rows=number,
                batch_size=32,
                seed=5,
                epoch=epoch,
                rank=rank,
                size=size,
            )
            memory = InMemory(split=split, batch_size=32, seed=5, rank=rank, size=size)
            batches = list(memory.epoch(epoch))
            for chosen, batch in zip(shares.chosen(), batches, strict=True):
                read = stored.read(chosen.numpy())
                assert np.array_equal(read.images, batch.inputs)
                assert np.array_equal(read.labels, batch.labels)


class Here:
    """The rows of `Shares` as its data set has them, read by all of its tasks in this process."""

    def __init__(self, shares: streaming.Shares) -> None:
        self.tasks = streaming._Source(shares).get_read_tasks(-1)
        assert len(self.tasks) == 4

    def iter_batches(self, *, batch_size: int, **options: Any) -> Iterator[pa.Table]:
        whole = pa.concat_tables(table for task in self.tasks for table in task())
        for first in range(0, len(whole), batch_size):
            yield whole.slice(first, batch_size)


def test_each_row_is_there_once_an_epoch_when_the_number_of_workers_changes(
    spec, tmp_path, monkeypatch
):
    # 101 rows in batches of 4 are read by four tasks; the last batch is one row, of one worker.
    spec = spec.override({"train.batch_size": 4})
    rows = files.store(spec.data, "train", tmp_path / "rows")
    stored = files.Stored(tmp_path / "rows", "train").read(slice(None))
    numbers = {inputs.tobytes(): row for row, inputs in enumerate(stored.images)}
    assert len(numbers) == rows == 101
    monkeypatch.setattr(streaming.Shares, "dataset", lambda shares: Here(shares))

    def batches(size: int, epoch: int, steps: int | None = None) -> Iterator[list[int]]:
        """The numbers of the rows in the first `steps` batches, in the order of the epoch."""
        workers = [
            streaming.Streamed(spec, tmp_path / "rows", "train", rank=rank, size=size)
            for rank in range(size)
        ]
        shares = zip(*(worker.epoch(epoch) for worker in workers), strict=True)
        for parts in islice(shares, steps):
            whole = [-1] * parts[0].rows
            for rank, part in enumerate(parts):
                whole[rank::size] = [numbers[inputs.numpy().tobytes()] for inputs in part.inputs]
                assert part.labels.tolist() == stored.labels[whole[rank::size]].tolist()
            yield whole

    # One of three workers is lost in the middle of an epoch, which two repeat; then one is left.
    begun = list(batches(3, 0, steps=5))
    for size, epoch in ((2, 0), (3, 1), (1, 2)):
        trained = list(batches(size, epoch))
        assert [len(batch) for batch in trained] == [4] * 25 + [1]
        assert [row for batch in trained for row in batch] == epoch_order(rows, 5, epoch).tolist()
        assert sorted(row for batch in trained for row in batch) == list(range(rows))
        assert epoch > 0 or begun == trained[:5]


@pytest.mark.cluster
def test_a_worker_makes_one_data_set_for_each_epoch_that_it_trains(spec, tmp_path, monkeypatch):
    made = []
    dataset = streaming.Shares.dataset

    def counted(shares):
        made.append(shares.epoch)
        return dataset(shares)

    monkeypatch.setattr(streaming.Shares, "dataset", counted)
    files.store(spec.data, "train", tmp_path / "rows")
    memory = InMemory(split=data.load(spec.data).train, batch_size=32, seed=5, rank=1, size=3)
    with session.session(2):
        streamed = streaming.Streamed(spec, tmp_path / "rows", "train", rank=1, size=3)
        assert made == []
        for epoch in (4, 1):
            batches = zip(streamed.epoch(epoch), memory.epoch(epoch), strict=True)
            for one, other in batches:
                assert torch.equal(one.inputs, other.inputs)
                assert torch.equal(one.labels, other.labels)
                assert one.rows == other.rows
    assert made == [4, 1]


@pytest.mark.cluster
@pytest.mark.slow
def test_the_weights_are_those_of_rows_in_memory(spec, tmp_path, monkeypatch):
    # Data sets are made by the workers alone, which are other processes.
    monkeypatch.delattr(streaming.Shares, "dataset")
    with session.session(2):
        streamed = train.fit(spec, tmp_path / "streamed")
        memory = train.fit(spec.override({"run.stream": False}), tmp_path / "memory")
    for one, other in zip(streamed.parameters(), memory.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not (tmp_path / "streamed" / "rows").exists()


def test_a_named_data_set_is_in_memory():
    with pytest.raises(InvalidInput, match="a named data set fits into memory"):
        data.described(validate({"run": {"stream": True}}))


def test_principal_components_of_streamed_rows_are_refused_before_any_work(spec, tmp_path):
    with pytest.raises(InvalidInput, match=r"train\.components must be left out.*components=5"):
        train.folder_of_rows(spec.override({"train.components": 5}), tmp_path)
