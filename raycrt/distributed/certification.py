"""Certification on a pool of Ray Data actors, with the same rows as in one process.

The unit of work is a shard of consecutive rows: an actor reads, certifies and writes it
(`raycrt.certification.table.shards`). Only the numbers of rows and counts pass through the driver.
A worker that dies neither loses nor duplicates a row, and a run that is resumed certifies only the
missing shards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raycrt.certification.options import Options
from raycrt.certification.table import manifest, shards, storage
from raycrt.certification.table.journal import Beginnings
from raycrt.certification.table.shards import Shard
from raycrt.data import Reader
from raycrt.distributed import actors
from raycrt.distributed.actors import Refusal
from raycrt.errors import InvalidInput, require
from raycrt.networks.network import Network
from raycrt.specs import Spec, identity, validate
from raycrt.specs.provenance import Training
from raycrt.system.places.storage import Place

# Shards whose data was out of reach, after which no other is tried.
_OUT_OF_REACH = 3


@dataclass(kw_only=True)
class Progress:
    """The number of rows that are `done`, of which `counted` by this command, and of these the
    numbers of those `right`ly predicted and `certified` at the first stated radius."""

    done: int
    counted: int = 0
    right: int = 0
    certified: int = 0

    def note(self, at: float) -> str:
        """Shares of the rows that this command certified, in a few words; `at` is that radius."""
        if not self.counted:
            return ""
        clean, proved = (100 * count / self.counted for count in (self.right, self.certified))
        of = "" if self.counted == self.done else f", of the {self.counted} rows of this command"
        return f"clean {clean:.2f} %, certified {proved:.2f} % at {at:g}{of}"


def certify(
    network: Network,
    spec: Spec,
    reader: Reader,
    out: Place,
    *,
    digest: str,
    curvature: Tensor,
    spec_describes_model: bool = True,
    training: Training | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Certify every row of `reader` with `spec.run.workers` actors; return the manifest of `out`.

    `digest` is the hash of the network's weights, `curvature` (classes, classes) its proved margin
    curvature. The manifest's model is null unless `spec_describes_model`, and its training is
    null if `training`, that of the weights, is unknown. `watch` is called as each shard is written.

    Shards that an earlier run left in `out` are kept if its manifest has this format and the same
    curvature; of their rows the first is compared with the data. Otherwise they are certified
    again. `InvalidInput` if they belong to another run or other data, and, once all other rows are
    written, if rows cannot be read or end the process that certifies them.
    """
    before = stored(out, digest, spec, spec_describes_model=spec_describes_model)
    (out / storage.ROWS).mkdir(parents=True, exist_ok=True)
    Beginnings(out / storage.ROWS).end()
    began = time.monotonic()
    shared = {"schema_version": storage.SCHEMA_VERSION, "margin_curvature": curvature.tolist()}
    batch = spec.certify.batch_size
    if all(before.get(key) == value for key, value in shared.items()):
        size = _stated_size(before, batch)
    else:
        # The shards of other rows may be others, and a row is written once.
        for file in storage.row_files(out):
            file.unlink()
        size = shards.rows_of_a_shard(len(reader), batch)
    every = shards.shards(len(reader), size)
    kept = [shard for shard in every if shards.is_written(shard, out)]
    pending = sorted(set(every) - set(kept), key=lambda shard: shard.first)
    shards.refuse_other_rows(kept, out, reader, stated=before.get("rows"))
    progress = Progress(done=len(reader) - sum(shard.last - shard.first for shard in pending))
    before_this = progress.done
    watch(progress)
    if spec_describes_model:
        spec.save(out)
    facts = manifest.facts(
        spec,
        rows=len(reader),
        rows_of_a_shard=size,
        shape=reader.shape,
        digest=digest,
        curvature=curvature,
        training=training,
        spec_describes_model=spec_describes_model,
    )
    storage.write_manifest(out, {"complete": False, **facts})
    failures: list[str] = []
    out_of_reach = 0
    if pending:
        for written in actors.run(network, curvature, spec, reader, out, pending):
            if isinstance(written, Refusal):
                failures.append(written.sentence)
                out_of_reach += written.out_of_reach
                # Each shard would wait for the store as long as these have.
                if out_of_reach == _OUT_OF_REACH:
                    break
                continue
            progress.done += written.rows
            progress.counted += written.rows
            progress.right += written.right
            progress.certified += written.certified
            watch(progress)
            failures += [f"row {row} ends the process that certifies it" for row in written.lost]
    if failures:
        more = f", and {len(failures) - 3} more" if len(failures) > 3 else ""
        done = "the shards that are done" if out_of_reach == _OUT_OF_REACH else "all other shards"
        raise InvalidInput(
            f"every row must be certified, but {'; '.join(failures[:3])}{more}; {done} are in {out}"
        )
    check_complete(every, out)
    # The time taken by the rows of an earlier command is unknown.
    facts["seconds"] = time.monotonic() - began if before_this == 0 else None
    storage.write_manifest(out, {"complete": True, **facts})
    return facts


