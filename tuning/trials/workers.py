"""A trial on several workers: a separate Ray Train run, whose measurements are passed on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from queue import SimpleQueue
from typing import Any

from ray.train import ControllerError

from raycrt import data
from raycrt.distributed.training import leftovers, train
from raycrt.specs import DataSpec, Spec
from raycrt.system.places.storage import Place
from raycrt.training.loop import EpochEnd, Metrics
from raycrt.tuning.trials import resources
from raycrt.tuning.trials.trial import METRIC, Measurement, judge


def evaluate(
    spec: Spec, folder: Place, report: Callable[[Measurement], None] = lambda measured: None
) -> Measurement:
    """Like `trial.evaluate`, on `search.workers` training workers, with their run in `folder`.

    A run that `folder` holds is resumed from its last checkpoint. `report` is called in the
    caller's thread, so that training continues however long it takes. An exception that it
    raises (as Tune does to end a trial) stops the workers, frees their resources and is raised
    again.
    """
    began = time.monotonic()
    reported: SimpleQueue[Metrics | None] = SimpleQueue()
    stop = threading.Event()
    measured: Measurement | None = None
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(
            _fit,
            spec.override({"run.workers": spec.search.workers}),
            folder,
            rows="train",
            watch=lambda epoch, metrics: reported.put(metrics),
            measure=partial(_measure, spec),
            stop=stop,
        )
        done.add_done_callback(lambda _: reported.put(None))
        try:
            while (metrics := reported.get()) is not None:
                if METRIC in metrics:
                    seconds = time.monotonic() - began
                    measured = Measurement.of({**metrics, "seconds": seconds})
                    report(measured)
        finally:
            stop.set()
        done.result()
    assert measured is not None
    return measured


def _fit(spec: Spec, folder: Place, *, stop: threading.Event, **options: Any) -> None:
    """`train.fit`, but waiting for workers as long as the cluster could have room for them.

    Another search may hold the resources for longer than Ray Train waits by itself. The workers of
    a trial start all or none, so that no two trials wait for resources that the other one holds.
    """
    while True:
        # This process may take the place of one whose node died.
        leftovers.free()
        try:
            train.fit(spec, folder, stop=stop, **options)
            return
        except ControllerError as error:
            if not train.waited(error) or stop.is_set() or resources.trials(spec) == 0:
                raise


def _measure(spec: Spec, end: EpochEnd) -> Metrics | None:
    """The measurement that the first worker takes after an epoch; None between rungs."""
    measured = judge(end, spec, _validation(spec.data.model_dump_json()))
    return None if measured is None else measured.as_dict()


@lru_cache(maxsize=1)
def _validation(spec: str) -> data.Split:
    return data.load(DataSpec.model_validate_json(spec)).validation
