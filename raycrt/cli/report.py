"""`raycrt report`."""

from __future__ import annotations

from typing import Annotated

import typer

from raycrt.cli.options import lasting
from raycrt.system.storage import Place


def report(
    run: Annotated[
        Place, typer.Argument(callback=lasting, parser=str, help="Directory of the run.")
    ],
) -> None:
    """Write RUN/report from RUN/certificates (and the trials of RUN/search, if there are any)."""
    from raycrt.evaluation import report as reports

    trials = run / "search" / "trials.csv"
    written = reports.write(
        run / "certificates", run / "report", trials_csv=trials if trials.is_file() else None
    )
    print("\n".join([written.headline, *written.remarks]))
    print(written.markdown)
    print(written.plot)
