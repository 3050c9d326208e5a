"""The independent checker on a pool of Ray Data actors.

The unit of work is one Parquet file of rows, checked by the code that checks it in one process
(`raycrt.verify.checker`), so the findings are the same. On a cluster the files must lie on storage
that all nodes share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from raycrt.system.storage import Place, place
from raycrt.verify.checker import Checked, Checker, Finding


def check_files(checker: Checker, files: list[Place], *, workers: int) -> list[Checked]:
    """Check every file with at most `workers` actors; the results are in the order of `files`."""
    if not files:
        return []
    items = [{"position": i, "file": str(file.resolve())} for i, file in enumerate(files)]
    actors = min(workers, len(files))
    checked = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Check,
        fn_constructor_kwargs={"checker": ray.put(checker)},
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=actors),
        num_cpus=_cpus(actors),
    )
    blocks = checked.iter_batches(batch_size=None, batch_format="pyarrow")
    rows = [row for block in blocks for row in pa.table(block).to_pylist()]
    return [_checked(row) for row in sorted(rows, key=lambda row: row["position"])]


def _cpus(actors: int) -> float:
    """CPUs for each actor, one at most, leaving Ray Data a share for its own tasks."""
    available = float(ray.cluster_resources().get("CPU", 1))
    return min(1.0, max(0.25, (available - 0.5) / actors))


class _Check:
    """An actor: holds the model, its proved curvature and the images, and checks files."""

    def __init__(self, checker: Any) -> None:
        self.checker: Checker = ray.get(checker)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        position, file = int(batch["position"][0]), place(str(batch["file"][0]))
        found = self.checker.check_file(file)
        row = {
            "position": position,
            "indices": found.indices.tolist(),
            "failed": [finding.index for finding in found.findings],
            "sentences": [finding.sentence for finding in found.findings],
        }
        return pa.Table.from_pylist([row], schema=_SCHEMA)


_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("indices", pa.list_(pa.int64())),
        ("failed", pa.list_(pa.int64())),
        ("sentences", pa.list_(pa.string())),
    ]
)


def _checked(row: dict[str, Any]) -> Checked:
    pairs = zip(row["failed"], row["sentences"], strict=True)
    return Checked(
        indices=np.array(row["indices"], np.int64),
        findings=tuple(Finding(index=index, sentence=text) for index, text in pairs),
    )
