"""TensorBoard of a finished run: every number that tells how a training goes, and its settings."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG

from raycrt import data
from raycrt.distributed import stages
from raycrt.evaluation.assessment import assess
from raycrt.networks import checkpoint
from raycrt.specs import Spec
from raycrt.training import loop
from tests.conftest import TINY

pytestmark = pytest.mark.cluster


def test_the_board_of_a_run_has_all_numbers(finished_run):
    spec = Spec.load(finished_run / "train")
    board = EventAccumulator(str(finished_run / "train" / "tensorboard")).Reload()
    tags = set(board.Tags()["scalars"])
    steps = {"loss", "accuracy", "robust", "radius", "learning_rate", "rows_per_second"}
    assert {f"train/{name}" for name in steps} <= tags
    # The final training is on all rows, so that none of those assessed is held out.
    shares = {"clean", "met", "mean_radius", "curvature"} | {
        f"certified_{r:g}" for r in spec.certify.at
    }
    assert {f"training_rows/{name}" for name in shares} <= tags
    assert not any(tag.startswith("validation/") for tag in tags)
    epochs = [event.step for event in board.Scalars("train/loss")]
    assert epochs[: spec.train.epochs] == list(range(1, spec.train.epochs + 1))
    last = {event.step for event in board.Scalars("training_rows/clean")}
    assert spec.train.epochs in last and len(last) <= 4


def test_the_board_of_a_run_has_its_hyper_parameters(finished_run):
    spec = Spec.load(finished_run / "train")
    board = EventAccumulator(str(finished_run / "train" / "tensorboard")).Reload()
    content = board.summary_metadata[SESSION_START_INFO_TAG].plugin_data.content
    for name in ("model.width", "train.gamma", "train.augmentation.shift", "run.seed"):
        assert name.encode() in content
        assert name in stages.hyper_parameters(spec)


@pytest.mark.slow
def test_rows_held_out_are_not_trained_on_and_assessed(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    raycrt = Path(sys.executable).parent / "raycrt"
    command = [raycrt, "train", "--hold-out", "--recipe", recipe, "--set", "run.workers=1"]
    subprocess.run([*command, "--out", tmp_path], check=True, timeout=280)

    network, spec = checkpoint.load_model(tmp_path / "hold-out")
    rows = data.load(spec.data)
    twin = loop.train(spec, rows.train)
    for name, weight in network.state_dict().items():
        assert torch.allclose(weight, twin.state_dict()[name], rtol=0, atol=1e-5), name
    board = EventAccumulator(str(tmp_path / "hold-out" / "tensorboard")).Reload()
    found = assess(network, rows.validation.take(slice(256)), spec.certify)
    assert {"clean", "certified_0.1", "certified_0.5", "curvature"} <= set(found)
    for name, value in found.items():
        last = board.Scalars(f"validation/{name}")[-1]
        assert (last.step, last.value) == (spec.train.epochs, pytest.approx(value, rel=1e-4)), name
    assert not any(tag.startswith("training_rows/") for tag in board.Tags()["scalars"])
