"""`raycrt train`."""

from __future__ import annotations

from typing import Annotated

import typer

from raycrt.cli.options import (
    DEFAULT_OUT,
    DEFAULT_RECIPE,
    DataDir,
    Download,
    Gpus,
    Out,
    Overrides,
    Recipe,
    Workers,
    spec_from,
)


def train(
    recipe: Recipe = DEFAULT_RECIPE,
    set_: Overrides = None,
    out: Out = DEFAULT_OUT,
    data_dir: DataDir = None,
    download: Download = False,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    hold_out: Annotated[
        bool,
        typer.Option(
            "--hold-out", help="Keep the validation rows out of training and assess on them."
        ),
    ] = False,
) -> None:
    """Train a recipe on training and validation rows with Ray Train; write OUT/train.

    OUT/train/tensorboard shows its progress. With --hold-out it writes OUT/hold-out instead, and
    shows there what is proved on the validation rows.
    """
    spec = spec_from(
        recipe,
        set_,
        data_dir,
        download,
        idle=("search",),
        run__workers=workers,
        run__gpus_per_worker=gpus_per_worker,
    )
    from raycrt.distributed import stages
    from raycrt.training.options import rules

    rules.check_training(spec)
    print(f"recipe: {recipe}")
    stages.train(spec, out / ("hold-out" if hold_out else "train"), hold_out=hold_out)
