"""The whole job in one directory: search, train the winner, certify the test set, report.

Each stage has a directory with the spec it was run with; this command locks the directories until
it ends. A rerun skips the stages that finished and resumes the one that did not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext

from rich.console import Console

from raycrt import data
from raycrt.distributed import room, stages
from raycrt.distributed.session import session
from raycrt.evaluation import report
from raycrt.evaluation.page import write
from raycrt.evaluation.page.facts import facts
from raycrt.foreign import factory
from raycrt.networks import checkpoint
from raycrt.specs import Spec, identity
from raycrt.system.places import outputs
from raycrt.system.places.storage import Place
from raycrt.tuning.analysis import study
from raycrt.tuning.search import driver
from raycrt.tuning.trials import space

SEARCH, TRAIN, CERTIFICATES, REPORT = "search", "train", "certificates", "report"
_DONE = ".finished"
# The length of the search counts too: once it has ended, more trials would have no effect.
_SEARCHED = (
    *driver.IDENTITY,
    *(f"search.{key}" for key in ("trials", "finalists", "seeds", "points")),
)


def run(spec: Spec, out: Place, *, console: Console | None = None) -> report.Report:
    """Run the unfinished stages of the job of `spec` in `out` and return its report."""
    console = console or Console()
    spec = factory.resolved(data.described(spec))
    data.require_training_rows(spec.data)
    space.check(spec)
    home, model, proofs = out / SEARCH, out / TRAIN, out / CERTIFICATES
    with ExitStack() as claims:
        for stage in (home, model, proofs):
            claims.enter_context(outputs.held(stage))
        identity.refuse_another_than_stored(home, "a search", spec, _SEARCHED)
        if (home / _DONE).is_file():
            _winner(spec, home, model, proofs)
        finished = all((stage / _DONE).is_file() for stage in (home, model, proofs))
        with nullcontext() if finished else session():
            _stages(spec, home, model, proofs, console)
    console.print("4/4 report", style="bold")
    trials = home / study.TRIALS
    written = report.write(proofs, out / REPORT, trials_csv=trials)
    page = write.write(facts(out, written.found), out / REPORT)
    console.print(f"\n{written.headline}\n", style="bold", highlight=False, soft_wrap=True)
    for path in (home / study.BEST, trials, model, proofs, page, written.markdown, written.plot):
        console.print(str(path), highlight=False, soft_wrap=True)
    return written


def _stages(spec: Spec, home: Place, model: Place, proofs: Place, console: Console) -> None:
    """Run the stages before the report, except those that have finished."""
    if not (proofs / _DONE).is_file():
        room.check(spec.run)
    at_a_time = spec.search.concurrent or "as many as fit"
    title = f"1/4 search: {spec.search.trials} trials, {at_a_time} at a time"
    if spec.search.finalists:
        title += f", then finals of {spec.search.finalists}"
    _stage(home, console, title, lambda: driver.run(spec, home, resume=True))
    best = _winner(spec, home, model, proofs)
    title = f"2/4 train: {best.train.epochs} epochs on {best.run.workers} workers"
    _stage(model, console, title, lambda: stages.train(best, model))
    title = f"3/4 certify: the test images on {best.run.workers} actors"
    _stage(proofs, console, title, lambda: _certify(best, model, proofs))


def _winner(spec: Spec, home: Place, model: Place, proofs: Place) -> Spec:
    """The winner of the search, with the resources and data locations of `spec`; `InvalidInput` if
    the directories of the next stages hold another run."""
    current = {
        "run": spec.run.model_dump(),
        "data.directory": spec.data.directory,
        "data.download": spec.data.download,
    }
    best = Spec.load(home / study.BEST).override(current)
    identity.refuse_another_than_stored(model, "a training", best, identity.TRAINING)
    identity.refuse_another_than_stored(proofs, "certificates", best, identity.CERTIFICATES)
    return best


def _certify(spec: Spec, model: Place, out: Place) -> None:
    network, _ = checkpoint.load_model(model)
    made = checkpoint.load_provenance(model).training
    stages.certify(spec, network, out, made=made)


def _stage(directory: Place, console: Console, title: str, work: Callable[[], object]) -> None:
    """Run a stage, unless it has finished."""
    if (directory / _DONE).is_file():
        console.print(f"{title}: finished before", style="bold", highlight=False, soft_wrap=True)
        return
    console.print(title, style="bold", highlight=False, soft_wrap=True)
    work()
    outputs.write_atomically(directory / _DONE, b"")
