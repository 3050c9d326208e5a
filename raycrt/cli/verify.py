"""`raycrt verify`: the checker on the command line."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycrt.cli.options import found
from raycrt.errors import InvalidInput, require
from raycrt.system.places.storage import Place

if TYPE_CHECKING:
    from raycrt.verify.report import Report

_SHOWN = 10
# The exit code where nothing is wrong, but no row could be proved for want of its input.
_UNPROVED = 3

Workers = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Number of processes; with more than one, Ray actors."),
]
DataDir = Annotated[
    Place | None,
    typer.Option(
        callback=found,
        parser=str,
        metavar="PLACE",
        help="Place of the data, a path or a URI, if it has moved.",
    ),
]
RunCode = Annotated[
    bool,
    typer.Option("--run-code", help="Run the function that the run names as its data source."),
]


def verify(
    run: Annotated[
        Place,
        typer.Argument(
            callback=found,
            parser=str,
            metavar="RUN",
            help="Directory of the run, or a bundle (.zip).",
        ),
    ],
    workers: Workers = 1,
    data_dir: DataDir = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For a bundle: .npz with inputs and labels of the test, or .npy."
        ),
    ] = None,
    run_code: RunCode = False,
    records: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory for a record of each file of rows: its rows and findings.",
        ),
    ] = None,
) -> None:
    """Re-prove every stored radius from the rows and the weights; exit with 1 if one fails, and
    with 3 if a bundle's inputs are not there, so that nothing is proved. A run that takes files
    gets a note of what was found, RUN/verified, which its report repeats."""
    from raycrt.specs import verdict

    before = None if run.is_file() else verdict.fingerprint(run)
    report = proved(
        run, workers=workers, data_dir=data_dir, arrays=data, run_code=run_code, records=records
    )
    typer.echo(summary(report))
    if before is not None:
        _note(run, report, before)
    if not report.sound or not report.proved:
        raise typer.Exit(_UNPROVED if report.sound else 1)


def _note(run: Place, report: Report, sha256: str) -> None:
    """Leave a note of `report` in `run`, if its files are those with this hash and it takes one."""
    from raycrt.specs import verdict

    if verdict.fingerprint(run) != sha256:
        return
    found = verdict.Verdict(
        raycrt=version("raycrt"),
        at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        sha256=sha256,
        images=report.images,
        checked=report.checked,
        failed=report.failed,
        sound=report.sound,
    )
    try:
        typer.echo(f"note: {found.write(run)}")
    except OSError as error:
        typer.echo(f"no note was left in {run}: {error.strerror or error}", err=True)


def proved(
    run: Place,
    *,
    workers: int,
    data_dir: Place | None,
    arrays: Path | None,
    run_code: bool,
    records: Path | None = None,
) -> Report:
    """What the checker finds in a run or a bundle, with progress on standard error."""
    from rich.console import Console

    from raycrt.specs import RunSpec
    from raycrt.system import progress
    from raycrt.system.places import outputs
    from raycrt.verify.bundle import verify_bundle
    from raycrt.verify.report import verify_run

    if run.is_file():
        if arrays is not None and data_dir is not None:
            raise InvalidInput("--data and --data-dir both name the inputs; leave one out")
        check = partial(verify_bundle, run, arrays=arrays)
    elif arrays is not None:
        raise InvalidInput(f"--data goes with a bundle, but {run} is no file")
    else:
        check = partial(verify_run, run)
    watch = partial(progress.over, console=Console(stderr=True))
    if records is not None:
        beside = (run / "certificates").resolve()
        require(
            beside not in (records.resolve(), *records.resolve().parents),
            "records are not among the certificates, whose readers may take them for rows",
            records=str(records),
        )
        outputs.made(records)
    check = partial(
        check,
        data_directory=data_dir,
        trusted=run_code,
        watch=watch,
        records=records and records.absolute(),
    )
    if workers == 1:
        return check()

    from raycrt.distributed import room, session, verification

    with session.session():
        room.check(RunSpec(workers=workers))
        return check(check=partial(verification.check_files, workers=workers))


def summary(report: Report) -> str:
    """The report in a few lines: the counts, then the first failures, then what was not checked."""
    if report.sound and not report.proved:
        first = (
            f"{report.checked} rows read, and no radius proved. Checked were the hashes of all "
            "files, the model, its curvature and the form of the rows."
        )
    else:
        first = f"{report.checked} rows checked against {report.images} images of {report.data}: "
        first += "each is proved." if report.sound else f"{report.failed} rows failed."
    lines = [first]
    for finding in report.findings[:_SHOWN]:
        where = f"row {finding.index}: " if finding.index >= 0 else ""
        lines.append(f"  {where}{finding.sentence}")
    if len(report.findings) > _SHOWN:
        lines.append(f"  and {len(report.findings) - _SHOWN} more")
    lines += [f"not checked: {what}" for what in report.unchecked]
    return "\n".join(lines)
