"""Shards: the same rows as in one process, each once, whatever ended the process before."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from raycrt import Certifier
from raycrt.certification.table import shards, storage
from raycrt.certification.table.shards import Shard, ShardCertifier
from raycrt.data import Arrays, Reader
from raycrt.errors import InvalidInput
from tests.models import random_network

ROWS, BATCH = 40, 8


class Killed(BaseException):
    """Stands for the end of the process: nothing in it is run any more."""


class Rows(Reader):
    """Random rows; reading one of `deadly` ends the process."""

    def __init__(self, deadly: tuple[int, ...] = ()) -> None:
        draws = np.random.default_rng(0)
        self.deadly, self.began = deadly, 0
        self.all = Arrays(
            images=draws.normal(size=(ROWS, 6)).astype(np.float32),
            labels=draws.integers(0, 3, ROWS),
            keys=np.array([f"row {k}" for k in range(ROWS)], object),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return (6,)

    def __len__(self) -> int:
        return ROWS

    def between(self, first: int, last: int, step: int) -> Iterator[Arrays]:
        for start in range(first, last, step):
            stop = min(start + step, last)
            if any(start <= row < stop for row in self.deadly):
                raise Killed
            yield self.all.take(slice(start, stop))


NETWORK = random_network(2, features=6, width=5, classes=3)


def _shards(out: Path, reader: Rows) -> ShardCertifier:
    (out / storage.ROWS).mkdir(parents=True, exist_ok=True)
    return ShardCertifier(Certifier(NETWORK, steps=5), reader, out, batch=BATCH, at=0.1)


@pytest.fixture(scope="module")
def twin() -> storage.pa.Table:
    """The rows of one process that makes one batch after the other."""
    rows, certifier = Rows().all, Certifier(NETWORK, steps=5, batch_size=BATCH)
    found = certifier(torch.from_numpy(rows.images))
    return storage.to_table(found, 0, rows.labels, rows.images, rows.keys)


@pytest.mark.parametrize("size", [8, 16, 24, 40])
def test_rows_are_those_of_one_process_whatever_the_size_of_shards(tmp_path, twin, size):
    certify = _shards(tmp_path, Rows())
    told = [certify(shard) for shard in shards.shards(ROWS, size)]
    assert storage.read_rows(tmp_path).equals(twin)
    assert sum(each.rows for each in told) == ROWS
    right = twin["label"].to_numpy() == twin["prediction"].to_numpy()
    assert sum(each.right for each in told) == right.sum()
    certified = right & (twin["radius"].to_numpy() > 0.1)
    assert sum(each.certified for each in told) == certified.sum() > 0
    assert all(shards.is_written(shard, tmp_path) for shard in shards.shards(ROWS, size))
    assert all(file.suffix == ".parquet" for file in (tmp_path / storage.ROWS).iterdir())


@pytest.mark.parametrize(
    ("rows", "batch", "size"),
    [(360, 256, 256), (360, 20, 20), (10_000, 256, 256), (10**6, 256, 4096), (10**8, 256, 65_536)],
)
def test_a_shard_has_whole_batches_and_a_bounded_number_of_rows(rows, batch, size):
    assert shards.rows_of_a_shard(rows, batch) == size
    assert math.ceil(rows / size) < 1600


def test_a_shard_with_fewer_rows_is_not_written(tmp_path, twin):
    (tmp_path / storage.ROWS).mkdir()
    shard = Shard(first=0, last=16)
    assert not shards.is_written(shard, tmp_path)
    storage.write_rows(shard.file(tmp_path), twin.slice(0, 15))
    assert not shards.is_written(shard, tmp_path)


def _until_written(out: Path, reader: Rows, shard: Shard) -> tuple[shards.Written, int]:
    """What is told of the shard, and the number of processes that began it in vain."""
    for ended in range(20):
        try:
            return _shards(out, reader)(shard), ended
        except Killed:
            assert not shard.file(out).exists()
    pytest.fail("the shard is never written")


def test_a_row_that_ends_its_process_is_left_out_and_the_others_are_written(tmp_path, twin):
    told, ended = _until_written(tmp_path, Rows(deadly=(21,)), Shard(first=0, last=ROWS))
    assert told.lost == (21,) and told.rows == ROWS - 1
    # Two in vain, three at the batch, three at the row.
    assert ended == 8
    found = storage.read_rows(tmp_path)
    others = np.flatnonzero(np.arange(ROWS) // BATCH != 21 // BATCH)
    assert 21 not in found["index"].to_pylist()
    for name in ("radius", "prediction", "input_sha256"):
        assert found.filter(np.isin(found["index"], others))[name].equals(twin[name].take(others))
    assert not shards.is_written(Shard(first=0, last=ROWS), tmp_path)


def test_processes_that_end_for_another_reason_change_no_row(tmp_path, twin):
    """Also where a shard is begun so often that it is done with care."""
    shard = Shard(first=0, last=ROWS)
    for deadly in ((3,), (30,), (12,), (30,), (3,)):
        with pytest.raises(Killed):
            _shards(tmp_path, Rows(deadly))(shard)
    told = _shards(tmp_path, Rows())(shard)
    assert told.lost == () and storage.read_rows(tmp_path).equals(twin)
    assert [file.name for file in (tmp_path / storage.ROWS).iterdir()] == ["000000000.parquet"]


@pytest.mark.parametrize("content", [b"", b"{begun", b"[3]", b'"text"'])
def test_a_damaged_journal_is_begun_anew(tmp_path, twin, content):
    certify, shard = _shards(tmp_path, Rows()), Shard(first=0, last=ROWS)
    (tmp_path / storage.ROWS / ".000000000.journal.partial").write_bytes(content)
    assert certify(shard).lost == () and storage.read_rows(tmp_path).equals(twin)


def test_a_row_that_cannot_be_read_ends_no_process(tmp_path):
    """It is refused however often, and never counted among those that end their process."""
    reader, shard = Rows(), Shard(first=0, last=ROWS)
    whole, reader.all = reader.all, reader.all.take(slice(0))
    for _ in range(12):
        with pytest.raises(InvalidInput, match="at least one image"):
            _shards(tmp_path, reader)(shard)
    assert not list((tmp_path / storage.ROWS).iterdir())
    reader.all = whole
    assert _shards(tmp_path, reader)(shard).lost == ()


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """Names of files are bytes, which need not be text."""
    reader = Rows()
    assert reader.all.keys is not None
    reader.all.keys[9] = os.fsdecode(b"\xff.png")
    with pytest.raises(InvalidInput, match="text in UTF-8, but one is"):
        _shards(tmp_path, reader)(Shard(first=0, last=ROWS))


def test_memory_is_that_of_a_batch(tmp_path):
    """Each batch is in the file before the next one is read."""
    certify = _shards(tmp_path, Rows())
    certify(Shard(first=0, last=ROWS))
    facts = pq.read_metadata(Shard(first=0, last=ROWS).file(tmp_path))
    assert [facts.row_group(k).num_rows for k in range(facts.num_row_groups)] == [BATCH] * 5
