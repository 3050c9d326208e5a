"""A run on disk, written by a program: a model, its rows and their certificates."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from raycrt import data
from raycrt.api.rows import Rows, split_of
from raycrt.api.training import listed
from raycrt.certification.certifier import Certifier
from raycrt.certification.options import Options
from raycrt.certification.table import manifest, storage
from raycrt.errors import require
from raycrt.networks import checkpoint
from raycrt.specs import Spec
from raycrt.system.places import outputs
from raycrt.system.places.storage import Place, given

ROWS = "rows.npz"


def save(directory: str | Path, model: nn.Module, rows: Rows, **options: Any) -> Place:
    """Certify `rows` in this process and write the run into a new `directory`, a path or a URI;
    return its place.

    The run is what `raycrt verify`, `raycrt.verify` and `raycrt report` read: the weights and the
    layers of `model` in `train/`, the rows in `rows.npz`, and their certificates in
    `certificates/`. `model` and `rows` are as in `raycrt.train`, but labels need not have every
    class. `options` are keys of a recipe's section `certify`: at, region, deployment, steps,
    batch_size; full radii are proved, up to the solver's tolerance.

    Raises `InvalidInput` before any work starts where a value or the model does not fit, or where
    the directory holds files.
    """
    out = given(directory)
    split = split_of(rows)
    require(
        not out.exists() or not any(out.iterdir()),
        "a run is written into a new directory",
        directory=str(out),
    )
    spec = Spec().override({f"certify.{key}": value for key, value in options.items()})
    spec, network = listed(model, spec, split, path=str(out.absolute() / ROWS))
    network = network.cpu()
    Options.of(spec.certify).check(network)
    with outputs.held(outputs.made(out / "certificates")):
        outputs.write_atomically(out / ROWS, _as_npz(split, data.class_names(spec.data)))
        checkpoint.save_model(out / "train", network, spec)
        _certify(out / "certificates", network, spec, split)
    return out


def _as_npz(split: data.Split, names: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        test_images=split.images.numpy(),
        test_labels=split.labels.numpy(),
        class_names=np.array(names),
    )
    return buffer.getvalue()


def _certify(out: Place, network: Any, spec: Spec, split: data.Split) -> None:
    began = time.monotonic()
    certifier = Certifier.of(network, spec.certify)
    facts = manifest.facts(
        spec,
        rows=len(split),
        rows_of_a_shard=certifier.batch_size,
        shape=tuple(split.images.shape[1:]),
        digest=checkpoint.weights_hash(network),
        curvature=certifier.curvature,
        training=None,
    )
    (out / storage.ROWS).mkdir(parents=True, exist_ok=True)
    storage.write_manifest(out, {"complete": False, **facts})
    first = 0
    for found in certifier.batches(split.images):
        rows = split.take(slice(first, first + len(found)))
        table = storage.to_table(found, first, rows.labels.numpy(), rows.images.numpy())
        storage.write_rows(out / storage.ROWS / f"{first:09d}.parquet", table)
        first += len(found)
    storage.write_manifest(out, {"complete": True, **facts, "seconds": time.monotonic() - began})
