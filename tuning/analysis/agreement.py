"""Agreement of the ranking of trials at a rung with that at their end, which justifies pruning.

A rung and the end agree on the better of two trials with probability (1 + tau) / 2, where tau is
Kendall's: at 1 the order is the same, at 0 the two are unrelated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import kendalltau

from tuning.analysis.study import Z95, TrialRecord

# A tau of 0.5 keeps three of four pairs in order.
LEAST = 0.5
# With 7 trials the interval of a tau below 0.63 reaches 0.
FEWEST = 8
AGREES, WEAK, TOO_FEW = "agrees", "weak", "too few trials to tell"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Kendall's tau (tau-b) of a rung with the end over `trials` trials, and its 95 % interval.

    The interval is that of Fieller, Hartley and Pearson (1957): the inverse hyperbolic tangent of
    tau is nearly normal with variance 0.437 / (trials - 4). `tau` is None with fewer than three
    trials and where all are equal at the rung or at the end; `interval` is None where `tau` is, and
    with fewer than five trials.
    """

    trials: int
    tau: float | None
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """`agrees`: tau is at least 0.5 and its interval lies above 0. `weak`: either fails.
        `too few trials to tell`: fewer than 8."""
        if self.trials < FEWEST:
            return TOO_FEW
        if self.tau is None or self.interval is None:
            return WEAK
        return AGREES if self.tau >= LEAST and self.interval[0] > 0 else WEAK


def agreements(records: Sequence[TrialRecord]) -> dict[int, Agreement]:
    """The agreement of each rung with the end, over the trials that ran to the end.

    Pruned trials are missing and survivors are similar, so tau is biased low; run with
    `search.scheduler: none` for an unbiased estimate.
    """
    ended = [trial for trial in records if trial.complete]
    found: dict[int, Agreement] = {}
    for rung in sorted({epoch for trial in ended for epoch in trial.rungs}):
        if rung != max(trial.epochs for trial in ended):
            pairs = [(t.rungs[rung], t.certified) for t in ended if rung in t.rungs]
            found[rung] = _agreement(pairs)
    return found


def warnings(records: Sequence[TrialRecord]) -> list[str]:
    """A sentence for each rung whose agreement with the end is weak."""
    return [
        f"warning: the rung at epoch {rung} orders trials only weakly like their end "
        f"({words(found)}): pruning by it may be chance; move search.rungs later, raise "
        "search.rung_rows or set search.scheduler=none"
        for rung, found in agreements(records).items()
        if found.verdict == WEAK
    ]


def words(found: Agreement) -> str:
    """Tau, its interval and the number of trials, as text."""
    if found.tau is None:
        return f"no tau, {found.trials} trials"
    interval = "" if found.interval is None else " (95 %: {:.2f} to {:.2f})".format(*found.interval)
    return f"Kendall tau {found.tau:.2f}{interval}, {found.trials} trials"


def _agreement(pairs: list[tuple[float, float]]) -> Agreement:
    count = len(pairs)
    tau = float(kendalltau(*zip(*pairs, strict=True)).statistic) if count > 2 else math.nan
    if not math.isfinite(tau):
        return Agreement(trials=count, tau=None, interval=None)
    return Agreement(trials=count, tau=tau, interval=_interval(tau, count))


def _interval(tau: float, count: int) -> tuple[float, float] | None:
    if count < 5:
        return None
    # A perfect order, whose interval would be a point, is lowered by half a swapped pair.
    most = 1 - 2 / (count * (count - 1))
    centre = math.atanh(max(-most, min(most, tau)))
    half = Z95 * math.sqrt(0.437 / (count - 4))
    return min(tau, math.tanh(centre - half)), max(tau, math.tanh(centre + half))
