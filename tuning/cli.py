"""The commands that search: `raycrt search`, `raycrt study`, `raycrt demo`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from raycrt.cli.options import (
    DEFAULT_OUT,
    DEFAULT_RECIPE,
    DataDir,
    Download,
    Gpus,
    Out,
    Overrides,
    Recipe,
    TrialWorkers,
    Workers,
    found,
    spec_from,
)
from raycrt.errors import InvalidInput, require
from raycrt.specs import Spec
from raycrt.system import interruption, outputs
from raycrt.system.storage import Place


def search(
    recipe: Recipe = DEFAULT_RECIPE,
    set_: Overrides = None,
    out: Out = DEFAULT_OUT,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the search in OUT/search.")
    ] = False,
    data_dir: DataDir = None,
    download: Download = False,
    workers: TrialWorkers = None,
    gpus_per_worker: Gpus = None,
) -> None:
    """Search the recipe's space with Ray Tune and Optuna; write OUT/search.

    The first trial is the recipe itself. The winner is in OUT/search/best.yaml, a recipe.
    """
    spec = spec_from(
        recipe,
        set_,
        data_dir,
        download,
        search__workers=workers,
        run__gpus_per_worker=gpus_per_worker,
    )
    from tuning.search import driver

    typer.echo(f"recipe: {recipe}")
    with interruption.reported("--resume"), _failure_in_one_line():
        driver.run(spec, out / "search", resume=resume)
    typer.echo(out / "search" / "best.yaml")


def study(
    run: Annotated[
        Place,
        typer.Argument(
            callback=found, parser=str, help="Directory of a run, or its search directory."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
    out: Annotated[
        Place | None,
        typer.Option(callback=found, parser=str, help="Output directory. [default: RUN/study]"),
    ] = None,
    export: Annotated[
        Place | None,
        typer.Option(callback=found, parser=str, help="Write the winner as a recipe to this file."),
    ] = None,
) -> None:
    """Show the results of a search: best trials, Pareto front, importances, cost, pruning.

    They are written to OUT as well: study.json, which --json prints, and plots.
    """
    from tuning.analysis import study as studies
    from tuning.analysis import tables

    best = studies.winner(run) if export is not None else None
    spec = studies.load(run)[0]
    folder = outputs.made(out or run / "study")
    if export is not None:
        require(not export.is_dir(), "--export is a file", export=str(export))
        outputs.made(export.parent)
    results = tables.summary(run)
    # Files first: the reader of standard output may leave early.
    files = _write_study(results, spec, folder)
    if export is not None and best is not None:
        files.append(_export(best, export))
    if as_json:
        typer.echo(tables.to_json(results))
    else:
        tables.show(results, spec, Console())
    for file in files:
        typer.echo(file, err=as_json)


def _export(spec: Spec, file: Place) -> Place:
    try:
        outputs.write_atomically(file, spec.to_yaml().encode())
    except OSError as error:
        raise InvalidInput(f"--export must be a file that can be written: {error}") from None
    return file


def _write_study(found: dict[str, Any], spec: Spec, out: Place) -> list[Place]:
    """Write `tables.summary` and its plots; return the files."""
    from tuning.analysis import plots, tables

    outputs.write_atomically(out / "study.json", tables.to_json(found).encode())
    return [out / "study.json", *plots.draw(found, spec, out)]


def demo(
    recipe: Recipe = DEFAULT_RECIPE,
    set_: Overrides = None,
    out: Out = Path("runs/demo"),
    data_dir: DataDir = None,
    download: Download = False,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
) -> None:
    """Run the whole job: search, train the winner, certify the test images, report.

    Run again with the same OUT, it resumes where it stopped.
    """
    spec = spec_from(
        recipe, set_, data_dir, download, run__workers=workers, run__gpus_per_worker=gpus_per_worker
    )
    from tuning import pipeline

    with _failure_in_one_line():
        pipeline.run(spec, out)


@contextmanager
def _failure_in_one_line() -> Iterator[None]:
    """End a search that gave up with one line on standard error and exit code 1."""
    from tuning.search.driver import SearchFailed

    try:
        yield
    except SearchFailed as error:
        typer.echo(f"raycrt: {error}", err=True)
        raise typer.Exit(1) from None
