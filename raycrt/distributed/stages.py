"""The stages of a run that commands call: they start Ray, show progress and write results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from ray.train import ControllerError
from torch.utils.tensorboard import SummaryWriter

from raycrt import data
from raycrt.bounds.curvature import EXAMPLES, FEW_CLASSES, margin_curvature
from raycrt.certification.table import storage as certificates
from raycrt.data import Reader
from raycrt.distributed import certification, room
from raycrt.distributed.session import session
from raycrt.distributed.training import train as training
from raycrt.errors import InvalidInput, require
from raycrt.networks import checkpoint
from raycrt.networks.network import Network
from raycrt.specs import ModelSpec, SearchSpec, Spec, TrainSpec, identity
from raycrt.specs.provenance import Rows, Training
from raycrt.system import progress, trackers
from raycrt.system.places import outputs, storage
from raycrt.system.places.storage import Place, is_remote
from raycrt.training.loop import Metrics, TrainingDiverged

# The metrics of an epoch that are printed; TensorBoard has all of them.
_PRINTED = ("loss", "train_accuracy", "train_robust", "curvature")


def train(spec: Spec, out: Place, *, hold_out: bool = False) -> None:
    """Train `spec` on training and validation rows and write the model into `out`.

    With `hold_out` the validation rows are not trained on, and `out/tensorboard` shows what is
    proved on them. If `out` holds a training of the same spec and rows, it continues from its last
    checkpoint, or is left as it is if it has finished; `InvalidInput` if `out` holds another one.

    `out/tensorboard` has the metrics of each epoch, and the hyper-parameters with the metrics of
    the last epoch. On Ctrl-C the current epoch is finished and saved as a checkpoint, whose path is
    printed; then KeyboardInterrupt is raised. If training diverges, the command prints the step at
    which it did and exits with code 1.
    """
    rows: Rows = "train" if hold_out else "fit"
    training.folder_of_rows(spec, out)
    with outputs.held(out):
        if _ended(spec, out, rows):
            print(f"this training is complete: {out / checkpoint.MODEL}")
            return
        data.require_training_rows(spec.data)
        _train(spec, out, rows)
    print(f"model: {out / checkpoint.MODEL}")


def _ended(spec: Spec, out: Place, rows: Rows) -> bool:
    """Whether this training has finished in `out`; `InvalidInput` if `out` holds another."""
    ended, kept = (out / checkpoint.MODEL).is_file(), training.last_checkpoint(out)
    for place in ([out] if ended else []) + ([kept] if kept else []):
        provenance = checkpoint.load_provenance(place)
        made = provenance.training
        if made is None:
            raise InvalidInput(f"{out} holds weights from elsewhere; give a training another --out")
        identity.refuse_another(out, "a training", provenance.within(spec), spec, identity.TRAINING)
        if made.rows != rows or (place == out and made.epoch < spec.train.epochs):
            held = made.sentence or "its training rows include the validation rows"
            raise InvalidInput(f"{out} holds another training: {held}; give this one another --out")
    if ended:
        checkpoint.load_model(out)
    return ended


def _train(spec: Spec, out: Place, rows: Rows) -> None:
    try:
        with session(), progress.shown("train", spec.train.epochs) as report:
            room.check(spec.run)
            spec.save(out)
            with (
                trackers.opened(
                    mlflow=spec.run.mlflow,
                    wandb=spec.run.wandb,
                    group=f"raycrt {spec.data.title}",
                    name=out.absolute().parent.name,
                    settings=hyper_parameters(spec),
                    directory=None if is_remote(out) else str(out.absolute()),
                ) as track,
                storage.mirrored(out / "tensorboard") as (folder, copy),
                SummaryWriter(folder) as board,
            ):
                _fit(spec, out, rows, board, copy, track, report)
    except KeyboardInterrupt:
        print(f"last checkpoint: {_last_checkpoint(spec, out)}")
        raise
    except TrainingDiverged as error:
        kept = training.last_checkpoint(out)
        sys.exit(f"raycrt: {error}; last checkpoint: {kept or 'none'}")


def _fit(
    spec: Spec,
    out: Place,
    rows: Rows,
    board: SummaryWriter,
    copy: Callable[[], None],
    track: trackers.Log,
    report: progress.Report,
) -> None:
    """Train; the metrics of each epoch go to `board`, whose files `copy` keeps, `track` and
    `report`."""
    board.add_text("spec", f"```yaml\n{spec.to_yaml()}```")
    last: Metrics = {}

    def watch(epoch: int, metrics: Metrics) -> None:
        steps = {name: value for name, value in metrics.items() if "/" not in name}
        printed = {name: steps[name] for name in _PRINTED if name in steps}
        report(epoch, " ".join(f"{name} {value:.4g}" for name, value in printed.items()))
        last.clear()
        for name, value in metrics.items():
            own = f"train/{name.removeprefix('train_')}"
            last[own if name in steps else name] = value
        # A full disk ends a training at its next checkpoint, not here.
        with suppress(OSError):
            for tag, value in last.items():
                board.add_scalar(tag, value, epoch)
            board.flush()
        copy()
        track(epoch, last)

    while True:
        try:
            training.fit(spec, out, rows=rows, watch=watch)
            break
        except ControllerError as error:
            if not (room.may_grow() and training.waited(error)):
                raise
    board.add_hparams(hyper_parameters(spec), last, run_name=".", global_step=spec.train.epochs)


def _last_checkpoint(spec: Spec, out: Place) -> str:
    kept = training.last_checkpoint(out)
    state = checkpoint.load_state(kept) if kept else None
    return f"{kept} (epoch {state['epoch']} of {spec.train.epochs})" if state else "none yet"


def hyper_parameters(spec: Spec) -> dict[str, bool | int | float | str]:
    """The values of the spec that a training depends on, except the data, by their paths."""

    def leaves(tree: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{path}{key}.")
            else:
                yield path + key, value if isinstance(value, bool | int | float) else str(value)

    kept = spec.model_dump(
        mode="json", include={"model", "train", "run"}, exclude={"run": {"mlflow", "wandb"}}
    )
    return dict(leaves(kept, ""))


def adopt(
    spec: Spec,
    network: Network,
    model: ModelSpec | None,
    trained: Place,
    made: Training | None = None,
) -> Spec:
    """`spec` for a network from elsewhere: with its `model`, and with the training that `made` it.

    The spec and the weights are written into `trained` for the checker to read; nothing is written
    if `model` is None, as no spec describes the network. Raises `InvalidInput` if `trained`
    holds another model, or a training that has not finished.
    """
    held = (trained / checkpoint.MODEL).is_file()
    if held:
        kept, own = checkpoint.load_model(trained)
        if checkpoint.weights_hash(kept) != checkpoint.weights_hash(network) or model is None:
            raise InvalidInput(f"{trained} holds another model; give another model another --out")
        asked = own.override({"model": model.model_dump()})
        identity.refuse_another(trained, "a model", own, asked, ("model",))
    require(
        held or not (trained / "spec.yaml").is_file(),
        "the train directory of the output holds no unfinished training",
        directory=str(trained),
    )
    if model is None:
        return spec
    # A recipe does not describe how weights from elsewhere were trained or searched for.
    values: dict[str, Any] = {
        "model": model.model_dump(),
        "train": TrainSpec().model_dump(),
        "search": SearchSpec().model_dump(),
    }
    if made is not None:
        values |= {"train": made.train.model_dump(), "run.seed": made.run.seed}
    spec = spec.override(values)
    if not held:
        beside = spec if made is None else spec.model_copy(update={"data": made.data})
        checkpoint.save_model(outputs.made(trained), network, beside, made)
    return spec


def certify(
    spec: Spec,
    network: Network,
    out: Place,
    *,
    reader: Reader | None = None,
    spec_describes_model: bool = True,
    made: Training | None = None,
) -> dict[str, Any]:
    """Certify the test images, print which rows are not proved and why; return the manifest.

    `reader` has these images if they have been opened. `spec_describes_model` is false for a
    network that `spec.model` cannot describe; `made` is the training of its weights, if known.
    Certificates of this run that `out` already holds are kept and completed; `InvalidInput` if it
    holds those of another run.
    """
    certification.check(network, spec)
    reader = data.test_rows(spec.data) if reader is None else reader
    digest = checkpoint.weights_hash(network)
    with outputs.held(out):
        manifest = certification.stored(
            out, digest, spec, spec_describes_model=spec_describes_model
        )
        if not manifest.get("complete") or certificates.count(out) != len(reader):
            examples = None
            if network.classes > FEW_CLASSES:
                examples = torch.from_numpy(reader.first(EXAMPLES).images)
            with session():
                room.check(spec.run)
                curvature = margin_curvature(network, examples, progress.over)
                with progress.shown("certify", len(reader)) as report:
                    manifest = certification.certify(
                        network,
                        spec,
                        reader,
                        out,
                        digest=digest,
                        curvature=curvature,
                        spec_describes_model=spec_describes_model,
                        training=made,
                        watch=lambda found: report(found.done, found.note(spec.certify.at[0])),
                    )
            place = f"certificates: {out}"
        else:
            certification.check_data(manifest, out, reader)
            place = f"the {len(reader)} certificates of this model are complete: {out}"
    exception = [made.sentence] if made and made.sentence else []
    print("\n".join([place, *exception, *certificates.remarks(certificates.statuses(out))]))
    return manifest
