"""Training on rows that do not fit into memory: stored in files, read ahead by Ray Data.

Each worker makes a data set of its own when an epoch begins: its shares of the batches in the order
of that epoch, which are the rows that it would take out of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
import torch
from ray.data import Dataset, Datasource, ExecutionOptions, ReadTask
from ray.data.block import BlockMetadata
from torch import Tensor

from raycrt.data.parts.streaming import Stored
from raycrt.specs import Spec
from raycrt.specs.provenance import Rows
from raycrt.training.inputs.batches import Batch, epoch_order

# Batches that are read by one task, and at most how many tasks of a worker read at a time.
_BATCHES, _TASKS = 8, 2
_INPUT, _LABEL = "input", "label"
_EMPTY = pa.table(
    {_INPUT: pa.array([], pa.list_(pa.float32(), 1)), _LABEL: pa.array([], pa.int64())}
)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The rows of worker `rank` of `size` in `epoch`: of each batch of `batch_size`, in the order
    of the epoch, every `size`-th one. `directory` has the `rows` rows of `part` (`Stored`)."""

    directory: Path
    part: Rows
    rows: int
    batch_size: int
    seed: int
    epoch: int
    rank: int
    size: int

    def chosen(self) -> list[Tensor]:
        """The numbers of these rows, batch by batch."""
        order = epoch_order(self.rows, self.seed, self.epoch)
        return [batch[self.rank :: self.size] for batch in order.split(self.batch_size)]

    def dataset(self) -> Dataset:
        """The rows, in their order, as a data set that is read where it is used."""
        tasks = -(-self.rows // (self.batch_size * _BATCHES))
        # Workers may have all CPUs, so that reading must not wait for one.
        made = ray.data.read_datasource(
            _Source(self),
            override_num_blocks=tasks,
            concurrency=min(_TASKS, tasks),
            num_cpus=0,
        )
        made.context.execution_options = ExecutionOptions(preserve_order=True)
        made.context.enable_progress_bars = False
        return made


class Streamed:
    """`Batches` of worker `rank` of `size`, out of one data set for each epoch that it trains."""

    def __init__(self, spec: Spec, directory: Path, part: Rows, *, rank: int, size: int) -> None:
        stored = Stored(directory, part)
        self._rows, self._shape = len(stored), stored.shape
        self._shares_of = partial(_shares, spec, directory, part, self._rows, rank=rank, size=size)

    def __len__(self) -> int:
        return self._rows

    def epoch(self, epoch: int) -> Iterator[Batch]:
        shares = self._shares_of(epoch=epoch)
        # All shares of an epoch but the last are of one size.
        size = len(range(shares.rank, shares.batch_size, shares.size))
        tables: Iterator[Any] = iter(
            shares.dataset().iter_batches(
                batch_size=max(1, size), batch_format="pyarrow", prefetch_batches=_TASKS
            )
        )
        for first in range(0, len(self), shares.batch_size):
            rows = min(shares.batch_size, len(self) - first)
            table = next(tables) if shares.rank < rows else _EMPTY
            flat = table[_INPUT].combine_chunks().flatten().to_numpy()
            yield Batch(
                inputs=torch.tensor(flat).reshape(len(table), *self._shape),
                labels=torch.tensor(table[_LABEL].to_numpy()),
                rows=rows,
            )


def _shares(
    spec: Spec, directory: Path, part: Rows, rows: int, *, epoch: int, rank: int, size: int
) -> Shares:
    return Shares(
        directory=directory,
        part=part,
        rows=rows,
        batch_size=min(spec.train.batch_size, rows),
        seed=spec.run.seed,
        epoch=epoch,
        rank=rank,
        size=size,
    )


class _Source(Datasource):
    """Ray Data's reader of `Shares`."""

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self._shares = shares

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
        tasks = range(0, self._shares.rows, self._shares.batch_size * _BATCHES)
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(_read, self._shares, k), unknown) for k in range(len(tasks))]


def _read(shares: Shares, task: int) -> Iterator[pa.Table]:
    """The rows of one task, a table for each batch."""
    stored = Stored(shares.directory, shares.part)
    for chosen in shares.chosen()[task * _BATCHES : (task + 1) * _BATCHES]:
        found = stored.read(chosen.numpy())
        inputs = found.images.reshape(len(found), math.prod(stored.shape))
        columns = pa.FixedSizeListArray.from_arrays(inputs.ravel(), inputs.shape[1])
        yield pa.table({_INPUT: columns, _LABEL: found.labels})
