"""The progress of a search: a live table on a terminal, a line for each finished trial elsewhere.

It reads the study, as any other process could, and does not depend on Tune.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shlex import quote

import optuna
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raycrt.specs import Spec
from raycrt.system.places.storage import Place, is_remote
from raycrt.system.progress import remaining
from raycrt.tuning.analysis import agreement, study
from raycrt.tuning.analysis.study import TrialRecord
from raycrt.tuning.trials import store

_SECONDS = 0.5
_SHOWN = 8
_ENDED = ("complete", "pruned", "failed")


@contextmanager
def watching(
    open_study: Callable[[], optuna.Study], spec: Spec, home: Place, total: int, console: Console
) -> Iterator[None]:
    """Show the study of `open_study` during a block and keep `trials.csv` up to date."""
    record = open_study()
    stop = threading.Event()
    before = _ended(study.trials(record, spec))
    began = time.monotonic()

    def follow() -> None:
        shown = {trial.number for trial in before}
        live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        if live:
            live.start()
        while True:
            last = stop.wait(_SECONDS)
            trials = study.trials(record, spec)
            fresh = [trial for trial in _ended(trials) if trial.number not in shown]
            shown |= {trial.number for trial in fresh}
            if fresh:
                study.write_csv(home / study.TRIALS, trials, spec)
            rate = len(_ended(trials)) - len(before)
            eta = remaining(total - len(_ended(trials)), rate, time.monotonic() - began)
            if live:
                live.update(Group(_summary(trials, total, eta), _table(trials, spec)))
            for trial in [] if live else fresh:
                line = Text.assemble(_line(trial), " ", _summary(trials, total, eta))
                console.print(line, soft_wrap=True, highlight=False)
            if last:
                break
        if live:
            live.stop()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def announce(spec: Spec, home: Place, logs: str, dashboard: str | None, console: Console) -> None:
    """Print how other programs can follow the search in `home`, whose Tune logs are at `logs`: the
    dashboard's address and commands to copy."""
    ways = [f"tensorboard --logdir {quote(logs)}"]
    # The dashboard reads databases and journals of one file.
    if spec.search.storage or not is_remote(home):
        ways.append(f"optuna-dashboard {quote(spec.search.storage or str(home / store.JOURNAL))}")
    if dashboard is not None:
        ways.insert(0, f"Ray dashboard: {dashboard} (its token: ray get-auth-token)")
    console.print("watch it:", highlight=False)
    for way in ways:
        console.print(f"  {way}", highlight=False, markup=False, soft_wrap=True)


def warn(trials: list[TrialRecord], console: Console) -> None:
    """Print a warning for each rung that ranks trials differently from their end."""
    for warning in agreement.warnings(trials):
        console.print(warning, style="yellow", highlight=False, soft_wrap=True)


def _ended(trials: list[TrialRecord]) -> list[TrialRecord]:
    return [trial for trial in trials if trial.state in _ENDED]


def _summary(trials: list[TrialRecord], total: int, eta: str) -> Text:
    count = {state: sum(t.state == state for t in trials) for state in (*_ENDED, "running")}
    ranked = study.ranking(trials)
    best = f"best {ranked[0].certified:.1%} (trial {ranked[0].number})" if ranked else "best -"
    return Text(
        f"{sum(count[state] for state in _ENDED)}/{total} trials, {best}, "
        f"{count['running']} running, {count['pruned']} pruned, {count['failed']} failed, eta {eta}"
    )


def _line(trial: TrialRecord) -> str:
    params = ", ".join(f"{path.split('.')[-1]} {_short(v)}" for path, v in trial.params.items())
    outcome = f"trial {trial.number:>3} {trial.state:<8} certified {trial.certified:6.1%}"
    why = f" ({trial.reason})" if trial.reason else ""
    return f"{outcome} clean {trial.clean:6.1%} epoch {trial.epochs:>3} [{params}]{why};"


def _table(trials: list[TrialRecord], spec: Spec) -> Table:
    table = Table("trial", "state", "epoch", "certified", "clean", *_names(spec))
    for trial in trials[-_SHOWN:]:
        values = [_short(trial.params.get(path, "")) for path in spec.search.space]
        measured = [f"{trial.certified:.1%}", f"{trial.clean:.1%}"] if trial.epochs else ["", ""]
        table.add_row(str(trial.number), trial.state, str(trial.epochs), *measured, *values)
    return table


def _names(spec: Spec) -> list[str]:
    return [path.split(".")[-1] for path in spec.search.space]


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
