"""The whole job in one directory: search, train the winner, certify the test set, report.

Each stage has a directory with the spec it was run with. A rerun skips the stages that finished and
takes up the one that did not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from raycrt import checkpoint, data, report
from raycrt.distributed import stages
from raycrt.distributed.session import session
from raycrt.errors import require
from raycrt.spec import Spec
from tuning import search, space, study

SEARCH, TRAIN, CERTIFICATES, REPORT = "search", "train", "certificates", "report"
_DONE = ".finished"


def run(spec: Spec, out: Path, *, console: Console | None = None) -> report.Report:
    """Run what is missing of the job of `spec` in `out` and return its report."""
    console = console or Console()
    space.check(spec)
    data.check(spec.data)
    home, model, proofs = out / SEARCH, out / TRAIN, out / CERTIFICATES
    _refuse_another(home, spec)
    finished = all((stage / _DONE).is_file() for stage in (home, model, proofs))
    with nullcontext() if finished else session():
        at_a_time = spec.search.concurrent or "as many as fit"
        title = f"1/4 search: {spec.search.trials} trials, {at_a_time} at a time"
        _stage(home, spec, console, title, lambda: search.run(spec, home, resume=True))
        best = Spec.load(home / study.BEST)
        title = f"2/4 train: {best.train.epochs} epochs on {best.run.workers} workers"
        _stage(model, best, console, title, lambda: stages.train(best, model))
        title = f"3/4 certify: the test images on {best.run.workers} actors"
        _stage(proofs, best, console, title, lambda: _certify(best, model, proofs))
    console.print("4/4 report", style="bold")
    trials = home / study.TRIALS
    written = report.write(proofs, out / REPORT, trials_csv=trials)
    console.print(f"\n{written.headline}\n", style="bold", highlight=False, soft_wrap=True)
    for path in (home / study.BEST, trials, model, proofs, written.markdown, written.plot):
        console.print(str(path), highlight=False, soft_wrap=True)
    return written


def _certify(spec: Spec, model: Path, out: Path) -> None:
    network, _ = checkpoint.load_model(model)
    stages.certify(spec, network, out)


def _stage(
    directory: Path, spec: Spec, console: Console, title: str, work: Callable[[], object]
) -> None:
    """Run a stage, unless it finished before; `spec` is stored in its directory."""
    _refuse_another(directory, spec)
    if (directory / _DONE).is_file():
        console.print(f"{title}: finished before", style="bold", highlight=False)
        return
    console.print(title, style="bold", highlight=False)
    directory.mkdir(parents=True, exist_ok=True)
    spec.save(directory)
    work()
    (directory / _DONE).touch()


def _refuse_another(directory: Path, spec: Spec) -> None:
    """Raise `InvalidInput` where `directory` holds a stage that was run with another spec."""
    if (directory / "spec.yaml").is_file():
        same = _comparable(Spec.load(directory)) == _comparable(spec)
        require(same, "the output directory holds a run of the same spec", directory=str(directory))


def _comparable(spec: Spec) -> dict[str, object]:
    """The spec without what says only where the images are found."""
    return spec.override({"data.directory": None, "data.download": False}).model_dump(mode="json")
