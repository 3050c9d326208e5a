"""The independent checker on a pool of Ray Data actors.

The unit of work is one Parquet file of rows, checked by the code that checks it in one process
(`raycrt.verify.checker`), so the findings are the same. On a cluster files and data must lie on
storage that all nodes share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from raycrt.distributed import room
from raycrt.errors import InvalidInput
from raycrt.system.places.storage import Place, place
from raycrt.verify.checker import Checker
from raycrt.verify.findings import Checked, Finding


def check_files(checker: Checker, files: list[Place], *, workers: int) -> Iterator[Checked]:
    """Check every file with at most `workers` actors; the results as they finish. `InvalidInput`
    where an input cannot be read."""
    if not files:
        return
    actors = min(workers, len(files))
    items = [{"file": str(file.absolute())} for file in files]
    checked = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Check,
        fn_constructor_kwargs={"checker": ray.put(checker)},
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=actors),
        num_cpus=room.for_actor(1.0, actors),
    )
    for block in checked.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from map(_checked, pa.table(block).to_pylist())


class _Check:
    """An actor: holds the model and its proved curvature, and checks files."""

    def __init__(self, checker: Any) -> None:
        self.checker: Checker = ray.get(checker)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        return pa.Table.from_pylist(
            [self._check(place(str(file))) for file in batch["file"]], schema=_SCHEMA
        )

    def _check(self, file: Place) -> dict[str, Any]:
        try:
            return asdict(self.checker.check_file(file))
        except InvalidInput as error:
            return {"file": file.name, "refused": str(error)}


_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("rows", pa.int64()),
        ("spans", pa.list_(pa.list_(pa.int64()))),
        ("findings", pa.list_(pa.struct([("index", pa.int64()), ("sentence", pa.string())]))),
        ("further", pa.int64()),
        ("refused", pa.string()),
    ]
)


def _checked(row: dict[str, Any]) -> Checked:
    if row["refused"] is not None:
        raise InvalidInput(row["refused"])
    return Checked(
        file=row["file"],
        rows=row["rows"],
        spans=tuple((first, last) for first, last in row["spans"]),
        findings=tuple(Finding(**finding) for finding in row["findings"]),
        further=row["further"],
    )
