"""`raycrt verify`: the checker on the command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from raycrt.verify.report import Report

_SHOWN = 10


def verify(
    run: Annotated[Path, typer.Argument(help="Directory of the run.")],
    workers: Annotated[
        int, typer.Option(min=1, help="Number of processes; with more than one, Ray actors.")
    ] = 1,
    data_dir: Annotated[
        Path | None, typer.Option(help="Directory of the data sets, if they have moved.")
    ] = None,
    run_code: Annotated[
        bool,
        typer.Option("--run-code", help="Run the function that the run names as its data source."),
    ] = False,
) -> None:
    """Re-prove every stored radius from the rows and the weights; exit with 1 if one fails."""
    from rich.console import Console

    from raycrt.specs import RunSpec
    from raycrt.system import progress
    from raycrt.verify.report import CheckFiles, verify_run

    watch = partial(progress.over, console=Console(stderr=True))
    if workers == 1:
        report = verify_run(run, data_directory=data_dir, trusted=run_code, watch=watch)
    else:
        from raycrt.distributed import room, session, verification

        check: CheckFiles = partial(verification.check_files, workers=workers)
        with session.session():
            room.check(RunSpec(workers=workers))
            report = verify_run(
                run, data_directory=data_dir, trusted=run_code, check=check, watch=watch
            )
    typer.echo(summary(report))
    if not report.sound:
        raise typer.Exit(1)


def summary(report: Report) -> str:
    """The report in a few lines: the counts, then the first failures."""
    lines = [
        f"{report.checked} rows checked against {report.images} images of {report.data}: "
        + ("each is proved." if report.sound else f"{report.failed} rows failed.")
    ]
    for finding in report.findings[:_SHOWN]:
        where = f"row {finding.index}: " if finding.index >= 0 else ""
        lines.append(f"  {where}{finding.sentence}")
    if len(report.findings) > _SHOWN:
        lines.append(f"  and {len(report.findings) - _SHOWN} more")
    return "\n".join(lines)
