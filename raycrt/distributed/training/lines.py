"""Messages between the caller of `fit` and the first training worker."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycrt.training.loop import Metrics

SECONDS_FOR_AN_ANSWER = 5.0


class Line:
    """An actor that passes epoch metrics to the caller of `fit`, and its request to stop back."""

    def __init__(self) -> None:
        self._news: list[tuple[int, Metrics]] = []
        self._begun = self._stop = False
        self._error: Exception | None = None

    def begin(self) -> None:
        self._begun = True

    def begun(self) -> bool:
        return self._begun

    def tell(self, epoch: int, metrics: Metrics) -> None:
        self._news.append((epoch, metrics))

    def news(self) -> list[tuple[int, Metrics]]:
        """The metrics of epochs that ended since the last call."""
        news, self._news = self._news, []
        return news

    def stop(self) -> None:
        self._stop = True

    def stopped(self) -> bool:
        return self._stop

    def give_up(self, error: Exception) -> None:
        """Record the `error` that ended training; a worker that raised it would be restarted."""
        self._error = error

    def error(self) -> Exception | None:
        return self._error


def start() -> Any:
    """A `Line` on the caller's node; on another one it could die while the caller continues."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Line).options(num_cpus=0, scheduling_strategy=here).remote()


def begun(line: Any) -> bool:
    """Whether a worker has begun to train; False if `line` does not answer."""
    try:
        return bool(ray.get(line.begun.remote(), timeout=SECONDS_FOR_AN_ANSWER))
    except ray.exceptions.RayError:
        return False
