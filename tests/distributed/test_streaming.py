"""Rows that are streamed are those that would be taken out of memory, in the same batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raycrt import data
from raycrt.data.parts import streaming as files
from raycrt.distributed import session, streaming, train
from raycrt.errors import InvalidInput
from raycrt.specs import Spec, validate
from raycrt.training.inputs.batches import InMemory


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


@pytest.mark.cluster
@pytest.mark.slow
def test_the_weights_are_those_of_rows_in_memory(spec, tmp_path):
    with session.session(2):
        streamed = train.fit(spec, tmp_path / "streamed")
        memory = train.fit(spec.override({"run.stream": False}), tmp_path / "memory")
    for one, other in zip(streamed.parameters(), memory.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not (tmp_path / "streamed" / "rows").exists()


def test_a_named_data_set_is_in_memory():
    with pytest.raises(InvalidInput, match="a named data set fits into memory"):
        data.described(validate({"run": {"stream": True}}))
