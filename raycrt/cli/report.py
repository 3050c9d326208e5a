"""`raycrt report`."""

from __future__ import annotations

from typing import Annotated

import typer

from raycrt.cli.options import lasting
from raycrt.cli.verify import DataDir, RunCode
from raycrt.errors import InvalidInput
from raycrt.evaluation.page import ATTACKED
from raycrt.system.places.storage import Place


def _lasting(runs: list[str]) -> list[Place]:
    return [lasting(run) for run in runs]


def report(
    runs: Annotated[
        list[Place],
        typer.Argument(metavar="RUN", callback=_lasting, parser=str, help="Directories of runs."),
    ],
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Write the first RUN's report/comparison.html alone."),
    ] = False,
    attacked: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Rows to attack for report.html and its gallery; 0: none."
        ),
    ] = ATTACKED,
    data_dir: DataDir = None,
    run_code: RunCode = False,
) -> None:
    """Write RUN/report from RUN/certificates (and the trials of RUN/search, if there are any):
    report.html, which opens anywhere, report.md and a plot."""
    if not compare:
        for run in runs:
            _one(run, attacked, data_dir, run_code)
        return
    if (attacked, data_dir, run_code) != (ATTACKED, None, False):
        raise InvalidInput("--attacked, --data-dir and --run-code have no effect with --compare")
    from raycrt.evaluation.certified import Certified
    from raycrt.evaluation.page import compare as comparison

    named = dict(zip(comparison.names(runs), runs, strict=True))
    found = {name: Certified.of(run / "certificates") for name, run in named.items()}
    print(comparison.write(found, runs[0] / "report"))


def _one(run: Place, attacked: int, data_dir: Place | None, run_code: bool) -> None:
    from raycrt.evaluation import report as reports
    from raycrt.evaluation.page import write
    from raycrt.evaluation.page.facts import facts

    trials = run / "search" / "trials.csv"
    out = run / "report"
    written = reports.write(
        run / "certificates", out, trials_csv=trials if trials.is_file() else None
    )
    print("\n".join([written.headline, *written.remarks]))
    shown = facts(run, written.found, number=attacked, data_directory=data_dir, trusted=run_code)
    for file in (write.write(shown, out), written.markdown, written.plot):
        print(file)
