"""Results as they are stored, and the README's table that they make.

    python -m tests.results                          write the table into README.md
    python -m tests.results RUN RECIPE HARDWARE      record a certified run first

`docs/results/RECIPE.parquet` holds for each test image its label, prediction and proved radii;
`RECIPE.json` beside it how they came about. Every run was trained on all training rows with the
seed of its recipe, and each of its radii was proved again by the checker when it was recorded.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raycrt import data, recipes
from raycrt.certification.table import storage
from raycrt.errors import require
from raycrt.evaluation.accuracy import Summary
from raycrt.evaluation.tally import summarise
from raycrt.networks import network as networks
from raycrt.specs import Spec
from raycrt.specs.provenance import Training
from raycrt.verify import verify_run

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
README = ROOT / "README.md"
SMALL = 0.5
_TABLE = re.compile(r"(<!-- python -m tests.results -->\n).*?(<!-- end -->)", re.S)
_INTEGERS = {"index": pa.int16(), "label": pa.int8(), "prediction": pa.int8(), "binding": pa.int8()}


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run: its recipe, what was typed, where it ran, what its rows say at `radius` and 0.5."""

    recipe: str
    command: str
    seed: int
    hardware: str
    layers: int
    radius: float
    summary: Summary

    @property
    def certified(self) -> float:
        return self.summary.certified[self.radius]


def stored(directory: Path = RESULTS) -> list[Result]:
    """Every result in `directory`: large radii first, and the most certified first."""
    found = []
    for file in directory.glob("*.parquet"):
        facts = json.loads(file.with_suffix(".json").read_text())
        summary = summarise(pq.read_table(file), (facts["radius"], SMALL))
        found.append(Result(recipe=file.stem, summary=summary, **facts))
    return sorted(found, key=lambda result: (-result.radius, -result.certified))


def table(results: list[Result]) -> str:
    """Markdown, a row for each result, a table for each radius."""
    groups = groupby(results, key=lambda result: result.radius)
    return "\n".join(_table(radius, list(group)) for radius, group in groups)


def _table(radius: float, results: list[Result]) -> str:
    columns = ["recipe", "layers", "clean"]
    columns += [f"all classes at {radius:g}", f"runner-up only at {radius:g}"]
    columns += [f"all classes at {SMALL}"] * (radius != SMALL) + ["images", "seed", "hardware"]
    rows = [columns, ["---"] * len(columns)]
    for result in results:
        summary = result.summary
        shares = [summary.clean, result.certified, summary.certified_runner_up[radius]]
        shares += [summary.certified[SMALL]] * (radius != SMALL)
        cells = [f"`{result.recipe}`", result.layers, *(f"{100 * share:.2f} %" for share in shares)]
        rows.append([str(c) for c in [*cells, summary.rows, result.seed, result.hardware]])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def with_table(readme: str, results: list[Result]) -> str:
    """`readme` with the table in the place marked for it."""
    require(len(_TABLE.findall(readme)) == 1, "README.md has one place for the table")
    return _TABLE.sub(lambda place: place[1] + table(results) + place[2], readme)


def layers_of(spec: Spec) -> int:
    """The number of layers with an activation after each but the last."""
    with torch.device("meta"):
        return networks.build(spec.model, data.shape(spec.data), 10).depth


def record(run: Path, recipe: str, hardware: str, directory: Path = RESULTS) -> None:
    """Keep the rows of a certified run of `recipe`, once the checker has proved each of them."""
    rows, manifest = storage.read(run / "certificates")
    spec = recipes.load(recipe)
    ran = manifest["spec"]
    for part in ("model", "train"):
        require(
            ran[part] == spec.model_dump(mode="json")[part], "the run is the recipe's", part=part
        )
    made = Training.model_validate(manifest["training"])
    require(not made.sentence, "the training is whole and on all rows", training=made.sentence)
    report = verify_run(run)
    require(report.sound, "every row is proved", failed=report.failed)
    # Float32, rounded towards 0: no stored radius is larger than the one proved.
    radii = {name: rows[name].to_numpy() for name in ("radius", "radius_runner_up")}
    columns = {name: rows[name].cast(kind) for name, kind in _INTEGERS.items()}
    columns |= {name: pa.array(_down(radius)) for name, radius in radii.items()}
    pq.write_table(pa.table(columns), directory / f"{recipe}.parquet")
    steps = (f"train --recipe {recipe} --out OUT", "certify --out OUT", "verify OUT")
    facts = {
        "command": "; ".join(f"raycrt {step}" for step in steps),
        "seed": ran["run"]["seed"],
        "hardware": hardware,
        "layers": layers_of(spec),
        "radius": max(spec.search.radii),
    }
    (directory / f"{recipe}.json").write_text(json.dumps(facts, indent=2) + "\n")


def _down(radius: np.ndarray) -> np.ndarray:
    rounded = radius.astype(np.float32)
    return np.where(rounded > radius, np.nextafter(rounded, np.float32(0)), rounded)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        record(Path(sys.argv[1]), *sys.argv[2:])
    README.write_text(with_table(README.read_text(), stored()))
