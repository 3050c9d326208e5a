"""The stages of a run as commands see them: Ray started, progress shown, results on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.train import ControllerError
from torch.utils.tensorboard import SummaryWriter

from raycrt import data
from raycrt.bounds.curvature import margin_curvature
from raycrt.certification import storage
from raycrt.distributed import certification, room
from raycrt.distributed import train as training
from raycrt.distributed.session import session
from raycrt.errors import InvalidInput, require
from raycrt.networks import checkpoint
from raycrt.networks.network import Network
from raycrt.spec import ModelSpec, SearchSpec, Spec, TrainSpec, identity
from raycrt.spec.provenance import Rows, Training
from raycrt.system import outputs, progress
from raycrt.training.loop import Metrics, TrainingDiverged

# What of an epoch's numbers is shown while it trains; TensorBoard has all of them.
_TOLD = ("loss", "train_accuracy", "train_robust", "curvature")


def train(spec: Spec, out: Path, *, hold_out: bool = False) -> None:
    """Train `spec` on training and validation rows; the model is in `out` afterwards.

    With `hold_out` the validation rows are not trained on, and `out/tensorboard` tells what is
    proved on them. A training of the same spec and rows that `out` holds is taken up from its last
    checkpoint, or left as it is where it has ended; `InvalidInput` where `out` holds another.

    `out/tensorboard` follows the run epoch by epoch; its hyper-parameters stand beside the last
    epoch's numbers there. Ctrl-C is raised when its epoch has ended and has a checkpoint, which is
    named. Where training diverges, the command ends with exit code 1 and the step at which it did.
    """
    rows: Rows = "train" if hold_out else "fit"
    with outputs.held(out):
        if _ended(spec, out, rows):
            print(f"this training is complete: {out / checkpoint.MODEL}")
            return
        _train(spec, out, rows)
    print(f"model: {out / checkpoint.MODEL}")


def _ended(spec: Spec, out: Path, rows: Rows) -> bool:
    """Whether `out` holds this training at its end; `InvalidInput` where it holds another."""
    ended, kept = (out / checkpoint.MODEL).is_file(), training.last_checkpoint(out)
    for place in ([out] if ended else []) + ([kept] if kept else []):
        said = checkpoint.load_provenance(place)
        made = said.training
        if made is None:
            raise InvalidInput(f"{out} holds weights from elsewhere; give a training another --out")
        identity.refuse_another(out, "a training", said.within(spec), spec, identity.TRAINING)
        if made.rows != rows or (place == out and made.epoch < spec.train.epochs):
            held = made.sentence or "it is on the validation rows too"
            raise InvalidInput(f"{out} holds another training: {held}; give this one another --out")
    if ended:
        checkpoint.load_model(out)
    return ended


def _train(spec: Spec, out: Path, rows: Rows) -> None:
    try:
        with session(), progress.shown("train", spec.train.epochs) as tell:
            room.check(spec.run)
            spec.save(out)
            with SummaryWriter(out / "tensorboard") as board:
                _followed(spec, out, rows, board, tell)
    except KeyboardInterrupt:
        print(f"last checkpoint: {_told_of_checkpoint(spec, out)}")
        raise
    except TrainingDiverged as error:
        kept = training.last_checkpoint(out)
        sys.exit(f"raycrt: {error}; last checkpoint: {kept or 'none'}")


def _followed(spec: Spec, out: Path, rows: Rows, board: SummaryWriter, tell: progress.Tell) -> None:
    """Train and tell `board` and `tell` of each epoch."""
    board.add_text("spec", f"```yaml\n{spec.to_yaml()}```")
    last: Metrics = {}

    def watch(epoch: int, metrics: Metrics) -> None:
        steps = {name: value for name, value in metrics.items() if "/" not in name}
        told = {name: steps[name] for name in _TOLD if name in steps}
        tell(epoch, " ".join(f"{name} {value:.4g}" for name, value in told.items()))
        last.clear()
        for name, value in metrics.items():
            last[f"train/{name}" if name in steps else name] = value
        # A full disk ends a training at a checkpoint, if it is still full then.
        with suppress(OSError):
            for tag, value in last.items():
                board.add_scalar(tag, value, epoch)

    while True:
        try:
            training.fit(spec, out, rows=rows, watch=watch)
            break
        except ControllerError as error:
            if not (room.may_grow() and training.waited(error)):
                raise
    board.add_hparams(hyper_parameters(spec), last, run_name=".", global_step=spec.train.epochs)


def _told_of_checkpoint(spec: Spec, out: Path) -> str:
    kept = training.last_checkpoint(out)
    state = checkpoint.load_state(kept) if kept else None
    return f"{kept} (epoch {state['epoch']} of {spec.train.epochs})" if state else "none yet"


def hyper_parameters(spec: Spec) -> dict[str, bool | int | float | str]:
    """All that a training depends on but its data, by the paths of the spec."""

    def leaves(tree: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{path}{key}.")
            else:
                yield path + key, value if isinstance(value, bool | int | float) else str(value)

    return dict(leaves(spec.model_dump(mode="json", include={"model", "train", "run"}), ""))


def adopt(
    spec: Spec,
    network: Network,
    told: ModelSpec | None,
    trained: Path,
    made: Training | None = None,
) -> Spec:
    """`spec` with what the network from elsewhere is: `told` as its model, `made` as its training.

    It is written into `trained` with the weights, for the checker to read; nothing is where no
    spec tells the model. Raises `InvalidInput` where `trained` holds another model, or one whose
    training is still to end.
    """
    held = (trained / checkpoint.MODEL).is_file()
    if held:
        kept, own = checkpoint.load_model(trained)
        if checkpoint.weights_hash(kept) != checkpoint.weights_hash(network) or told is None:
            raise InvalidInput(f"{trained} holds another model; give another model another --out")
        asked = own.override({"model": told.model_dump()})
        identity.refuse_another(trained, "a model", own, asked, ("model",))
    require(
        held or not (trained / "spec.yaml").is_file(),
        "the train directory of the output holds no training that has not ended",
        directory=str(trained),
    )
    if told is None:
        return spec
    # A recipe says nothing of weights that it has not trained, nor of their search.
    values: dict[str, Any] = {
        "model": told.model_dump(),
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
    out: Path,
    *,
    told: bool = True,
    made: Training | None = None,
) -> dict[str, Any]:
    """Certify the test images; the manifest of the table in `out`, `told` the model by `spec`.

    `made` is what trained the network, if that is known. What rows are not proved, and why, is
    printed. Certificates of this run that `out` holds are completed; `InvalidInput` where it holds
    others.
    """
    certification.check(network, spec)
    test = data.load(spec.data).test
    digest = checkpoint.weights_hash(network)
    place = f"certificates: {out}"
    with outputs.held(out):
        manifest = certification.stored(out, digest, spec, told=told)
        whole = manifest is not None and manifest["complete"]
        if manifest is None or not whole or certification.missing(out, spec, len(test)):
            manifest = _certify(spec, network, test, out, told, made)
        else:
            place = f"the {len(test)} certificates of this model are complete: {out}"
    remarks = storage.remarks(storage.read_rows(out, ("index", "status")))
    said = [made.sentence] if made and made.sentence else []
    print("\n".join([place, *said, *remarks]))
    return manifest


def _certify(
    spec: Spec,
    network: Network,
    test: data.Split,
    out: Path,
    told: bool,
    made: Training | None,
) -> dict[str, Any]:
    curvature = margin_curvature(network, test.images, progress.over)
    done = 0
    with session(), progress.shown("certify", len(test)) as tell:
        room.check(spec.run)

        def watch(rows: int) -> None:
            nonlocal done
            done += rows
            tell(done, "")

        return certification.certify(
            network,
            spec,
            test,
            out,
            curvature=curvature,
            told=told,
            training=made,
            watch=watch,
        )
