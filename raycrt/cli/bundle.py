"""`raycrt bundle`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from raycrt.cli.options import lasting
from raycrt.cli.verify import DataDir, RunCode, Workers, proved, summary
from raycrt.system.places.storage import Place


def bundle(
    run: Annotated[
        Place,
        typer.Argument(callback=lasting, parser=str, metavar="RUN", help="Directory of the run."),
    ],
    out: Annotated[
        Place,
        typer.Option(
            callback=lasting, parser=str, metavar="FILE", help="The file to write, *.zip."
        ),
    ],
    with_data: Annotated[
        bool, typer.Option("--with-data", help="Pack the certified inputs and labels too.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(
            metavar="LICENSE", help="License of the model, for its card: mit, apache-2.0, ..."
        ),
    ] = None,
    workers: Workers = 1,
    data_dir: DataDir = None,
    run_code: RunCode = False,
) -> None:
    """Prove every radius of a run again, then pack model, certificates and card into one file.

    `raycrt verify FILE` checks it where the run has never been. What is packed depends on the run
    and the code alone: the same run gives the same bytes.
    """
    from raycrt.evidence.bundle import pack

    report = pack(
        run,
        out,
        verify=partial(proved, workers=workers, data_dir=data_dir, arrays=None, run_code=run_code),
        data_directory=data_dir,
        with_data=with_data,
        license=license,
    )
    typer.echo(summary(report))
    typer.echo(f"bundle: {out}")
