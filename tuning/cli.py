"""The commands that search: `raycrt search`, `raycrt study`, `raycrt demo`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
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
    all_found,
    found,
    spec_from,
)
from raycrt.errors import InvalidInput, require
from raycrt.specs import Spec
from raycrt.system import interruption
from raycrt.system.places import outputs
from raycrt.system.places.storage import Place


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
    from raycrt.tuning.search import driver

    typer.echo(f"recipe: {recipe}")
    with interruption.reported("--resume"), _failure_in_one_line():
        driver.run(spec, out / "search", resume=resume)
    typer.echo(out / "search" / "best.yaml")


def study(
    runs: Annotated[
        list[Place],
        typer.Argument(
            callback=all_found,
            parser=str,
            metavar="RUN",
            help="Directory of a run, or its search directory; several are compared.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
    out: Annotated[
        Place | None,
        typer.Option(
            callback=found,
            parser=str,
            metavar="DIR",
            help="Directory of what is written; study in the first RUN if not given.",
        ),
    ] = None,
    export: Annotated[
        Place | None,
        typer.Option(
            callback=found,
            parser=str,
            metavar="FILE",
            help="Write the winner as a recipe to this file.",
        ),
    ] = None,
) -> None:
    """Show the results of a search: best trials, Pareto front, importances, cost, pruning.

    They are written to OUT as well: study.html, a page with charts, study.json, which --json
    prints, and plots. Several searches of one data set are compared: what each found, for what
    cost, and whether that can be told apart; OUT then gets comparison.html alone.
    """
    if len(runs) > 1:
        require(export is None, "--export is for one RUN", runs=len(runs))
        _compare(runs, out or runs[0] / "study", as_json)
        return
    from raycrt.tuning.analysis import study as studies
    from raycrt.tuning.analysis import summary, tables

    (run,) = runs
    best = studies.winner(run) if export is not None else None
    spec = studies.load(run)[0]
    folder = outputs.made(out or run / "study")
    if export is not None:
        if export.is_dir():
            raise InvalidInput(f"--export must be a file, but got the directory {export}")
        outputs.made(export.parent)
    results = summary.of(run)
    # Files first: the reader of standard output may leave early.
    files = _write_study(results, spec, folder)
    if export is not None and best is not None:
        files.append(_export(best, export))
    if as_json:
        typer.echo(summary.to_json(results))
    else:
        tables.show(results, spec, Console())
    for file in files:
        typer.echo(file, err=as_json)


def _compare(runs: list[Place], out: Place, as_json: bool) -> None:
    from raycrt.tuning.analysis import comparison, summary
    from raycrt.tuning.analysis.page import compare

    results = comparison.of(runs)
    page = compare.write(results, runs, outputs.made(out))
    if as_json:
        typer.echo(summary.to_json(results))
    else:
        comparison.show(results, Console())
    typer.echo(page, err=as_json)


def _export(spec: Spec, file: Place) -> Place:
    try:
        outputs.write_atomically(file, spec.to_yaml().encode())
    except OSError as error:
        raise InvalidInput(f"--export must be a file that can be written: {error}") from None
    return file


def _write_study(found: dict[str, Any], spec: Spec, out: Place) -> list[Place]:
    """Write a `summary`, its page and its plots; return the files."""
    from raycrt.tuning.analysis import plots, summary
    from raycrt.tuning.analysis.page import write

    outputs.write_atomically(out / "study.json", summary.to_json(found).encode())
    page = write.write(found, spec, out)
    return [page, out / "study.json", *plots.draw(found, spec, out)]


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
    from raycrt.tuning import pipeline

    with _failure_in_one_line():
        pipeline.run(spec, out)
    run = quote(str(out))
    typer.echo("next:")
    typer.echo(f"  raycrt verify {run}      # prove each radius again, independently")
    typer.echo(f"  raycrt bundle {run} --out {run}.zip      # one file, to verify anywhere")


@contextmanager
def _failure_in_one_line() -> Iterator[None]:
    """End a search that gave up with one line on standard error and exit code 1."""
    from raycrt.tuning.search.driver import SearchFailed

    try:
        yield
    except SearchFailed as error:
        typer.echo(f"raycrt: {error}", err=True)
        raise typer.Exit(1) from None
