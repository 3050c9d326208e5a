"""MLflow and Weights & Biases, to which the numbers of a training can go as well.

A tracker that does not answer at the start is `InvalidInput`. One that fails later is left alone:
a training is worth more than its curves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

from raycrt.errors import InvalidInput
from raycrt.system.places.storage import told

Log = Callable[[int, Mapping[str, float]], None]
_NAMES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}
# MLflow takes so many parameters in one request.
_PARAMETERS = 100


def require_installed(**trackers: str | None) -> None:
    """`InvalidInput` where one of the `trackers` that are set, mlflow or wandb, has no package."""
    for name, value in trackers.items():
        if value is not None and find_spec(name) is None:
            raise InvalidInput(f"run.{name} needs {_NAMES[name]}: pip install 'raycrt[{name}]'")


@contextmanager
def opened(
    *,
    mlflow: str | None,
    wandb: str | None,
    group: str,
    name: str,
    settings: Mapping[str, Any],
    directory: str | None,
) -> Iterator[Log]:
    """Within it a function that logs the numbers of a step to the trackers that are set.

    `mlflow` is the URI of a tracking server, with `group` as the experiment; `wandb` a project.
    `name` and `settings` are those of the run; W&B keeps its files in `directory`, if given.
    """
    require_installed(mlflow=mlflow, wandb=wandb)
    with ExitStack() as stack:
        logs = []
        try:
            if mlflow is not None:
                logs.append(stack.enter_context(_mlflow(mlflow, group, name, settings)))
            if wandb is not None:
                logs.append(stack.enter_context(_wandb(wandb, group, name, settings, directory)))
        except InvalidInput:
            raise
        except Exception as error:
            raise InvalidInput(
                f"the tracker of a training must answer: {told(error):.300}"
            ) from None
        failed: list[Log] = []

        def log(step: int, values: Mapping[str, float]) -> None:
            for each in logs:
                if each in failed:
                    continue
                try:
                    each(step, values)
                except Exception as error:
                    failed.append(each)
                    print(f"a tracker failed, and the training goes on: {told(error):.300}")

        yield log


@contextmanager
def _mlflow(uri: str, group: str, name: str, settings: Mapping[str, Any]) -> Iterator[Log]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(uri)
    known = client.get_experiment_by_name(group)
    experiment = client.create_experiment(group) if known is None else known.experiment_id
    run = client.create_run(experiment, run_name=name).info.run_id
    params = [Param(key, str(value)) for key, value in settings.items()]
    for first in range(0, len(params), _PARAMETERS):
        client.log_batch(run, params=params[first : first + _PARAMETERS])

    def log(step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        client.log_batch(run, [Metric(key, float(v), now, step) for key, v in values.items()])

    ended = "FAILED"
    try:
        yield log
        ended = "FINISHED"
    except KeyboardInterrupt:
        ended = "KILLED"
        raise
    finally:
        client.set_terminated(run, ended)


@contextmanager
def _wandb(
    project: str, group: str, name: str, settings: Mapping[str, Any], directory: str | None
) -> Iterator[Log]:
    import wandb

    run = wandb.init(
        project=project,
        group=group,
        name=name,
        config=dict(settings),
        dir=directory,
        settings=wandb.Settings(console="off", silent=True),
    )
    with run:
        yield lambda step, values: run.log(dict(values), step=step)
