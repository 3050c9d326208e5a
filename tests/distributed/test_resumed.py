"""A training that is resumed with another number of workers states both with its weights."""

from pathlib import Path
from typing import Any

import pytest

from raycrt.distributed.training import train
from raycrt.evaluation.certified import Certified
from raycrt.evaluation.tally import Counts
from raycrt.networks import checkpoint
from raycrt.specs import Spec, validate
from raycrt.specs.provenance import Training
from raycrt.training.folding.part import fresh

SPEC = validate({"model": {"width": 4, "depth": 2}, "train": {"epochs": 3}})


def after(parts: list[Any], out: Path) -> Spec:
    """What the last of several parts of a training in `out` states, each with its workers."""
    stated = SPEC
    for epoch, workers in enumerate(parts, 1):
        spec = SPEC.override({"run.workers": workers})
        stated = train.with_former_workers(spec, train.last_checkpoint(out))
        kept = out / "ray" / "train" / f"checkpoint_{epoch}"
        checkpoint.save_model(kept, fresh(SPEC), stated, Training.of(stated, epoch=epoch))
        checkpoint.save_state(kept, {"epoch": epoch})
    return stated


def told(stated: Spec) -> list[object]:
    """What a report says of the workers of these weights."""
    training = Training.of(stated).model_dump(mode="json")
    manifest = {"spec": stated.model_dump(mode="json"), "training": training}
    found = Certified(
        directory=Path(), manifest=manifest, spec=stated, counts=Counts.__new__(Counts)
    )
    return [value for key, value in found.weights if key == "workers"]


@pytest.mark.parametrize(
    ("parts", "range_"),
    [
        ([{"low": 1, "high": 3}, 2], "1 to 3"),
        ([2, {"low": 1, "high": 3}], "1 to 3"),
        ([4, 2, 2], "2 to 4"),
        ([{"low": 2, "high": 3}, {"low": 1, "high": 2}, 1], "1 to 3"),
    ],
)
def test_a_change_of_workers_is_stated_to_the_end(parts, range_, tmp_path):
    stated = after(parts, tmp_path)
    assert str(stated.run.workers) == range_
    assert told(stated) == [f"{range_}; weights do not repeat bit for bit"]


@pytest.mark.parametrize("parts", [[2, 2], [{"low": 2, "high": 2}, 2], [{"low": 2, "high": 2}]])
def test_one_number_of_workers_repeats_the_weights(parts, tmp_path):
    stated = after(parts, tmp_path)
    assert stated.run == SPEC.override({"run.workers": parts[-1]}).run
    assert told(stated) == []
