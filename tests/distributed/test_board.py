"""TensorBoard of a finished run: every number that tells how a training goes, and its settings."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG

from raycrt.distributed import stages
from raycrt.spec import Spec

pytestmark = pytest.mark.cluster


def test_the_board_of_a_run_has_all_numbers(finished_run):
    spec = Spec.load(finished_run / "train")
    board = EventAccumulator(str(finished_run / "train" / "tensorboard")).Reload()
    tags = set(board.Tags()["scalars"])
    steps = {"loss", "train_accuracy", "train_robust", "radius", "learning_rate", "rows_per_second"}
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
