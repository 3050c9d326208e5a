"""Ray Data: certification shared out over a pool of actors, the same rows as in one process.

The unit of work is a batch of consecutive images, cut the same way whatever the number of actors,
so that every row is computed by the same products as in `raycrt.Certifier`. A finished
batch is a Parquet file, written by the driver: a worker that dies loses or doubles no row, and a
run that was stopped certifies the missing batches only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy
from torch import Tensor

from raycrt.bounds.curvature import margin_curvature
from raycrt.certification import storage
from raycrt.certification.certifier import Certifier
from raycrt.certification.options import Options
from raycrt.data import Split
from raycrt.errors import require
from raycrt.networks.checkpoint import weights_hash
from raycrt.networks.network import Network
from raycrt.spec import Spec, identity, validate
from raycrt.spec.provenance import Training


def certify(
    network: Network,
    spec: Spec,
    split: Split,
    out: Path,
    *,
    curvature: Tensor | None = None,
    told: bool = True,
    training: Training | None = None,
    watch: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Certify every image of `split` with `spec.run.workers` actors; the manifest written to `out`.

    `curvature` is the network's proved margin curvature, if it is known. The manifest's model is
    null unless the network is `told` by `spec.model`, its training unless the weights are of
    `training`. `watch` is called with the number of rows of each batch as it finishes.

    Batches that an earlier run has left in `out` are taken up, unread, where its manifest has this
    format and the curvature that is proved now; else they are made again. `InvalidInput` where they
    are of another run.
    """
    digest = weights_hash(network)
    before = stored(out, digest, spec, told=told) or {}
    rows = out / storage.ROWS
    rows.mkdir(parents=True, exist_ok=True)
    stated = spec.model_dump(mode="json") | ({} if told else {"model": None})
    stated |= {} if training else {"train": None}
    began = time.monotonic()
    if curvature is None:
        curvature = margin_curvature(network)
    shared = {"schema_version": storage.SCHEMA_VERSION, "margin_curvature": curvature.tolist()}
    taken_up = all(before.get(key) == value for key, value in shared.items())
    size = spec.certify.batch_size
    pending = missing(out, spec, len(split)) if taken_up else list(range(0, len(split), size))
    done = len(split) - sum(min(size, len(split) - start) for start in pending)
    watch(done)
    if told:
        spec.save(out)
    facts = {
        "rows": len(split),
        "weights_sha256": digest,
        "region": spec.certify.region,
        "deployment": spec.certify.deployment,
        "margin_curvature": curvature.tolist(),
        "spec": stated,
        "training": training.model_dump(mode="json") if training else None,
    }
    storage.write_manifest(out, {"complete": False, **facts})
    if pending:
        for table in _run(network, curvature, spec, split, pending):
            storage.write_rows(_file(rows, table["index"][0].as_py()), table)
            watch(len(table))
    storage.check_complete(storage.read_rows(out, ("index",)), len(split))
    # Nobody has measured how long the rows of an earlier command took.
    facts["seconds"] = time.monotonic() - began if done == 0 else None
    storage.write_manifest(out, {"complete": True, **facts})
    return facts


def check(network: Network, spec: Spec) -> None:
    """Raise `InvalidInput` where `network` cannot be certified as `spec.certify` says."""
    Options.of(spec.certify).check(network)


def _run(
    network: Network, curvature: Tensor, spec: Spec, split: Split, pending: list[int]
) -> Iterator[pa.Table]:
    """The certificates of each pending batch, in the order in which they are finished."""
    arguments = {
        "network": ray.put(network.cpu()),
        "images": ray.put((split.images.numpy(), split.labels.numpy())),
        "curvature": ray.put(curvature.numpy()),
        "spec": spec,
    }
    batches = ray.data.from_items([{"start": s} for s in pending], override_num_blocks=len(pending))
    certified = batches.map_batches(
        _Certify,
        fn_constructor_kwargs=arguments,
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=min(spec.run.workers, len(pending))),
        num_cpus=_cpus(spec),
        num_gpus=spec.run.gpus_per_worker or None,
    )
    for block in certified.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield pa.table(block).cast(storage.SCHEMA)


def _cpus(spec: Spec) -> float:
    """CPUs for each actor: what was asked for, but leaving Ray Data a share for its own tasks."""
    available = float(ray.cluster_resources().get("CPU", 1))
    return min(spec.run.cpus_per_worker, max(0.25, (available - 0.5) / spec.run.workers))


class _Certify:
    """An actor: loads the model and its curvature once, then certifies batches."""

    def __init__(self, network: Any, images: Any, curvature: Any, spec: Spec) -> None:
        torch.set_num_threads(max(1, int(spec.run.cpus_per_worker)))
        self.images, self.labels = ray.get(images)
        self.size = spec.certify.batch_size
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.certifier = Certifier.of(
            ray.get(network).to(self.device),
            spec.certify,
            curvature=torch.from_numpy(ray.get(curvature).copy()),
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        start = int(batch["start"][0])
        chosen = slice(start, start + self.size)
        found = self.certifier(torch.tensor(self.images[chosen], device=self.device))
        return storage.to_table(found, start, self.labels[chosen])


def _file(rows: Path, start: int) -> Path:
    return rows / f"{start:09d}.parquet"


def missing(out: Path, spec: Spec, images: int) -> list[int]:
    """The first image of each batch of which `out` has no rows yet."""
    starts = range(0, images, spec.certify.batch_size)
    return [start for start in starts if not _file(out / storage.ROWS, start).is_file()]


def stored(out: Path, digest: str, spec: Spec, *, told: bool = True) -> dict[str, Any] | None:
    """The manifest of the certificates in `out`, complete or not; none where there are none yet.

    Rows of one table are of one run: `InvalidInput` where those in `out` are not of the weights of
    hash `digest`, or not of the images, the certification and, if `told`, the model of `spec`.
    """
    if not (out / storage.MANIFEST).is_file():
        rows = sorted((out / storage.ROWS).glob("*"))
        require(not rows, "rows have a manifest that says what they are of", directory=str(out))
        return None
    before = storage.read_manifest(out)
    require(
        before["weights_sha256"] == digest,
        "certificates in a directory are of the same weights",
        directory=str(out),
        held=before["weights_sha256"],
        asked=digest,
    )
    sections = before["spec"]
    require(
        (sections["model"] is not None) == told,
        "the models of certificates in a directory are all ones that a spec can say, or none is",
        directory=str(out),
    )
    held = validate({key: section for key, section in sections.items() if section is not None})
    keys = identity.CERTIFICATES if told else identity.CERTIFICATES[1:]
    identity.refuse_another(out, "certificates", held, spec, keys)
    return before
