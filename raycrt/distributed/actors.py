"""Ray Data actors that certify shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy
from torch import Tensor

from raycrt.certification.certifier import Certifier
from raycrt.certification.table import storage
from raycrt.certification.table.journal import Beginnings
from raycrt.certification.table.shards import Shard, ShardCertifier, Written
from raycrt.data import Reader
from raycrt.distributed import room
from raycrt.errors import InvalidInput
from raycrt.networks.network import Network
from raycrt.specs import Spec
from raycrt.system import devices
from raycrt.system.places import outputs, reading
from raycrt.system.places.storage import Place

# Processes that may end while they load a model, one after the other.
_BEGINNINGS = 10


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a shard was not certified, and whether because the store of its data cannot be asked."""

    sentence: str
    out_of_reach: bool


def run(
    network: Network,
    curvature: Tensor,
    spec: Spec,
    reader: Reader,
    out: Place,
    pending: list[Shard],
) -> Iterator[Written | Refusal]:
    """What is told of each pending shard, in the order in which they finish."""
    arguments = {
        "network": ray.put(network.cpu()),
        "curvature": ray.put(curvature.numpy()),
        "spec": spec,
        "reader": ray.put(reader),
        "out": out.absolute(),
    }
    found = ray.data.from_items(
        [asdict(shard) for shard in pending], override_num_blocks=len(pending)
    )
    certified = found.map_batches(
        Certify,
        fn_constructor_kwargs=arguments,
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(
            min_size=min(spec.run.least, len(pending)), max_size=min(spec.run.most, len(pending))
        ),
        num_cpus=room.for_actor(spec.run.cpus_per_worker, spec.run.least),
        num_gpus=spec.run.gpus_per_worker or None,
        resources=spec.run.resources or None,
    )
    for block in certified.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from told(pa.table(block))


def told(table: pa.Table) -> Iterator[Written | Refusal]:
    """What rows of the schema `_WRITTEN` say; `OSError` where one says that files can no longer be
    written, which ends all others too."""
    for row in table.to_pylist():
        refused, disk, out_of_reach = (row.pop(key) for key in ("refused", "disk", "out_of_reach"))
        if disk is not None:
            raise OSError(disk, os.strerror(disk), refused)
        if refused:
            yield Refusal(sentence=refused, out_of_reach=bool(out_of_reach))
        else:
            yield Written(**{**row, "lost": tuple(row["lost"])})


_WRITTEN = pa.schema(
    [
        ("first", pa.int64()),
        ("rows", pa.int64()),
        ("right", pa.int64()),
        ("certified", pa.int64()),
        ("sha256", pa.string()),
        ("lost", pa.list_(pa.int64())),
        ("refused", pa.string()),
        ("out_of_reach", pa.bool_()),
        ("disk", pa.int64()),
    ]
)


class Certify:
    """An actor: loads the model and its curvature once, then certifies shards."""

    def __init__(self, network: Any, curvature: Any, spec: Spec, reader: Any, out: Place) -> None:
        self.shards: ShardCertifier | None = None
        beginnings = Beginnings(out / storage.ROWS)
        if beginnings.note() >= _BEGINNINGS:
            # Another one would end too: this one stays and says so.
            return
        torch.set_num_threads(max(1, int(spec.run.cpus_per_worker)))
        certifier = Certifier.of(
            ray.get(network).to(devices.of(spec.run.gpus_per_worker)),
            spec.certify,
            curvature=torch.from_numpy(ray.get(curvature).copy()),
        )
        self.shards = ShardCertifier(
            certifier, ray.get(reader), out, batch=spec.certify.batch_size, at=spec.certify.at[0]
        )
        beginnings.end()

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        shard = Shard(first=int(batch["first"][0]), last=int(batch["last"][0]))
        if self.shards is None:
            said = f"{_BEGINNINGS} processes ended before they could certify a row"
            return pa.Table.from_pylist([{"first": shard.first, "refused": said}], schema=_WRITTEN)
        try:
            row = asdict(self.shards(shard))
        except InvalidInput as error:
            lost = reading.out_of_reach(error)
            row = {"first": shard.first, "refused": str(error), "out_of_reach": lost}
        except OSError as error:
            if (full := outputs.disk_error(error)) is None:
                raise
            place = str(full.filename or self.shards.out)
            row = {"first": shard.first, "refused": place, "disk": full.errno}
        return pa.Table.from_pylist([row], schema=_WRITTEN)