def _stated_size(manifest: dict[str, Any], batch: int) -> int:
    """The number of rows of a shard that a manifest states."""
    stated = manifest.get("rows_of_a_shard")
    if type(stated) is not int or stated <= 0 or stated % batch:
        raise InvalidInput(
            f"a shard must have whole batches of {batch} rows, but the manifest states {stated}"
        )
    return stated


def check_data(manifest: dict[str, Any], out: Place, reader: Reader) -> None:
    """Raise `InvalidInput` where the data is no longer that of the complete certificates in `out`:
    the first row of each file is compared."""
    if "rows_of_a_shard" in manifest:  # Not in those of earlier formats.
        size = _stated_size(manifest, manifest["spec"]["certify"]["batch_size"])
        every = shards.shards(len(reader), size)
        kept = [shard for shard in every if shards.is_written(shard, out)]
        shards.refuse_other_rows(kept, out, reader, stated=manifest["rows"])


def check(network: Network, spec: Spec) -> None:
    """Raise `InvalidInput` if `network` cannot be certified as `spec.certify` states."""
    Options.of(spec.certify).check(network)


def check_complete(every: list[Shard], out: Place) -> None:
    """Raise `InvalidInput` unless the rows in `out` are those of the shards, each once; remove what
    processes that died have left."""
    files = storage.row_files(out)
    missing = [shard for shard in every if not shards.is_written(shard, out)]
    require(not missing, "each shard is written with all of its rows", missing=missing[:3])
    others = sorted(set(files) - {shard.file(out) for shard in every})
    require(not others, "rows are in the files of their shards", found=[str(f) for f in others[:3]])
    for file in (out / storage.ROWS).iterdir():
        if file.name.startswith("."):
            file.unlink(missing_ok=True)


def stored(
    out: Place, digest: str, spec: Spec, *, spec_describes_model: bool = True
) -> dict[str, Any]:
    """The manifest of the certificates in `out`, complete or not; empty if there are none yet.

    All rows of a table belong to one run: `InvalidInput` unless those in `out` are of the weights
    with the hash `digest`, and of the images, the certification and, if `spec_describes_model`, the
    model of `spec`.
    """
    if not (out / storage.MANIFEST).is_file():
        rows = sorted((out / storage.ROWS).glob("*"))
        require(not rows, "rows have a manifest that names their run", directory=str(out))
        return {}
    before = storage.read_manifest(out)
    lacking = {"weights_sha256", "spec", "rows"} - set(before)
    require(
        not lacking and isinstance(before["spec"], dict) and "model" in before["spec"],
        "a manifest states what all rows share",
        directory=str(out),
        lacking=sorted(lacking),
    )
    require(
        before["weights_sha256"] == digest,
        "all certificates in a directory are of the same weights",
        directory=str(out),
        held=before["weights_sha256"],
        asked=digest,
    )
    sections = before["spec"]
    require(
        (sections["model"] is not None) == spec_describes_model,
        "all certificates in a directory are of one model, which a spec describes or does not",
        directory=str(out),
    )
    held = validate({key: section for key, section in sections.items() if section is not None})
    keys = identity.CERTIFICATES if spec_describes_model else identity.CERTIFICATES[1:]
    identity.refuse_another(out, "certificates", held, spec, keys)
    return before
