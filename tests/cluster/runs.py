"""What two runs of the pipeline have in common, wherever they ran."""

from __future__ import annotations

from pathlib import Path

from raycrt.certification.table import storage
from raycrt.networks.checkpoint import load_model, weights_hash


def check(there: Path, here: Path) -> None:
    """The two runs have the same winner, weights and rows."""
    winners = [(run / "search" / "best.yaml").read_text() for run in (there, here)]
    assert winners[0] == winners[1]
    models = [load_model(run / "train")[0] for run in (there, here)]
    assert weights_hash(models[0]) == weights_hash(models[1])
    tables = [storage.read(run / "certificates")[0] for run in (there, here)]
    assert tables[0].num_rows > 0
    assert tables[0].equals(tables[1])
