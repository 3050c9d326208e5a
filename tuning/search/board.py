"""TensorBoard of a search: what is measured of each trial, by epoch, and its parameters."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.logger.tensorboardx import TBXLoggerCallback

from raycrt.tuning.trials.trial import Measurement

_MEASURED = ("certified", "clean", "mean_radius", "curvature", "seconds")


class Board(TBXLoggerCallback):
    """Takes the place of Tune's own logger, which counts reports and not epochs.

    What is measured at a rung, on fewer rows and with fewer steps, is `rung/certified` and so on;
    what is measured after all `epochs` is `end/certified`. The tab HParams has the values that a
    trial drew beside its last measurements.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        if trial not in self._trial_writer:
            self.log_trial_start(trial)
        if "clean" not in result:  # A failure is told without a measurement.
            return
        measured = Measurement.of(result)
        part = "end" if measured.epoch == self.epochs else "rung"
        values = {f"{part}/{name}": getattr(measured, name) for name in _MEASURED}
        if len(measured.certified_at) > 1:
            shares = measured.certified_at.items()
            values |= {f"{part}/certified_{radius:g}": share for radius, share in shares}
        for tag, value in values.items():
            self._trial_writer[trial].add_scalar(tag, value, global_step=measured.epoch)
        self._trial_writer[trial].flush()
        self._trial_result[trial].update(values)
