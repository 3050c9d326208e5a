"""A trial in the process that Tune starts for it, alone there or on workers of its own."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import torch
from ray import tune

from raycrt import data
from raycrt.networks import checkpoint
from raycrt.specs import DataSpec, validate
from raycrt.system.places.storage import place
from raycrt.training.loop import EpochEnd
from raycrt.tuning.trials import space, store, workers
from raycrt.tuning.trials.trial import METRIC, Measurement, evaluate

# The key of a trial's number in its configuration, beside the drawn parameters by their paths.
NUMBER = "trial"
# How long Tune waits for the thread of a stopped trial before it kills its process.
_SECONDS_TO_STOP = 120


def run(config: dict[str, Any], *, tree: dict[str, Any], home: str) -> None:
    """Run the trial that `config` describes, for the search in `home` with the spec `tree`.

    Measurements, and the reason of a failure, are reported to Tune; the training state is saved.
    """
    torch.set_num_threads(1)
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(_SECONDS_TO_STOP)
    base = validate(tree)
    spec = space.apply(base, {path: value for path, value in config.items() if path != NUMBER})
    folder = store.state_folder(place(home), config[NUMBER])
    epoch = 0

    def report(measured: Measurement, end: EpochEnd | None = None) -> None:
        nonlocal epoch
        epoch = measured.epoch
        if end is not None and epoch < base.train.epochs:
            checkpoint.save_state(folder, end.state())
        tune.report(measured.as_dict())

    try:
        if base.search.workers > 1:
            workers.evaluate(spec, folder, report)
        else:
            dataset = _dataset(base.data.model_dump_json())
            evaluate(spec, dataset, state=checkpoint.load_state(folder), report=report)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        tune.report({METRIC: 0.0, "epoch": epoch, store.REASON: said})


@lru_cache(maxsize=1)
def _dataset(spec: str) -> data.Dataset:
    """The data set, read once per process, which runs many trials."""
    return data.load(DataSpec.model_validate_json(spec))
