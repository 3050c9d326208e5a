"""The stages of a run as commands see them: Ray started, progress shown, results on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raycrt import checkpoint, data, progress
from raycrt.distributed import certification
from raycrt.distributed import train as training
from raycrt.distributed.session import session
from raycrt.network import Network
from raycrt.spec import Spec
from raycrt.training import Metrics


def train(spec: Spec, out: Path) -> None:
    """Train `spec` on training and validation rows; the model is in `out` afterwards."""
    out.mkdir(parents=True, exist_ok=True)
    with session(), progress.bars() as bar:
        task = bar.add_task("train", total=spec.train.epochs, note="starting workers")

        def watch(epoch: int, metrics: Metrics) -> None:
            note = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            bar.update(task, completed=epoch, note=note)

        training.fit(spec, out, watch=watch)
    print(f"model: {out / checkpoint.MODEL}")


def certify(spec: Spec, network: Network, out: Path) -> dict[str, Any]:
    """Certify the test images; the manifest of the table in `out`."""
    test = data.load(spec.data).test
    with session(), progress.bars() as bar:
        task = bar.add_task("certify", total=len(test), note="")
        manifest = certification.certify(
            network, spec, test, out, watch=lambda rows: bar.advance(task, rows)
        )
    print(f"certificates: {out}")
    return manifest
