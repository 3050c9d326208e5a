"""The stages of a run as commands see them: Ray started, progress shown, results on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from raycrt import certificates, checkpoint, data, progress
from raycrt.curvature import margin_curvature
from raycrt.distributed import certification
from raycrt.distributed import train as training
from raycrt.distributed.session import session
from raycrt.errors import require
from raycrt.network import Network
from raycrt.spec import ModelSpec, Spec
from raycrt.training import Metrics, TrainingDiverged

# Names of runs in a directory, and the rows that they train on.
_ALL_ROWS, _HELD_OUT = ("train", "fit"), ("hold-out", "train")
# What of an epoch's numbers is shown while it trains; TensorBoard has all of them.
_TOLD = ("loss", "train_accuracy", "train_robust", "curvature")


def train(spec: Spec, out: Path, *, hold_out: bool = False) -> None:
    """Train `spec` on training and validation rows; the model is in `out` afterwards.

    With `hold_out` the validation rows are not trained on, and `out/tensorboard` tells what is
    proved on them. It is a run of its own: checkpoints of the other are not taken up.

    `out/tensorboard` follows the run epoch by epoch; its hyper-parameters stand beside the last
    epoch's numbers there. Ctrl-C is raised when its epoch has ended and has a checkpoint, which is
    named. Where training diverges, the command ends with exit code 1 and the step at which it did.
    """
    out.mkdir(parents=True, exist_ok=True)
    name, rows = _HELD_OUT if hold_out else _ALL_ROWS
    try:
        with (
            session(),
            progress.shown("train", spec.train.epochs) as tell,
            SummaryWriter(out / "tensorboard") as board,
        ):
            board.add_text("spec", f"```yaml\n{spec.to_yaml()}```")
            last: Metrics = {}

            def watch(epoch: int, metrics: Metrics) -> None:
                steps = {name: value for name, value in metrics.items() if "/" not in name}
                told = {name: steps[name] for name in _TOLD if name in steps}
                tell(epoch, " ".join(f"{name} {value:.4g}" for name, value in told.items()))
                last.clear()
                for name, value in metrics.items():
                    tag = f"train/{name}" if name in steps else name
                    board.add_scalar(tag, value, epoch)
                    last[tag] = value

            training.fit(spec, out, name=name, rows=rows, watch=watch)
            board.add_hparams(
                hyper_parameters(spec), last, run_name=".", global_step=spec.train.epochs
            )
    except KeyboardInterrupt:
        print(f"last checkpoint: {_told_of_checkpoint(spec, out, name)}")
        raise
    except TrainingDiverged as error:
        kept = training.last_checkpoint(out, name)
        sys.exit(f"raycrt: {error}; last checkpoint: {kept or 'none'}")
    print(f"model: {out / checkpoint.MODEL}")


def _told_of_checkpoint(spec: Spec, out: Path, name: str) -> str:
    kept = training.last_checkpoint(out, name)
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


def adopt(spec: Spec, network: Network, told: ModelSpec | None, trained: Path) -> Spec:
    """`spec` with `told`, what the network from elsewhere is, as its model. It is written into
    `trained` with the weights, for the checker to read; nothing is where no spec tells the model.

    Raises `InvalidInput` where `trained` holds another model.
    """
    if (trained / checkpoint.MODEL).is_file():
        held, own = checkpoint.load_model(trained)
        require(
            checkpoint.weights_hash(held) == checkpoint.weights_hash(network) and own.model == told,
            "the train directory of the output is missing or holds the model that is certified",
            directory=str(trained),
        )
    if told is None:
        return spec
    # What a training would do with the model must not contradict it.
    neutral = {"train.linear_layers": 0, "train.components": None}
    spec = spec.override({"model": told.model_dump(), **neutral})
    if not (trained / checkpoint.MODEL).is_file():
        checkpoint.save_model(trained, network, spec)
    return spec


def certify(spec: Spec, network: Network, out: Path, *, told: bool = True) -> dict[str, Any]:
    """Certify the test images; the manifest of the table in `out`, `told` the model by `spec`.

    What rows are not proved, and why, is printed.
    """
    certification.check(network, spec)
    test = data.load(spec.data).test
    curvature = margin_curvature(network, test.images, progress.over)
    done = 0
    with session(), progress.shown("certify", len(test)) as tell:

        def watch(rows: int) -> None:
            nonlocal done
            done += rows
            tell(done, "")

        manifest = certification.certify(
            network,
            spec,
            test,
            out,
            curvature=curvature,
            told=told,
            watch=watch,
        )
    remarks = certificates.remarks(certificates.read_rows(out, ("index", "status")))
    print("\n".join([f"certificates: {out}", *remarks]))
    return manifest
