"""Messages between the caller of a training and its first worker."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycrt.training.loop import Metrics

SECONDS_FOR_AN_ANSWER = 5.0


class Line:
    """An actor that carries the metrics of epochs to the caller of `fit`, and its stop back."""

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
        """Training ended with `error`; a worker that raises it would be restarted."""
        self._error = error

    def error(self) -> Exception | None:
        return self._error


def start() -> Any:
    """A `Line` on the caller's node; on another one it could die while the caller goes on."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Line).options(num_cpus=0, scheduling_strategy=here).remote()


def begun(line: Any) -> bool:
    """Whether a worker trains; not where `line` does not answer."""
    try:
        return bool(ray.get(line.begun.remote(), timeout=SECONDS_FOR_AN_ANSWER))
    except ray.exceptions.RayError:
        return False
